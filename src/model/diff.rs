//! Differences between two configurations, with their effect on running measurements.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{AgentConfig, ControlConnection, ServerConfig, TestSession, effect::ServerField};
use crate::proto::{Change, ChangeEffect, ChangeKind};

/// Way in which a connection can control its sessions, which decides the effect of a changed
/// session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionControl {
    /// No session is started.
    #[default]
    Down,
    /// All sessions can only be stopped and started together.
    AllOrNothing,
    /// Each session can be stopped and started alone: by RFC 5938, or because none is negotiated.
    Individual,
    /// Stopped by hand, or waiting for a manual start.
    Stopped,
    /// All `test_count` tests were run.
    Completed,
}

/// Effect of a changed configuration on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEffect {
    /// No message to the server, and no test is interrupted.
    Live,
    /// Sessions that change are stopped and started; the others continue.
    SessionRestart,
    /// All sessions are stopped and requested again over the same control connection.
    Renegotiate,
    /// The control connection is closed and opened again.
    Reconnect,
    /// A connection that did not run starts.
    Start,
    /// A connection that ran stops.
    Stop,
}

impl From<ConnectionEffect> for ChangeEffect {
    fn from(effect: ConnectionEffect) -> Self {
        match effect {
            ConnectionEffect::Live => Self::Live,
            ConnectionEffect::SessionRestart => Self::SessionRestart,
            ConnectionEffect::Renegotiate => Self::Renegotiate,
            ConnectionEffect::Reconnect => Self::Reconnect,
            ConnectionEffect::Start => Self::Start,
            ConnectionEffect::Stop => Self::Stop,
        }
    }
}

type Connections = BTreeMap<String, Arc<ControlConnection>>;

/// Lists the differences from `old` to `new`: connections by name, then server, export and storage.
/// `session_control` returns the control that each connection has over its sessions.
pub fn changes(
    old: &AgentConfig,
    new: &AgentConfig,
    session_control: &dyn Fn(&str) -> SessionControl,
) -> Vec<Change> {
    let AgentConfig { connections, server, storage, export } = new;
    let mut changes = connection_changes(&old.connections, connections, session_control);
    changes.extend(server_change(old.server.as_deref(), server.as_deref()));
    if old.export != *export {
        changes.push(change("export".into(), ChangeKind::Changed, ChangeEffect::Live));
    }
    if old.storage != *storage {
        changes.push(change("storage".into(), ChangeKind::Changed, ChangeEffect::Live));
    }
    changes
}

fn connection_changes(
    old: &Connections,
    new: &Connections,
    session_control: &dyn Fn(&str) -> SessionControl,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, connection) in new {
        let path = format!("client/{name}");
        match old.get(name) {
            None if connection.inactive || connection.manual_start => {
                changes.push(change(path, ChangeKind::Added, ChangeEffect::Live));
            }
            None => changes.push(change(path, ChangeKind::Added, ChangeEffect::Start)),
            Some(before) if before == connection => {}
            Some(before) => {
                let effect = connection_effect(before, connection, session_control(name));
                let sessions = stopped_sessions(before, connection, effect);
                changes
                    .push(Change { sessions, ..change(path, ChangeKind::Changed, effect.into()) });
            }
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        changes.push(change(format!("client/{name}"), ChangeKind::Removed, ChangeEffect::Stop));
    }
    changes
}

/// Names the sessions that a change of their connection stops or starts.
fn stopped_sessions(
    old: &ControlConnection,
    new: &ControlConnection,
    effect: ConnectionEffect,
) -> Vec<String> {
    match effect {
        ConnectionEffect::SessionRestart => touched_sessions(old, new),
        ConnectionEffect::Renegotiate | ConnectionEffect::Reconnect => {
            let all = old.sessions.iter().chain(&new.sessions);
            let names: BTreeSet<_> = all.map(|session| session.name.clone()).collect();
            names.into_iter().collect()
        }
        ConnectionEffect::Live | ConnectionEffect::Start | ConnectionEffect::Stop => Vec::new(),
    }
}

