//! Settings that are valid but probably unintended: without effect, or with an unexpected one.

use std::collections::{HashMap, HashSet};

use super::super::{
    AgentConfig, AuthenticationMode, ControlConnection, ControlType, ResultKeeping, limits,
};
use crate::{proto, time::TimestampFormat};

/// Names that a filter did not find, of which a warning shows the first.
const MAX_NAMES: usize = 3;

/// Lists settings of a valid document that are probably unintended, for a host with `most_sockets`
/// sockets left. Only settings that the document gives are without effect, not their defaults.
pub fn warnings(
    document: &proto::AgentConfig,
    config: &AgentConfig,
    most_sockets: u64,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let sockets = config.client_sockets();
    if sockets > most_sockets {
        warnings.push(format!(
            "client: {sockets} sockets for connections and sessions, and {most_sockets} may be open: \
             some will not run; LimitNOFILE of the service allows more"
        ));
    }
    if let Some(server) = &document.server {
        of_server(server, &mut warnings);
    }
    if let Some(storage) = &document.storage {
        of_storage(storage, &mut warnings);
    }
    of_exporters(document, config, &mut warnings);
    let given = document.client.iter().flat_map(|client| &client.control_connections);
    let given: HashMap<&str, _> = given.map(|given| (given.name.as_str(), given)).collect();
    for connection in config.connections.values() {
        if let Some(given) = given.get(connection.name.as_str()) {
            without_effect(given, connection, &mut warnings);
            sessions_without_effect(given, connection, &mut warnings);
        }
        of_connection(connection, &mut warnings);
    }
    warnings
}

