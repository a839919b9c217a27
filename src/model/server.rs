//! The checked configuration of the server role.

use std::{
    fmt::{self, Display, Formatter},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use super::{AuthenticationMode, Extensions, Keepalive, Key, Secret};
use crate::time::TimestampFormat;

/// Configuration of the server role.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// TCP addresses that accept control connections.
    pub listen: Vec<ListenAddress>,
    /// Prefixes of clients that may connect.
    pub client_lists: Vec<ClientList>,
    /// SERVWAIT (RFC 5357 §3.1), in nanoseconds; 0 is off.
    pub inactivity_timeout_ns: u64,
    /// Longest duration of a control connection, in nanoseconds; 0 is without limit.
    pub max_connection_duration_ns: u64,
    /// Largest number of control connections.
    pub maximum_connections: usize,
    /// Largest number of control connections of one client address.
    pub maximum_connections_per_client: usize,
    /// Largest number of test sessions.
    pub maximum_sessions: usize,
    /// Largest number of test sessions of one control connection.
    pub maximum_sessions_per_connection: usize,
    /// TCP keepalive of control connections.
    pub keepalive: Keepalive,
    /// Choice of the UDP ports of sessions.
    pub test_port: TestPort,
    /// Configuration of the TWAMP Light reflector (RFC 5357 appendix I).
    pub light: Option<LightReflector>,
    /// Reflector for STAMP; `None` disables it.
    pub stamp: Option<StampReflector>,
    /// Modes offered to clients.
    pub authentication_modes: Vec<AuthenticationMode>,
    /// Keys of clients, of all chains.
    pub keys: Vec<Key>,
    /// Rounds of key derivation that clients are asked for (Count).
    pub key_derivation_count: u32,
    /// Extensions offered to clients.
    pub extensions: Extensions,
    /// Format of T2 and T3, if the client supports it.
    pub timestamps: TimestampFormat,
    /// REFWAIT (RFC 5357 §4.2), in nanoseconds.
    pub refwait_ns: u64,
    /// Limit of probes answered per second for each sender; `None` for no limit.
    pub maximum_packets_per_second_per_sender: Option<u32>,
    /// Drops probes whose Error Estimate has Multiplier 0.
    pub strict_error_estimate: bool,
    /// Closes connections beyond a limit without a greeting.
    pub refuse_silently: bool,
}

impl ServerConfig {
    /// Returns true if a client may connect.
    pub fn allows(&self, client: IpAddr) -> bool {
        self.client_lists
            .iter()
            .any(|list| list.prefixes.iter().any(|prefix| prefix.contains(&client)))
    }

    /// Returns the largest number of keys with one KeyID.
    pub fn max_keys_per_name(&self) -> usize {
        let same = |key: &Key| self.keys.iter().filter(|other| other.id == key.id).count();
        self.keys.iter().map(same).max().unwrap_or(0)
    }

    /// Returns the shared UDP sockets, which are open as long as they are configured: test ports
    /// and reflectors without sessions, each address once.
    pub fn reflector_sockets(&self) -> Vec<UdpListen> {
        let shared = match self.test_port {
            TestPort::Auto { shared_port } | TestPort::Shared { shared_port } => self
                .listen
                .iter()
                .flat_map(|listen| {
                    let port = shared_port.unwrap_or(listen.port);
                    ListenAddress { port, ..listen.clone() }.sockets_by_family()
                })
                .collect(),
            TestPort::Range { .. } => Vec::new(),
        };
        let light = self.light.iter().flat_map(|light| &light.listen);
        let stamp = self.stamp.iter().flat_map(|stamp| &stamp.listen);
        let open = light.chain(stamp).flat_map(ListenAddress::sockets_by_family);
        let mut sockets: Vec<UdpListen> = shared.into_iter().chain(open).collect();
        sockets.sort_unstable();
        sockets.dedup();
        sockets
    }