fn server_change(old: Option<&ServerConfig>, new: Option<&ServerConfig>) -> Option<Change> {
    let (kind, effect) = match (old, new) {
        (None, Some(_)) => (ChangeKind::Added, ChangeEffect::Start),
        (Some(_), None) => (ChangeKind::Removed, ChangeEffect::Stop),
        (Some(old), Some(new)) if old != new => (ChangeKind::Changed, server_effect(old, new)),
        _ => return None,
    };
    Some(change("server".into(), kind, effect))
}

fn server_effect(old: &ServerConfig, new: &ServerConfig) -> ChangeEffect {
    let differences = old.differences(new);
    let changes_listeners = differences.iter().any(|field| match field {
        ServerField::Listen => true,
        ServerField::SharedSockets => old.reflector_sockets() != new.reflector_sockets(),
        ServerField::Admission | ServerField::Live => false,
    });
    if changes_listeners {
        ChangeEffect::Listen
    } else if differences.contains(&ServerField::Admission) && forbids(old, new) {
        ChangeEffect::CloseConnections
    } else {
        ChangeEffect::Live
    }
}

/// Returns the effect of a changed configuration on a connection.
pub fn connection_effect(
    old: &ControlConnection,
    new: &ControlConnection,
    session_control: SessionControl,
) -> ConnectionEffect {
    match (old.inactive, new.inactive) {
        (true, true) => return ConnectionEffect::Live,
        (true, false) if new.manual_start => return ConnectionEffect::Live,
        (true, false) => return ConnectionEffect::Start,
        (false, true) => return ConnectionEffect::Stop,
        (false, false) => {}
    }
    match session_control {
        SessionControl::Stopped if new.manual_start => return ConnectionEffect::Live,
        SessionControl::Completed if has_completed(old, new) => return ConnectionEffect::Live,
        SessionControl::Stopped | SessionControl::Completed => return ConnectionEffect::Start,
        SessionControl::Down | SessionControl::AllOrNothing | SessionControl::Individual => {}
    }
    if old.needs_reconnect(new) {
        ConnectionEffect::Reconnect
    } else if touched_sessions(old, new).is_empty() {
        ConnectionEffect::Live
    } else {
        match session_control {
            SessionControl::AllOrNothing => ConnectionEffect::Renegotiate,
            SessionControl::Down
            | SessionControl::Individual
            | SessionControl::Stopped
            | SessionControl::Completed => ConnectionEffect::SessionRestart,
        }
    }
}

/// Returns true if a connection that has completed with `old` has no test left with `new`.
pub fn has_completed(old: &ControlConnection, new: &ControlConnection) -> bool {
    new.manual_start || new.test_count != 0 && new.test_count == old.test_count
}

/// Returns true if `new` may forbid open control connections because of their address, key or age.
fn forbids(old: &ServerConfig, new: &ServerConfig) -> bool {
    let prefixes = |config: &ServerConfig| -> Vec<IpNet> {
        config.client_lists.iter().flat_map(|list| list.prefixes.clone()).collect()
    };
    let allowed = prefixes(new);
    let covered = |prefix: &IpNet| allowed.iter().any(|other| other.contains(prefix));
    let duration_ns = |config: &ServerConfig| match config.max_connection_duration_ns {
        0 => u64::MAX,
        duration_ns => duration_ns,
    };
    !prefixes(old).iter().all(covered)
        || !old.keys.iter().all(|key| new.keys.contains(key))
        || duration_ns(new) < duration_ns(old)
}

/// Names the sessions that are added, removed or have to be renegotiated.
pub fn touched_sessions(old: &ControlConnection, new: &ControlConnection) -> Vec<String> {
    fn find<'a>(connection: &'a ControlConnection, name: &str) -> Option<&'a TestSession> {
        connection.sessions.iter().find(|session| session.name == name)
    }
    let removed = old.sessions.iter().filter(|session| find(new, &session.name).is_none());
    let added_or_changed = new.sessions.iter().filter(|session| {
        find(old, &session.name).is_none_or(|before| before.needs_renegotiation(session))
    });
    removed.chain(added_or_changed).map(|session| session.name.clone()).collect()
}

fn change(path: String, kind: ChangeKind, effect: ChangeEffect) -> Change {
    Change { path, kind: kind.into(), effect: effect.into(), ..Change::default() }
}