/// Returns the names of the fields that are given.
fn given_fields(fields: &[(&'static str, bool)]) -> Vec<&'static str> {
    fields.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| *name).collect()
}

fn have_no_effect(names: &[&str]) -> String {
    let verb = if names.len() == 1 { "has" } else { "have" };
    format!("{} {verb} no effect", names.join(", "))
}

fn without_effect(
    given: &proto::ControlConnection,
    connection: &ControlConnection,
    warnings: &mut Vec<String>,
) {
    let name = &connection.name;
    let mut warn = |text: String| warnings.push(format!("client/{name}: {text}"));
    if connection.control_type != ControlType::Managed {
        let names = given_fields(&[
            ("tcp_keepidle", given.tcp_keepidle.is_some()),
            ("tcp_keepintvl", given.tcp_keepintvl.is_some()),
            ("tcp_keepcnt", given.tcp_keepcnt.is_some()),
            ("control_dscp", !given.control_dscp.is_empty()),
            ("connect_timeout", given.connect_timeout.is_some()),
            ("maximum_key_derivation_count", given.maximum_key_derivation_count.is_some()),
            ("extensions", given.extensions.is_some()),
        ]);
        if !names.is_empty() {
            let none = have_no_effect(&names);
            warn(format!("{none} with LIGHT and STAMP: there is no control connection"));
        }
    } else if given.maximum_key_derivation_count.is_some()
        && connection.authentication == AuthenticationMode::None
    {
        warn("maximum_key_derivation_count has no effect with authentication_mode NONE".into());
    }
    if connection.results == ResultKeeping::Stored
        && connection.history_size as u64 != limits::HISTORY_SIZE.default
    {
        warn(
            "history_size has no effect with persistent_results: records are read from the store"
                .into(),
        );
    }
    if connection.results != ResultKeeping::Stored && given.retention_age.is_some() {
        warn(
            "retention_age has no effect without persistent_results: history_size limits the \
             results in memory"
                .into(),
        );
    }
}

fn sessions_without_effect(
    given: &proto::ControlConnection,
    connection: &ControlConnection,
    warnings: &mut Vec<String>,
) {
    let by_name: HashMap<&str, _> =
        given.test_sessions.iter().map(|given| (given.name.as_str(), given)).collect();
    for session in &connection.sessions {
        let Some(given) = by_name.get(session.name.as_str()) else { continue };
        let mut warn = |text: String| {
            warnings.push(format!("client/{}: session {}: {text}", connection.name, session.name));
        };
        if given.burst_size.is_some() && session.burst_size > session.probe_count {
            let (burst, count) = (session.burst_size, session.probe_count);
            warn(format!(
                "burst_size {burst} is above probe_count {count}: a test is one burst of {count}"
            ));
        }
        if connection.control_type != ControlType::Managed {
            continue;
        }
        if session.reflected_octets > 0 && !connection.extensions.reflect_octets {
            warn("reflected_octets has no effect with reflect_octets false in extensions".into());
        }
        if session.timestamps == TimestampFormat::Ptp && !connection.extensions.ptp_timestamps {
            warn(
                "timestamp_format PTP has no effect with ptp_timestamps false in extensions".into(),
            );
        }
    }
}

fn of_connection(connection: &ControlConnection, warnings: &mut Vec<String>) {
    if connection.interface.is_none() && connection.has_link_local_target() {
        warnings.push(format!(
            "client/{}: a link-local target_address cannot be reached without an interface",
            connection.name
        ));
    }
    for session in &connection.sessions {
        let protected = connection.authentication.protects_test_packets();
        let reply = if protected { 112 } else { 41 };
        if session.data_size < reply {
            warnings.push(format!(
                "client/{}: session {} sends {} octets and gets {reply} back: loss and delay of \
                 unequal packets; data_size of {reply} or more makes them equal",
                connection.name, session.name, session.data_size
            ));
        }
    }
    if connection.sessions.is_empty() && !connection.inactive_sessions.is_empty() {
        let name = &connection.name;
        warnings.push(format!("client/{name}: inactive, because all its sessions are inactive"));
    }
}

fn of_server(server: &proto::ServerConfig, warnings: &mut Vec<String>) {
    let mut warn = |text: String| warnings.push(format!("server: {text}"));
    if server.listen.is_empty() && (server.light.is_some() || server.stamp.is_some()) {
        let names = given_fields(&[
            ("client_list", !server.client_list.is_empty()),
            ("server_inactivity_timeout", server.server_inactivity_timeout.is_some()),
            ("max_connection_duration", server.max_connection_duration.is_some()),
            ("maximum_connections", server.maximum_connections.is_some()),
            ("maximum_connections_per_client", server.maximum_connections_per_client.is_some()),
            ("maximum_sessions", server.maximum_sessions.is_some()),
            ("maximum_sessions_per_connection", server.maximum_sessions_per_connection.is_some()),
            ("tcp_keepidle", server.tcp_keepidle.is_some()),
            ("tcp_keepintvl", server.tcp_keepintvl.is_some()),
            ("tcp_keepcnt", server.tcp_keepcnt.is_some()),
            ("test_port", server.test_port.is_some()),
            ("refwait", server.refwait.is_some()),
            ("authentication_modes", !server.authentication_modes.is_empty()),
            ("key_chains", !server.key_chains.is_empty()),
            ("key_derivation_count", server.key_derivation_count.is_some()),
            ("extensions", server.extensions.is_some()),
            ("refuse_silently", server.refuse_silently),
        ]);
        if !names.is_empty() {
            let none = have_no_effect(&names);
            warn(format!("{none} without `listen`: no control connections are accepted"));
        }
        return;
    }
    let none = i32::from(proto::AuthenticationMode::None);
    if server.authentication_modes.iter().all(|mode| *mode == none || *mode == 0) {
        let names = given_fields(&[
            ("key_chains", !server.key_chains.is_empty()),
            ("key_derivation_count", server.key_derivation_count.is_some()),
        ]);
        if !names.is_empty() {
            let none = have_no_effect(&names);
            warn(format!("{none} with NONE alone in authentication_modes: no client needs a key"));
        }
    }
    for (part, all, given, limit) in [
        (
            ("maximum_connections_per_client", server.maximum_connections_per_client),
            "maximum_connections",
            server.maximum_connections,
            &limits::SERVER_CONNECTIONS,
        ),
        (
            ("maximum_sessions_per_connection", server.maximum_sessions_per_connection),
            "maximum_sessions",
            server.maximum_sessions,
            &limits::SERVER_SESSIONS,
        ),
    ] {
        let most = given.map_or(limit.default, u64::from);
        if let (name, Some(value)) = part
            && u64::from(value) > most
        {
            warn(format!("{name} {value} has no effect: it is above {all}, {most}"));
        }
    }
}

fn of_storage(storage: &proto::StorageConfig, warnings: &mut Vec<String>) {
    if let Some((records, disk)) = storage.retention_bytes.zip(storage.maximum_disk_bytes)
        && disk < records
    {
        warnings.push(format!(
            "storage: retention_bytes {records} has no effect: maximum_disk_bytes {disk} is reached \
             first"
        ));
    }
}

fn of_exporters(document: &proto::AgentConfig, config: &AgentConfig, warnings: &mut Vec<String>) {
    warnings.extend(config.export.exporters.iter().filter_map(|(name, exporter)| {
        let server = exporter.unencrypted_server()?;
        exporter.secret.as_ref()?;
        Some(format!(
            "export/{name}: the secret is sent unencrypted to {server}; https:// or tls:// protects it"
        ))
    }));
    let Some(export) = &document.export else { return };
    let otlp = export.otlp.iter().map(|otlp| (&otlp.name, otlp.filter.as_ref()));
    let nats = export.nats.iter().map(|nats| (&nats.name, nats.filter.as_ref()));
    let is_known = |name: &str| config.connections.contains_key(name);
    let mut sessions: Option<HashSet<&str>> = None;
    for (name, filter) in otlp.chain(nats) {
        let Some(filter) = filter else { continue };
        let mut warn = |field: &str, unknown: &[&str]| {
            if !unknown.is_empty() {
                let shown = unknown[..unknown.len().min(MAX_NAMES)].join(", ");
                let more = match unknown.len().saturating_sub(MAX_NAMES) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                warnings.push(format!(
                    "export/{name}: filter.{field} selects nothing by {shown}{more}: not in the \
                     configuration"
                ));
            }
        };
        let unknown = filter.connections.iter().map(String::as_str).filter(|name| !is_known(name));
        warn("connections", &unknown.collect::<Vec<_>>());
        if !filter.sessions.is_empty() {
            let known = sessions.get_or_insert_with(|| {
                config.connections.values().flat_map(|c| c.session_names()).collect()
            });
            let unknown = filter.sessions.iter().map(String::as_str);
            warn("sessions", &unknown.filter(|name| !known.contains(name)).collect::<Vec<_>>());
        }
    }
}
