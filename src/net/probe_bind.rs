//! Checks that the host can provide the sockets, addresses and interfaces of a configuration. All
//! sockets are closed again.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use super::{
    families::is_missing,
    host::{interface_index, scoped},
    tcp, udp,
};
use crate::model::{
    AgentConfig, ControlConnection, ListenAddress, ServerConfig, UdpListen, ZonedAddress,
};

/// A resource that the host cannot provide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceRefusal {
    /// Path of the configuration field that names it.
    pub field: String,
    /// Resource, error and hint.
    pub description: String,
}

#[derive(Default)]
struct Refusals(Vec<ResourceRefusal>);

impl Refusals {
    fn add(&mut self, field: String, resource: &str, error: &io::Error) {
        let description = format!("{resource}: {error}{}", hint(error));
        self.0.push(ResourceRefusal { field, description });
    }
}

/// Tries to bind the resources of `new` that the running configuration `old` does not use.
pub fn check_resources(old: &AgentConfig, new: &AgentConfig) -> Vec<ResourceRefusal> {
    let mut refusals = Refusals::default();
    if let Some(server) = &new.server {
        check_server(old.server.as_deref(), server, &mut refusals);
    }
    let page = |config: &AgentConfig| config.export.prometheus.clone();
    if let Some(zoned) = page(new).filter(|_| page(new) != page(old))
        && let Err(error) = scoped(&zoned).and_then(|address| tcp::bind(address, None))
    {
        let socket = |zoned: &ZonedAddress| UdpListen { address: zoned.address, interface: None };
        let used: Vec<UdpListen> = page(old).iter().map(socket).collect();
        if !is_own_port(&error, &used, &socket(&zoned)) {
            refusals.add("export.prometheus".into(), &format!("TCP {zoned}"), &error);
        }
    }
    for (name, connection) in &new.connections {
        if !connection.inactive && old.connections.get(name) != Some(connection) {
            let path = format!("client.control_connections[{name}]");
            check_connection(old, connection, &path, &mut refusals);
        }
    }
    refusals.0
}

fn check_server(old: Option<&ServerConfig>, new: &ServerConfig, refusals: &mut Refusals) {
    for (index, listen) in new.listen.iter().enumerate() {
        if old.is_some_and(|old| old.listen.contains(listen)) {
            continue;
        }
        let wanted = tcp_socket(listen);
        if let Err(error) = tcp::bind(wanted.address, wanted.interface.as_deref()) {
            let used = old.iter().flat_map(|old| &old.listen).map(tcp_socket).collect::<Vec<_>>();
            if !is_own_port(&error, &used, &wanted) {
                let field = format!("server.listen[{index}]");
                refusals.add(field, &format!("TCP {wanted}"), &error);
            }
        }
    }
    let used = old.map(ServerConfig::reflector_sockets).unwrap_or_default();
    for wanted in new.reflector_sockets() {
        if used.contains(&wanted) || is_missing(wanted.address) {
            continue;
        }
        if let Err(error) = udp::bind(wanted.address, wanted.interface.as_deref(), false)
            && !is_own_port(&error, &used, &wanted)
        {
            let field = format!("server.{}", new.field_of(&wanted));
            refusals.add(field, &format!("UDP {wanted}"), &error);
        }
    }
}

fn check_connection(
    old: &AgentConfig,
    connection: &ControlConnection,
    path: &str,
    refusals: &mut Refusals,
) {
    let interface = connection.interface.as_deref();
    let before = old.connections.get(&connection.name).filter(|before| !before.inactive);
    // An interface that was accepted before may be down now; the connection waits for it.
    let is_known = before.is_some_and(|before| before.interface == connection.interface);
    if let Some(interface) = interface.filter(|_| !is_known)
        && let Err(error) = nix::net::if_::if_nametoindex(interface)
    {
        let field = format!("{path}.interface");
        return refusals.add(field, &format!("interface {interface}"), &error.into());
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
        if is_known && interface.is_some_and(|name| interface_index(name).is_none()) {
            continue;
        }
        // Only the address is checked, because the connection binds its port later. A link-local
        // address or an address of a VRF is checked on its interface.
        if let Err(error) = udp::bind(SocketAddr::new(address, 0), interface, false) {
            refusals.add(format!("{path}.{field}"), &format!("address {address}"), &error);
        }
    }
    let used = old.connections.values().flat_map(|old| &old.sessions);
    let used: Vec<u16> = used.filter_map(|session| session.source_port).collect();
    for (index, session) in connection.sessions.iter().enumerate() {
        let Some(port) = session.source_port.filter(|port| !used.contains(port)) else {
            continue;
        };
        let any = IpAddr::from([0u8; 4]);
        let source = session.source_address.or(connection.source_address).unwrap_or(any);
        let address = SocketAddr::new(source, port);
        if let Err(error) = udp::bind(address, interface, false) {
            let field = format!("{path}.test_sessions[{index}].source_port");
            refusals.add(field, &format!("UDP {address}"), &error);
        }
    }
}

/// Returns the TCP socket of a listening address.
fn tcp_socket(listen: &ListenAddress) -> UdpListen {
    let address = SocketAddr::new(listen.address, listen.port);
    UdpListen { address, interface: listen.interface.clone() }
}

/// Returns true if a socket of the running configuration occupies the port. That socket will be
/// closed. A socket on all addresses conflicts with a socket on a single address.
fn is_own_port(error: &io::Error, used: &[UdpListen], wanted: &UdpListen) -> bool {
    let meets = |used: &UdpListen| {
        let (used, wanted) = (used.address, wanted.address);
        used.port() == wanted.port()
            && (used.ip() == wanted.ip()
                || used.ip().is_unspecified()
                || wanted.ip().is_unspecified())
    };
    error.kind() == io::ErrorKind::AddrInUse && used.iter().any(meets)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; used by another program, see `ss -lntup`",
        io::ErrorKind::AddrNotAvailable => "; not an address of this host, see `ip address`",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 require CAP_NET_BIND_SERVICE, interfaces CAP_NET_RAW"
        }
        io::ErrorKind::InvalidInput => "; a link-local address needs an interface",
        _ => "",
    }
}
