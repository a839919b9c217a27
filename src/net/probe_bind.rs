//! Asks the host whether it would give what a configuration names, without keeping it.

use std::{io, net::SocketAddr};

use super::{tcp, udp};
use crate::model::{AgentConfig, ControlType, ServerConfig, TestPort};

/// A resource that the host refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceRefusal {
    /// Where the configuration names it.
    pub field: String,
    /// What was refused, and why.
    pub description: String,
}

/// Tries to bind what `new` needs and `old`, which runs, does not hold already.
pub fn check_resources(old: &AgentConfig, new: &AgentConfig) -> Vec<ResourceRefusal> {
    let mut refusals = Vec::new();
    let mut refuse = |field: String, what: String, error: &io::Error| {
        let hint = hint(error);
        refusals.push(ResourceRefusal { field, description: format!("{what}: {error}{hint}") });
    };
    if let Some(server) = &new.server {
        let held = old.server.as_deref();
        for (index, listen) in server.listen.iter().enumerate() {
            if held.is_some_and(|held| held.listen.contains(listen)) {
                continue;
            }
            let address = SocketAddr::new(listen.address, listen.port);
            if let Err(error) = tcp::bound(address)
                && !is_own(
                    &error,
                    held.into_iter().flat_map(|h| &h.listen).map(|l| l.port),
                    address,
                )
            {
                refuse(format!("server.listen[{index}]"), format!("TCP {address}"), &error);
            }
        }
        let held_udp = held.map(ServerConfig::standing_udp_sockets).unwrap_or_default();
        for address in server.standing_udp_sockets() {
            if held_udp.contains(&address) {
                continue;
            }
            if let Err(error) = udp::bound(address, None)
                && !is_own(&error, held_udp.iter().map(SocketAddr::port), address)
            {
                let field = match server.test_port {
                    TestPort::Range { .. } => "server.light.listen",
                    TestPort::Auto { .. } | TestPort::Shared { .. } if server.light.is_some() => {
                        "server.light.listen or server.test_port"
                    }
                    TestPort::Auto { .. } | TestPort::Shared { .. } => "server.test_port",
                };
                refuse(field.to_owned(), format!("UDP {address}"), &error);
            }
        }
    }
    for (name, connection) in &new.connections {
        if connection.inactive || old.connections.get(name) == Some(connection) {
            continue;
        }
        let path = format!("client.control_connections[{name}]");
        let interface = connection.interface.as_deref();
        if let Some(interface) = interface
            && let Err(error) = nix::net::if_::if_nametoindex(interface)
        {
            let error = io::Error::from(error);
            refuse(format!("{path}.interface"), format!("interface {interface}"), &error);
            continue;
        }
        let own = connection.source_address.map(|address| ("source_address".to_owned(), address));
        let sessions = connection.sessions.iter().enumerate().filter_map(|(index, session)| {
            Some((format!("test_sessions[{index}].source_address"), session.source_address?))
        });
        for (field, address) in own.into_iter().chain(sessions) {
            // The port is asked for only when it is needed: until then others may use it.
            if let Err(error) = udp::bound(SocketAddr::new(address, 0), None) {
                refuse(format!("{path}.{field}"), format!("address {address}"), &error);
            }
        }
        debug_assert!(connection.control_type == ControlType::Light || connection.target.is_some());
    }
    refusals
}

/// Whether the port is in use by a socket of ours, which makes room: one on all addresses stands in
/// the way of one on a single address, and the other way round.
fn is_own(error: &io::Error, mut held: impl Iterator<Item = u16>, wanted: SocketAddr) -> bool {
    error.kind() == io::ErrorKind::AddrInUse && held.any(|port| port == wanted.port())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program has it: see `ss -lntup`",
        io::ErrorKind::AddrNotAvailable => "; this host has no such address: see `ip address`",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE, interfaces CAP_NET_RAW"
        }
        _ => "",
    }
}
