//! What must be known before the API is up: a TOML file. Everything else comes over the API.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error as _};
use thiserror::Error;

use crate::{
    api::ApiSettings, net::ThreadScheduling, session::PlaneSettings, telemetry::LogSettings,
};

/// Where configuration and results are kept, if nothing else is said.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/twamp-agent";

/// Settings of an agent. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where configuration and results are kept.
    #[serde(deserialize_with = "directory")]
    pub state_dir: PathBuf,
    /// Where and how the API is offered.
    pub api: ApiSettings,
    /// How the agent logs.
    pub log: LogSettings,
    /// Network interfaces whose stamps of packets are used.
    pub hardware_timestamp_interfaces: Vec<String>,
    /// The threads that send probes; one where it is not said.
    pub senders: ThreadSettings,
    /// The threads that answer probes; one for each CPU where it is not said.
    pub reflectors: ThreadSettings,
}

/// Threads of the data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThreadSettings {
    /// How many, 1 to 64.
    #[serde(deserialize_with = "threads")]
    pub threads: Option<usize>,
    /// CPUs that they may run on; empty for all.
    pub cpus: Vec<usize>,
    /// Priority of SCHED_FIFO, 1 to 99; 0 for the ordinary scheduler.
    #[serde(deserialize_with = "priority")]
    pub realtime_priority: u8,
    /// Microseconds of SO_BUSY_POLL on their sockets, 0 to 1,000,000; 0 for none.
    #[serde(deserialize_with = "busy_poll")]
    pub busy_poll_us: u32,
    /// Microseconds for which they stay awake before a probe is due, 0 to 1000.
    #[serde(deserialize_with = "awake")]
    pub spin_before_deadline_us: u32,
}

/// Threads of one kind that are started without being asked for.
const MOST_BY_DEFAULT: usize = 16;
const MOST_THREADS: usize = 64;
/// More would be a thread that never sleeps.
const LONGEST_AWAKE_US: u32 = 1_000;
const LONGEST_BUSY_US: u32 = 1_000_000;

fn threads<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let threads = usize::deserialize(deserializer)?;
    if (1..=MOST_THREADS).contains(&threads) {
        return Ok(Some(threads));
    }
    Err(D::Error::custom(format!("{threads} threads: it is from 1 to {MOST_THREADS}")))
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let priority = u8::deserialize(deserializer)?;
    if priority <= 99 {
        return Ok(priority);
    }
    Err(D::Error::custom(format!("priority {priority}: it is from 1 to 99, or 0 for none")))
}

fn awake<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let microseconds = u32::deserialize(deserializer)?;
    if microseconds <= LONGEST_AWAKE_US {
        return Ok(microseconds);
    }
    Err(D::Error::custom(format!(
        "spin_before_deadline_us {microseconds}: it is from 0 to {LONGEST_AWAKE_US}"
    )))
}

fn busy_poll<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let microseconds = u32::deserialize(deserializer)?;
    if microseconds <= LONGEST_BUSY_US {
        return Ok(microseconds);
    }
    Err(D::Error::custom(format!("busy_poll_us {microseconds}: it is from 0 to {LONGEST_BUSY_US}")))
}

fn directory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.as_os_str().is_empty() {
        return Err(D::Error::custom("it is empty: name a directory, as /var/lib/twamp-agent"));
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
    /// The threads that send probes.
    pub fn sender_plane(&self) -> PlaneSettings {
        self.senders.plane(1)
    }

    /// The threads that answer probes.
    pub fn reflector_plane(&self) -> PlaneSettings {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        self.reflectors.plane(cpus.min(MOST_BY_DEFAULT))
    }

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
    fn threads_have_limits() {
        for (text, said) in [
            ("[senders]\nthreads = 0\n", "from 1 to 64"),
            ("[reflectors]\nthreads = 65\n", "from 1 to 64"),
            ("[senders]\nrealtime_priority = 100\n", "from 1 to 99"),
            ("[senders]\ncpus = [-1]\n", "-1"),
            ("[senders]\nspin_before_deadline_us = 1001\n", "from 0 to 1000"),
            ("[senders]\nbusy_poll_us = 1000001\n", "from 0 to 1000000"),
            ("\nstate_dir = \"\"\n", "name a directory"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("line 2"), "{error}");
        }
        assert_eq!(Settings::default().sender_plane().threads, 1);
        assert!(Settings::default().reflector_plane().threads >= 1);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let error = read("[api]\nlistne = []\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("listne"), "{error}");
        assert!(error.contains("listen"), "what would be right: {error}");
    }
}
