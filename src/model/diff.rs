//! What lies between two configurations, and what running measurements see of it.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{AgentConfig, ControlConnection, ControlType, ServerConfig, TestSession};
use crate::proto::{Change, ChangeEffect, ChangeKind};

/// Control over the sessions of a connection: it decides the effect of a changed session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionControl {
    /// No session is started.
    #[default]
    Down,
    /// All sessions can only be stopped and started together.
    AllOrNothing,
    /// Each session can be stopped and started alone (RFC 5938), or none is negotiated.
    Individual,
    /// Stopped by hand, or waiting for a manual start.
    Stopped,
    /// All `test_count` tests were run.
    Completed,
}

/// The differences from `old` to `new`: connections by name, then the server, export and
/// storage.
/// `session_control` returns the control that each connection has over its sessions.
pub fn changes(
    old: &AgentConfig,
    new: &AgentConfig,
    session_control: &dyn Fn(&str) -> SessionControl,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, connection) in &new.connections {
        let path = format!("client/{name}");
        match old.connections.get(name) {
            None if connection.inactive || connection.manual_start => {
                changes.push(change(path, ChangeKind::Added, ChangeEffect::Live));
            }
            None => changes.push(change(path, ChangeKind::Added, ChangeEffect::Start)),
            Some(before) if before == connection => {}
            Some(before) => {
                let effect = connection_effect(before, connection, session_control(name));
                let sessions = match effect {
                    ChangeEffect::SessionRestart => touched_sessions(before, connection),
                    ChangeEffect::Renegotiate | ChangeEffect::Reconnect => {
                        // Those that are no more are stopped with the others.
                        let all = before.sessions.iter().chain(&connection.sessions);
                        let names: BTreeSet<_> = all.map(|session| session.name.clone()).collect();
                        names.into_iter().collect()
                    }
                    ChangeEffect::Unspecified
                    | ChangeEffect::Live
                    | ChangeEffect::Start
                    | ChangeEffect::Stop
                    | ChangeEffect::Listen
                    | ChangeEffect::CloseConnections => Vec::new(),
                };
                changes.push(Change { sessions, ..change(path, ChangeKind::Changed, effect) });
            }
        }
    }
    for name in old.connections.keys().filter(|name| !new.connections.contains_key(*name)) {
        changes.push(change(format!("client/{name}"), ChangeKind::Removed, ChangeEffect::Stop));
    }
    match (&old.server, &new.server) {
        (None, Some(_)) => {
            changes.push(change("server".into(), ChangeKind::Added, ChangeEffect::Start));
        }
        (Some(_), None) => {
            changes.push(change("server".into(), ChangeKind::Removed, ChangeEffect::Stop));
        }
        (Some(before), Some(after)) if before != after => {
            let sockets_stay = before.listen == after.listen
                && before.reflector_sockets() == after.reflector_sockets();
            let effect = match (sockets_stay, forbids(before, after)) {
                (false, _) => ChangeEffect::Listen,
                (true, true) => ChangeEffect::CloseConnections,
                (true, false) => ChangeEffect::Live,
            };
            changes.push(change("server".into(), ChangeKind::Changed, effect));
        }
        _ => {}
    }
    if old.export != new.export {
        changes.push(change("export".into(), ChangeKind::Changed, ChangeEffect::Live));
    }
    if old.storage != new.storage {
        changes.push(change("storage".into(), ChangeKind::Changed, ChangeEffect::Live));
    }
    changes
}

/// What a change of a connection does to it while it runs.
pub fn connection_effect(
    old: &ControlConnection,
    new: &ControlConnection,
    session_control: SessionControl,
) -> ChangeEffect {
    match (old.inactive, new.inactive) {
        (true, true) => return ChangeEffect::Live,
        // What waits for a hand does so as well when it is activated.
        (true, false) if new.manual_start => return ChangeEffect::Live,
        (true, false) => return ChangeEffect::Start,
        (false, true) => return ChangeEffect::Stop,
        (false, false) => {}
    }
    match session_control {
        SessionControl::Stopped | SessionControl::Completed if new.manual_start => {
            return ChangeEffect::Live;
        }
        SessionControl::Completed if old.test_count == new.test_count => return ChangeEffect::Live,
        SessionControl::Stopped | SessionControl::Completed => return ChangeEffect::Start,
        SessionControl::Down | SessionControl::AllOrNothing | SessionControl::Individual => {}
    }
    let managed = |c: &ControlConnection| c.control_type == ControlType::Managed;
    // What the control connection is made of; the rest of it can be set while it is open.
    let transport = |c: &ControlConnection| {
        (
            (c.control_type, c.target.clone(), c.source_address, c.interface.clone()),
            managed(c).then_some((c.destination_port, c.extensions, c.reflects())),
            (c.authentication, c.key_id.clone(), c.secret.clone()),
        )
    };
    if transport(old) != transport(new) {
        ChangeEffect::Reconnect
    } else if touched_sessions(old, new).is_empty() {
        ChangeEffect::Live
    } else {
        match session_control {
            SessionControl::AllOrNothing => ChangeEffect::Renegotiate,
            SessionControl::Down
            | SessionControl::Individual
            | SessionControl::Stopped
            | SessionControl::Completed => ChangeEffect::SessionRestart,
        }
    }
}

/// Whether control connections that are open may have to be closed: by who they are, by how they
/// proved it, or by their age.
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

/// Sessions that are in one configuration alone, or in both and have to be requested anew.
pub fn touched_sessions(old: &ControlConnection, new: &ControlConnection) -> Vec<String> {
    let of = |connection: &ControlConnection, name: &str| -> Option<TestSession> {
        connection.sessions.iter().find(|session| session.name == name).cloned()
    };
    let gone = old.sessions.iter().filter(|session| of(new, &session.name).is_none());
    let new_or_different = new.sessions.iter().filter(|session| {
        of(old, &session.name).is_none_or(|before| before.needs_renegotiation(session))
    });
    gone.chain(new_or_different).map(|session| session.name.clone()).collect()
}

fn change(path: String, kind: ChangeKind, effect: ChangeEffect) -> Change {
    Change { path, kind: kind.into(), effect: effect.into(), ..Change::default() }
}
