//! Facts about a received packet that are not in its payload.

use std::net::{Ipv4Addr, SocketAddr};

use crate::time::{StampSource, UnixTime};

/// Addresses, receive time and IP header fields of a received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketMeta {
    /// Address and port of the sender.
    pub source: SocketAddr,
    /// Link-layer address of the neighbour that sent it; `None` when unknown.
    pub source_mac: Option<[u8; 6]>,
    /// Local address and port. The address is unspecified when the kernel did not report it.
    pub destination: SocketAddr,
    /// Kernel index of the interface for a link-local destination, otherwise 0.
    pub interface_index: u32,
    /// Addressed to a broadcast or multicast group, not to this host alone.
    pub to_group: bool,
    /// Receive time: T2 at a reflector, T4 at a sender.
    pub received: UnixTime,
    /// Origin of the receive time.
    pub stamp: StampSource,
    /// TTL or hop limit; `None` when the kernel did not report it.
    pub ttl: Option<u8>,
    /// TOS or traffic class; `None` when the kernel did not report it.
    pub tos: Option<u8>,
}

impl Default for PacketMeta {
    fn default() -> Self {
        let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Self {
            source: unspecified,
            source_mac: None,
            destination: unspecified,
            interface_index: 0,
            to_group: false,
            received: UnixTime::default(),
            stamp: StampSource::User,
            ttl: None,
            tos: None,
        }
    }
}
