//! Conversion of the API's document to the checked configuration. All violations are found in one
//! pass, each with the path of its field as the `.proto` spells it.

mod addresses;
mod client;
mod ends;
mod export;
mod fields;
mod security;
mod server;
mod stamp;
mod statistics;
mod thresholds;
mod valid_parts;
mod warnings;

use std::{collections::BTreeMap, sync::Arc};

pub use fields::parse_duration;
pub use valid_parts::parse_valid_parts;
pub use warnings::warnings;

use super::{AgentConfig, ControlConnection, StorageConfig, limits};
use crate::{proto, time::NANOS_PER_SECOND};

/// Violation of one field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, such as `client.control_connections[2].test_sessions[0].ttl`.
    pub field: String,
    /// Invalid value, and values that are valid.
    pub description: String,
}

/// Checks a document and fills in its defaults.
pub fn parse(document: &proto::AgentConfig) -> Result<AgentConfig, Vec<Violation>> {
    let mut check = Check::default();
    let connections = document
        .client
        .as_ref()
        .map_or_else(BTreeMap::new, |client| check.at("client", |check| check.client(client)));
    let server = document
        .server
        .as_ref()
        .and_then(|server| check.at("server", |check| check.server(server)))
        .map(Arc::new);
    let storage = document
        .storage
        .as_ref()
        .map_or_else(StorageConfig::default, |s| check.at("storage", |check| check.storage(s)));
    let given = document.client.iter().flat_map(|client| &client.control_connections);
    for (index, connection) in given.enumerate() {
        let age_ns = connections.get(&connection.name).and_then(|c| c.retention_age_ns);
        if age_ns.is_some_and(|age_ns| age_ns > storage.retention_age_ns) {
            let most_s = storage.retention_age_ns / NANOS_PER_SECOND;
            check.report(
                &format!("client.control_connections[{index}].retention_age"),
                format!("above the retention_age of the storage: expected at most {most_s} s"),
            );
        }
    }
    let export = document.export.as_ref();
    let export = export.map(|export| check.at("export", |check| check.export(export)));
    let export = Arc::new(export.unwrap_or_default());
    if check.violations.is_empty() {
        Ok(AgentConfig { connections, server, storage, export })
    } else {
        Err(check.violations)
    }
}

/// Checks a single control connection. Paths of violations are relative to it.
pub fn parse_connection(
    connection: &proto::ControlConnection,
) -> Result<ControlConnection, Vec<Violation>> {
    let mut check = Check::default();
    let parsed = check.connection(connection);
    if check.violations.is_empty() { Ok(parsed) } else { Err(check.violations) }
}

/// Checks a name of the API.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    if limits::NAME_OCTETS.contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "{:?} is not a name: 1 to 64 characters from A-Z a-z 0-9 . _ : -",
        name.chars().take(80).collect::<String>()
    ))
}

/// Checks the name of an entry of the server's lists, which may be a path that identifies its
/// owner.
fn check_entry_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:-/".contains(c);
    if limits::ENTRY_NAME_BYTES.contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "{:?} is not a name: 1 to 192 characters from A-Z a-z 0-9 . _ : - /",
        name.chars().take(240).collect::<String>()
    ))
}

/// Collects violations; `path` is where the check is.
#[derive(Default)]
struct Check {
    path: Vec<String>,
    violations: Vec<Violation>,
}

impl Check {
    fn at<T>(&mut self, part: impl Into<String>, check: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(part.into());
        let value = check(self);
        self.path.pop();
        value
    }

    fn report(&mut self, field: &str, description: impl Into<String>) {
        let mut path = self.path.clone();
        if !field.is_empty() {
            path.push(field.to_owned());
        }
        self.violations.push(Violation { field: path.join("."), description: description.into() });
    }

    fn storage(&mut self, storage: &proto::StorageConfig) -> StorageConfig {
        let retention_bytes =
            self.number("retention_bytes", storage.retention_bytes, &limits::RETENTION_OCTETS);
        StorageConfig {
            retention_age_ns: self.duration(
                "retention_age",
                storage.retention_age,
                &limits::RETENTION_AGE,
            ),
            retention_bytes,
            maximum_disk_bytes: match storage.maximum_disk_bytes {
                None => limits::default_disk_octets(retention_bytes),
                given => self.number("maximum_disk_bytes", given, &limits::DISK_OCTETS),
            },
        }
    }
}