    /// Returns the configuration field that names a shared UDP socket.
    pub fn field_of(&self, socket: &UdpListen) -> &'static str {
        let names = |listen: &[ListenAddress]| {
            listen.iter().any(|listen| listen.sockets_by_family().contains(socket))
        };
        if self.light.as_ref().is_some_and(|light| names(&light.listen)) {
            "light.listen"
        } else if self.stamp.as_ref().is_some_and(|stamp| names(&stamp.listen)) {
            "stamp.listen"
        } else {
            "test_port"
        }
    }
}

impl UdpListen {
    /// Returns true if two sockets are different but each would receive packets for the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.address, other.address);
        let any = a.ip().is_unspecified() || b.ip().is_unspecified() || a.ip() == b.ip();
        let same_place = self.interface.is_none()
            || other.interface.is_none()
            || self.interface == other.interface;
        self != other && a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && any && same_place
    }
}

impl Display for UdpListen {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        self.interface.iter().try_for_each(|interface| write!(f, " on {interface}"))
    }
}

/// A local address and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddress {
    /// Address; `::` is both families.
    pub address: IpAddr,
    /// Port to listen on.
    pub port: u16,
    /// Network interface to bind to.
    pub interface: Option<String>,
}

/// Local end of a UDP socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UdpListen {
    /// Address and port to listen on.
    pub address: SocketAddr,
    /// Network interface to bind to.
    pub interface: Option<String>,
}

impl ListenAddress {
    /// Returns one socket for each address family, because UDP sockets do not mix families.
    pub fn sockets_by_family(&self) -> Vec<UdpListen> {
        let socket = |ip| UdpListen {
            address: SocketAddr::new(ip, self.port),
            interface: self.interface.clone(),
        };
        let mut sockets = vec![socket(self.address)];
        if self.address == IpAddr::from([0u16; 8]) {
            sockets.push(socket(IpAddr::from([0u8; 4])));
        }
        sockets
    }
}

/// A named list of prefixes.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientList {
    /// Name, unique among the entries of the list.
    pub name: String,
    /// Prefixes of the clients.
    pub prefixes: Vec<IpNet>,
}

/// Choice of the UDP port of a test session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestPort {
    /// The requested port if it is free and suitable, otherwise the shared port.
    Auto {
        /// Shared port; `None` for the port of the listener.
        shared_port: Option<u16>,
    },
    /// Always the shared port.
    Shared {
        /// Shared port; `None` for the port of the listener.
        shared_port: Option<u16>,
    },
    /// A port of a range.
    Range {
        /// Lowest port of the range.
        minimum: u16,
        /// Highest port of the range, included.
        maximum: u16,
    },
}

/// Configuration of the TWAMP Light reflector (RFC 5357 appendix I).
#[derive(Clone, Debug, PartialEq)]
pub struct LightReflector {
    /// UDP addresses to listen on.
    pub listen: Vec<ListenAddress>,
    /// Numbers replies separately for each sender.
    pub stateful: bool,
    /// Prefixes of senders that are answered.
    pub prefixes: Vec<IpNet>,
    /// Limit of packets answered per second for all senders of one prefix; `None` for no limit.
    pub maximum_packets_per_second: Option<u32>,
}

/// Configuration of the STAMP reflector (RFC 8762).
#[derive(Clone, Debug, PartialEq)]
pub struct StampReflector {
    /// UDP addresses to listen on.
    pub listen: Vec<ListenAddress>,
    /// Numbers replies separately for each sender.
    pub stateful: bool,
    /// Sessions that are answered.
    pub sessions: Vec<StampReflectorSession>,
    /// Answers only packets with a valid HMAC.
    pub authenticated: bool,
    /// Keys of HMACs; each of them is accepted.
    pub secrets: Vec<Secret>,
    /// True if a probe may choose the DSCP of its reply.
    pub allow_class_of_service: bool,
    /// Format of T2 and T3.
    pub timestamps: TimestampFormat,
}

/// A provisioned STAMP session, or all sessions of a prefix.
#[derive(Clone, Debug, PartialEq)]
pub struct StampReflectorSession {
    /// Prefix of its sender.
    pub prefix: IpNet,
    /// Port of its sender; `None` for any.
    pub port: Option<u16>,
    /// Session identifier (SSID); `None` for any.
    pub ssid: Option<u16>,
}
