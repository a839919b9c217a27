//! What must be known before the API is up: a TOML file. Everything else comes over the API.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use thiserror::Error;

use crate::{api::ApiSettings, telemetry::LogSettings};

/// Settings of an agent. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where configuration and results are kept.
    pub state_dir: PathBuf,
    /// Where and how the API is offered.
    pub api: ApiSettings,
    /// How the agent logs.
    pub log: LogSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/twamp-agent".into(),
            api: ApiSettings::default(),
            log: LogSettings::default(),
        }
    }
}

/// Why there are no settings.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("settings {}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no settings.
    #[error("settings {}: {source}", .path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Line, column, and what was expected.
        source: Box<toml::de::Error>,
    },
}

impl Settings {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let path = path.to_owned();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(SettingsError::File { path, source }),
        };
        toml::from_str(&text)
            .map_err(|source| SettingsError::Content { path, source: Box::new(source) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, SettingsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Settings::read(file.path())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let settings = read("").unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.api.listen[0].to_string(), "127.0.0.1:9862");
    }

    #[test]
    fn every_key_is_taken() {
        let settings = read(
            "state_dir = \"/tmp/x\"\n\
             [api]\nlisten = [\"[::1]:1\"]\nunix_socket = \"/run/x\"\n\
             allow_remote_without_tls = true\n\
             [api.tls]\ncertificate = \"c\"\nkey = \"k\"\nclient_ca = \"a\"\n\
             [log]\nfilter = \"debug\"\nformat = \"json\"\n",
        )
        .unwrap();
        assert!(settings.api.allow_remote_without_tls);
        assert_eq!(settings.api.tls.unwrap().client_ca, Some("a".into()));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let error = read("[api]\nlistne = []\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("listne"), "{error}");
        assert!(error.contains("listen"), "what would be right: {error}");
    }
}
