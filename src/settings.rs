//! Settings needed before the API is up, from a TOML file. Everything else is configured over the
//! API.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error as _};
use thiserror::Error;
use toml::de::{DeTable, DeValue};

use crate::{
    api::ApiSettings, document::similar, model::check_interface, net::ThreadScheduling,
    session::PlaneSettings, telemetry::LogSettings,
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
    #[serde(deserialize_with = "interfaces")]
    pub hardware_timestamp_interfaces: Vec<String>,
    /// The clock of this host is kept by a daemon that does not tell the kernel: timestamps count
    /// as synchronised, with an error of 1 ms.
    pub clock_is_synchronised: bool,
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
/// Largest settings file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Unknown keys that are reported.
const MAX_UNKNOWN_KEYS: usize = 20;

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

fn interfaces<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    names.iter().try_for_each(|name| check_interface(name)).map_err(D::Error::custom)?;
    Ok(names)
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
            clock_is_synchronised: false,
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
    /// The file has keys that are no settings.
    #[error("settings {}: {}", .path.display(), .keys.join("\n  "))]
    UnknownKeys {
        /// Path of the file.
        path: PathBuf,
        /// Each key with its line and column.
        keys: Vec<String>,
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
        let text = match File::open(&path).and_then(read_bounded) {
            Ok(text) => text,
            Err(source) => return Err(SettingsError::File { path, source }),
        };
        parse(&text).map_err(|problem| match problem {
            Problem::Other(source) => SettingsError::Content { path, source },
            Problem::UnknownKeys(keys) => SettingsError::UnknownKeys { path, keys },
        })
    }
}

fn read_bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_FILE_BYTES {
        true => Err(io::Error::other(format!("the file is larger than {MAX_FILE_BYTES} bytes"))),
        false => Ok(text),
    }
}

enum Problem {
    UnknownKeys(Vec<String>),
    Other(Box<toml::de::Error>),
}

/// Parses settings. An unknown key is taken out and the rest read again, so that all are reported.
fn parse(text: &str) -> Result<Settings, Problem> {
    let other = |error: toml::de::Error| Problem::Other(Box::new(error));
    let mut table = DeTable::parse(text).map_err(other)?;
    let mut keys = Vec::new();
    loop {
        let mut error = match Settings::deserialize(toml::de::Deserializer::from(table.clone())) {
            Ok(_) if !keys.is_empty() => return Err(Problem::UnknownKeys(keys)),
            Ok(settings) => return Ok(settings),
            Err(error) => error,
        };
        let span = error.span().filter(|_| error.message().starts_with("unknown field"));
        match span.and_then(|span| Some((remove_key(table.get_mut(), &span)?, span.start))) {
            Some(key) if keys.len() < MAX_UNKNOWN_KEYS => {
                keys.push(unknown_key(text, &key, error.message()));
            }
            _ if !keys.is_empty() => return Err(Problem::UnknownKeys(keys)),
            _ => {
                // The message shows the line.
                error.set_input(Some(text));
                return Err(other(error));
            }
        }
    }
}

/// Removes the key at a place of the text.
fn remove_key(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let found = table.keys().find(|key| key.span() == *span).map(|key| key.get_ref().to_string());
    if let Some(key) = found {
        table.remove(key.as_str());
        return Some(key);
    }
    table.iter_mut().find_map(|(_, value)| {
        let DeValue::Table(table) = value.get_mut() else { return None };
        remove_key(table, span)
    })
}

/// Describes an unknown key by the message of the parser, which lists the known ones in backticks.
fn unknown_key(text: &str, (key, start): &(String, usize), message: &str) -> String {
    let before = &text[..*start];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let known: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
    let hint = match similar(key, known.iter().map(|known| (*known).to_owned())) {
        Some(similar) => format!("did you mean {similar}?"),
        None => format!("expected {}", known.join(", ")),
    };
    format!("line {line}, column {column}: unknown key {key:?}: {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, SettingsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
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
             [api]\nlisten = [\"[::1]:1\", \"[fe80::1%eth0]:1\"]\nunix_socket = \"/run/x\"\n\
             allow_remote_without_tls = true\n\
             [api.tls]\ncertificate = \"c\"\nkey = \"k\"\nclient_ca = \"a\"\n\
             [log]\nfilter = \"debug\"\nformat = \"json\"\n\
             [senders]\nthreads = 2\ncpus = [0, 1]\nrealtime_priority = 10\nbusy_poll_us = 50\nspin_before_deadline_us = 200\n\
             [reflectors]\nthreads = 3\n",
        )
        .unwrap();
        assert_eq!(settings.hardware_timestamp_interfaces, ["eth0"]);
        assert_eq!(settings.api.listen[1].to_string(), "[fe80::1%eth0]:1");
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
            ("\nhardware_timestamp_interfaces = [\"lo\", \"\"]\n", "is not an interface name"),
            ("\nhardware_timestamp_interfaces = [\"..\"]\n", "is not an interface name"),
            ("[api]\nlisten = [\"fe80::1\"]\n", "expected ADDRESS:PORT"),
            ("[api]\nlisten = [\"[fe80::1]:1\"]\n", "expected its interface"),
            ("[api]\nlisten = [\"224.0.0.1:1\"]\n", "is a multicast address"),
            ("[api]\nlisten = [\"[ff02::1%lo]:1\"]\n", "only link-local addresses"),
            ("[api]\nlisten = [\"255.255.255.255:1\"]\n", "is the broadcast address"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("line 2"), "{error}");
        }
        assert_eq!(Settings::default().sender_plane().threads, 1);
        assert!(Settings::default().reflector_plane().threads >= 1);
    }

    #[test]
    fn unknown_keys_are_reported_with_their_lines() {
        let error = read("[api]\nlistne = []\n").unwrap_err().to_string();
        let expected = "line 2, column 1: unknown key \"listne\": did you mean listen?";
        assert!(error.ends_with(expected), "{error}");
        let text = "stat_dir = \"/x\"\nwhatever = 1\n[log]\nfiltr = \"info\"\n";
        let error = read(text).unwrap_err().to_string();
        for expected in [
            "line 1, column 1: unknown key \"stat_dir\": did you mean state_dir?",
            "line 2, column 1: unknown key \"whatever\": expected state_dir, api, log, ",
            "line 4, column 1: unknown key \"filtr\": did you mean filter?",
        ] {
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_huge_file_is_refused() {
        let error = read(&"#".repeat(2 << 20)).unwrap_err().to_string();
        assert!(error.contains("larger than 1048576 bytes"), "{error}");
    }
}
