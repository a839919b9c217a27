//! Checks that the host can provide the sockets, addresses and interfaces of a configuration.
//! Nothing stays open.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use super::{tcp, udp};
use crate::model::{AgentConfig, ListenAddress, ServerConfig, UdpListen};

/// A resource that the host cannot provide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceRefusal {
    /// Path of the configuration field that names it.
    pub field: String,
    /// Resource, error and hint.
    pub description: String,
}

/// Tries to bind the resources of `new` that the running configuration `old` does not use.
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
            let wanted = own(listen);
            if let Err(error) = tcp::bound(wanted.address, wanted.interface.as_deref()) {
                let held = held.iter().flat_map(|held| &held.listen).map(own).collect::<Vec<_>>();
                if !is_own(&error, &held, &wanted) {
                    let field = format!("server.listen[{index}]");
                    refuse(field, format!("TCP {wanted}"), &error);
                }
            }
        }
        let held_udp = held.map(ServerConfig::reflector_sockets).unwrap_or_default();
        for wanted in server.reflector_sockets() {
            if held_udp.contains(&wanted) {
                continue;
            }
            if let Err(error) = udp::bound(wanted.address, wanted.interface.as_deref(), false)
                && !is_own(&error, &held_udp, &wanted)
            {
                let field = format!("server.{}", server.field_of(&wanted));
                refuse(field, format!("UDP {wanted}"), &error);
            }
        }
    }
    if let Some(wanted) =
        new.export.prometheus.filter(|_| new.export.prometheus != old.export.prometheus)
        && let Err(error) = tcp::bound(wanted, None)
    {
        refuse("export.prometheus".into(), format!("TCP {wanted}"), &error);
    }
    for (name, connection) in &new.connections {
        if connection.inactive || old.connections.get(name) == Some(connection) {
            continue;
        }
        let path = format!("client.control_connections[{name}]");
        let interface = connection.interface.as_deref();
        let before = old.connections.get(name).filter(|before| !before.inactive);
        // An interface that was accepted before may be down now; the connection waits for it.
        let known = before.is_some_and(|before| before.interface == connection.interface);
        if let Some(interface) = interface.filter(|_| !known)
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
        let known: Vec<IpAddr> = before
            .iter()
            .flat_map(|before| {
                let sessions = before.sessions.iter().filter_map(|session| session.source_address);
                before.source_address.into_iter().chain(sessions)
            })
            .collect();
        for (field, address) in own.into_iter().chain(sessions) {
            if known.contains(&address) {
                continue;
            }
            // Port 0: the connection binds its port only while it needs it.
            if let Err(error) = udp::bound(SocketAddr::new(address, 0), None, false) {
                refuse(format!("{path}.{field}"), format!("address {address}"), &error);
            }
        }
        let held = old.connections.values().flat_map(|old| &old.sessions);
        let held: Vec<u16> = held.filter_map(|session| session.source_port).collect();
        for (index, session) in connection.sessions.iter().enumerate() {
            let Some(port) = session.source_port.filter(|port| !held.contains(port)) else {
                continue;
            };
            let any = IpAddr::from([0u8; 4]);
            let source = session.source_address.or(connection.source_address).unwrap_or(any);
            let address = SocketAddr::new(source, port);
            if let Err(error) = udp::bound(address, interface, false) {
                let field = format!("{path}.test_sessions[{index}].source_port");
                refuse(field, format!("UDP {address}"), &error);
            }
        }
    }
    refusals
}

/// Returns the TCP socket of a listening address.
fn own(listen: &ListenAddress) -> UdpListen {
    let address = SocketAddr::new(listen.address, listen.port);
    UdpListen { address, interface: listen.interface.clone() }
}

/// Returns true when a socket of the running configuration occupies the port; it will be closed. A
/// socket on all addresses conflicts with one on a single address and vice versa.
fn is_own(error: &io::Error, held: &[UdpListen], wanted: &UdpListen) -> bool {
    let meets = |held: &UdpListen| {
        let (held, wanted) = (held.address, wanted.address);
        held.port() == wanted.port()
            && (held.ip() == wanted.ip()
                || held.ip().is_unspecified()
                || wanted.ip().is_unspecified())
    };
    error.kind() == io::ErrorKind::AddrInUse && held.iter().any(meets)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; used by another program, see `ss -lntup`",
        io::ErrorKind::AddrNotAvailable => "; not an address of this host, see `ip address`",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 require CAP_NET_BIND_SERVICE, interfaces CAP_NET_RAW"
        }
        _ => "",
    }
}
