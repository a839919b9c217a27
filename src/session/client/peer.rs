//! Far ends of connections and sessions, for exporters.

use std::net::IpAddr;

use crate::model::{ControlConnection, ControlType, Endpoint, limits};

/// Far end of a control connection or a test session, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// DNS name or IP address.
    pub address: String,
    /// TCP port of the server or UDP port of the reflector; `None` if the server chooses it, since
    /// it changes with each negotiation.
    pub port: Option<u16>,
    /// True for a control connection, false for test packets.
    pub is_tcp: bool,
    /// IP version; `None` until it is known.
    pub is_ipv6: Option<bool>,
}

/// Returns the far end of the named session or, with an empty name, of the connection. `address` is
/// the present address of that end.
pub(super) fn find(
    connection: &ControlConnection,
    session: &str,
    address: Option<IpAddr>,
) -> Option<Peer> {
    let session = match session {
        "" => None,
        name => Some(connection.sessions.iter().find(|session| session.name == name)?),
    };
    let endpoint = session.and_then(|session| session.target.as_ref());
    let endpoint = endpoint.or(connection.target.as_ref())?;
    let (host, configured) = match endpoint {
        Endpoint::Address(address) => (address.to_string(), Some(*address)),
        Endpoint::Name(name) => (name.clone(), None),
    };
    let is_managed = connection.control_type == ControlType::Managed;
    let own_port = (!is_managed).then_some(limits::TWAMP_PORT);
    let port = match session {
        None => is_managed.then_some(connection.destination_port),
        Some(session) => session.destination_port.or(own_port),
    };
    Some(Peer {
        address: host,
        port,
        is_tcp: session.is_none() && is_managed,
        is_ipv6: configured.or(address).map(|address| address.is_ipv6()),
    })
}
