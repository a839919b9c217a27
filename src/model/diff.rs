//! What lies between two configurations, and what running measurements see of it.

use super::{AgentConfig, ControlConnection, ControlType};
use crate::proto::{Change, ChangeEffect, ChangeKind};

/// The differences from `old` to `new`: connections by name, then the server, then storage.
pub fn changes(old: &AgentConfig, new: &AgentConfig) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, connection) in &new.connections {
        let path = format!("client/{name}");
        match old.connections.get(name) {
            None if connection.inactive => {
                changes.push(change(path, ChangeKind::Added, ChangeEffect::Live));
            }
            None => changes.push(change(path, ChangeKind::Added, ChangeEffect::Start)),
            Some(before) if before == connection => {}
            Some(before) => {
                changes.push(change(
                    path,
                    ChangeKind::Changed,
                    connection_effect(before, connection),
                ));
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
                && before.standing_udp_sockets() == after.standing_udp_sockets();
            let effect = if sockets_stay { ChangeEffect::Live } else { ChangeEffect::Listen };
            changes.push(change("server".into(), ChangeKind::Changed, effect));
        }
        _ => {}
    }
    if old.storage != new.storage {
        changes.push(change("storage".into(), ChangeKind::Changed, ChangeEffect::Live));
    }
    changes
}

/// What a change of a connection does to it while it runs.
pub fn connection_effect(old: &ControlConnection, new: &ControlConnection) -> ChangeEffect {
    match (old.inactive, new.inactive) {
        (true, true) => return ChangeEffect::Live,
        (true, false) => return ChangeEffect::Start,
        (false, true) => return ChangeEffect::Stop,
        (false, false) => {}
    }
    let transport = |c: &ControlConnection| {
        (
            (c.control_type, c.target.clone(), c.source_address, c.interface.clone()),
            (c.control_type == ControlType::Managed).then_some((
                c.destination_port,
                c.control_dscp,
                c.keepalive,
                c.extensions,
            )),
            (c.authentication, c.key_id.clone(), c.secret.clone()),
        )
    };
    let sessions_stay = old.sessions.len() == new.sessions.len()
        && old.sessions.iter().zip(&new.sessions).all(|(a, b)| !a.needs_renegotiation(b));
    if transport(old) == transport(new) && sessions_stay {
        ChangeEffect::Live
    } else {
        ChangeEffect::Reconnect
    }
}

fn change(path: String, kind: ChangeKind, effect: ChangeEffect) -> Change {
    Change { path, kind: kind.into(), effect: effect.into() }
}
