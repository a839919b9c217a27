//! Settings needed before the API is up, from a TOML file. Everything else is configured over the
//! API.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error as _};
use thiserror::Error;

use crate::{
    api::ApiSettings, net::ThreadScheduling, session::PlaneSettings, telemetry::LogSettings,
};

/// State directory that is used when none is given.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/twamp-agent";

/// Settings of an agent; unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directory of configuration and results.
    #[serde(deserialize_with = "directory")]
    pub state_dir: PathBuf,
    /// Addresses and security of the API.
    pub api: ApiSettings,
    /// Filter and format of the log.
    pub log: LogSettings,
    /// Network interfaces whose hardware timestamps are used.
    pub hardware_timestamp_interfaces: Vec<String>,
    /// Threads that send probes; one by default.
    pub senders: ThreadSettings,
    /// Threads that reflect probes; one per CPU by default.
    pub reflectors: ThreadSettings,
}

/// Threads of one role of the data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThreadSettings {
    /// Number of threads, 1 to 64.
    #[serde(deserialize_with = "threads")]
    pub threads: Option<usize>,
    /// Allowed CPUs; empty for all.
    pub cpus: Vec<usize>,
    /// SCHED_FIFO priority, 1 to 99; 0 for the default scheduler.
    #[serde(deserialize_with = "priority")]
    pub realtime_priority: u8,
    /// SO_BUSY_POLL of the sockets in microseconds, up to 1,000,000; 0 disables it.
    #[serde(deserialize_with = "busy_poll")]
    pub busy_poll_us: u32,
    /// Time in microseconds for which a thread spins before a probe is due, 0 to 1000.
    #[serde(deserialize_with = "spin")]
    pub spin_before_deadline_us: u32,
}

/// Largest default number of threads.
const MAX_DEFAULT_THREADS: usize = 16;
const MAX_THREADS: usize = 64;
/// With a larger value a thread would hardly ever sleep.
const MAX_SPIN_US: u32 = 1_000;
const MAX_BUSY_POLL_US: u32 = 1_000_000;

fn threads<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let threads = usize::deserialize(deserializer)?;
    if (1..=MAX_THREADS).contains(&threads) {
        return Ok(Some(threads));
    }
    Err(D::Error::custom(format!(
        "invalid number of threads {threads}: expected 1 to {MAX_THREADS}"
    )))
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let priority = u8::deserialize(deserializer)?;
    if priority <= 99 {
        return Ok(priority);
    }
    Err(D::Error::custom(format!(
        "invalid priority {priority}: expected 1 to 99, or 0 for the default scheduler"
    )))
}

fn spin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let microseconds = u32::deserialize(deserializer)?;
    if microseconds <= MAX_SPIN_US {
        return Ok(microseconds);
    }
    Err(D::Error::custom(format!(
        "invalid spin_before_deadline_us {microseconds}: expected 0 to {MAX_SPIN_US}"
    )))
}

fn busy_poll<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let microseconds = u32::deserialize(deserializer)?;
    if microseconds <= MAX_BUSY_POLL_US {
        return Ok(microseconds);
    }
    Err(D::Error::custom(format!(
        "invalid busy_poll_us {microseconds}: expected 0 to {MAX_BUSY_POLL_US}"
    )))
}

fn directory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.as_os_str().is_empty() {
        return Err(D::Error::custom(
            "empty path: expected a directory such as /var/lib/twamp-agent",
        ));
    }
    Ok(path)
}

impl ThreadSettings {
    fn plane(&self, threads_by_default: usize) -> PlaneSettings {
        PlaneSettings {
            threads: self.threads.unwrap_or(threads_by_default),
            scheduling: ThreadScheduling {
                cpus: self.cpus.clone(),
                realtime_priority: self.realtime_priority,
            },
            busy_poll_us: self.busy_poll_us,
            spin_before_deadline_us: self.spin_before_deadline_us,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state_dir: DEFAULT_STATE_DIR.into(),
            api: ApiSettings::default(),
            log: LogSettings::default(),
            hardware_timestamp_interfaces: Vec::new(),
            senders: ThreadSettings::default(),
            reflectors: ThreadSettings::default(),
        }
    }
}

/// Failure to read the settings.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file is not readable.
    #[error("settings {}: {source}", .path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the file system.
        source: io::Error,
    },
    /// The file is not valid.
    #[error("settings {}: {source}", .path.display())]
    Content {
        /// Path of the file.
        path: PathBuf,
        /// Line, column and expected content.
        source: Box<toml::de::Error>,
    },
}

impl Settings {
    /// Returns the threads that send probes.
    pub fn sender_plane(&self) -> PlaneSettings {
        self.senders.plane(1)
    }

    /// Returns the threads that reflect probes.
    pub fn reflector_plane(&self) -> PlaneSettings {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        self.reflectors.plane(cpus.min(MAX_DEFAULT_THREADS))
    }

    /// Reads settings from a file.
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
    fn an_empty_file_selects_the_defaults() {
        let settings = read("").unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.api.listen[0].to_string(), "127.0.0.1:9862");
    }

    #[test]
    fn all_keys_are_read() {
        let settings = read(
            "state_dir = \"/tmp/x\"\nhardware_timestamp_interfaces = [\"eth0\"]\n\
             [api]\nlisten = [\"[::1]:1\"]\nunix_socket = \"/run/x\"\n\
             allow_remote_without_tls = true\n\
             [api.tls]\ncertificate = \"c\"\nkey = \"k\"\nclient_ca = \"a\"\n\
             [log]\nfilter = \"debug\"\nformat = \"json\"\n\
             [senders]\nthreads = 2\ncpus = [0, 1]\nrealtime_priority = 10\nbusy_poll_us = 50\nspin_before_deadline_us = 200\n\
             [reflectors]\nthreads = 3\n",
        )
        .unwrap();
        assert_eq!(settings.hardware_timestamp_interfaces, ["eth0"]);
        let senders = settings.sender_plane();
        assert_eq!(
            (senders.threads, senders.busy_poll_us, senders.spin_before_deadline_us),
            (2, 50, 200)
        );
        assert_eq!(
            (senders.scheduling.cpus, senders.scheduling.realtime_priority),
            (vec![0, 1], 10)
        );
        assert_eq!(settings.reflector_plane().threads, 3);
        assert!(settings.api.allow_remote_without_tls);
        assert_eq!(settings.api.tls.unwrap().client_ca, Some("a".into()));
    }

    #[test]
    fn values_out_of_range_are_rejected() {
        for (text, expected) in [
            ("[senders]\nthreads = 0\n", "expected 1 to 64"),
            ("[reflectors]\nthreads = 65\n", "expected 1 to 64"),
            ("[senders]\nrealtime_priority = 100\n", "expected 1 to 99"),
            ("[senders]\ncpus = [-1]\n", "-1"),
            ("[senders]\nspin_before_deadline_us = 1001\n", "expected 0 to 1000"),
            ("[senders]\nbusy_poll_us = 1000001\n", "expected 0 to 1000000"),
            ("\nstate_dir = \"\"\n", "expected a directory"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("line 2"), "{error}");
        }
        assert_eq!(Settings::default().sender_plane().threads, 1);
        assert!(Settings::default().reflector_plane().threads >= 1);
    }

    #[test]
    fn an_unknown_key_is_reported_with_its_line() {
        let error = read("[api]\nlistne = []\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("listne"), "{error}");
        assert!(error.contains("listen"), "expected keys: {error}");
    }
}
