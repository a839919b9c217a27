//! Allocation of requested sessions to reflector sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{
    reflector::ReflectorHandle,
    registry::{ConnectionEntry, SessionEnd},
    sockets::Sockets,
};
use crate::{
    model::{Dscp, ServerConfig, TestPort, UdpListen, limits::TWAMP_PORT},
    net::{clock, random},
    proto::{ServerSession, ServerSessionState},
    time::{NANOS_PER_SECOND, NtpTimestamp, TimestampFormat, duration_to_proto},
    twamp::{
        control_server::RequestedSession,
        reflector::{ReflectorSession, SessionCounters},
    },
    wire::{
        codes::{Accept, Sid},
        format::PacketFormat,
    },
};

/// Limit of the time to reflect after Stop-Sessions.
const MAX_DRAIN_NS: u64 = 900 * NANOS_PER_SECOND;

/// An accepted session on its socket.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) sid: Sid,
    pub(super) reflector: ReflectorHandle,
    /// Time to reflect after Stop-Sessions.
    pub(super) drain_ns: u64,
}

/// Addresses of a control connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) client: SocketAddr,
    pub(super) local: SocketAddr,
}

/// Addresses and interface of a control connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathInfo<'a> {
    pub(super) ends: Ends,
    /// Network interface of the listener.
    pub(super) interface: Option<&'a str>,
}

/// Returns packet format and timestamp format of a session.
pub(super) type Packets<'a> = dyn Fn(Sid) -> (PacketFormat, TimestampFormat) + Sync + 'a;

/// Accepts a session on the first suitable reflector, or returns the Accept value of the refusal.
pub(super) async fn allocate(
    config: &ServerConfig,
    sockets: &Sockets,
    connection: &ConnectionEntry,
    PathInfo { ends, interface }: PathInfo<'_>,
    (request, packets): (&RequestedSession, &Packets<'_>),
    ended: mpsc::Sender<(Sid, SessionEnd)>,
) -> Result<Allocation, Accept> {
    let (sender, receiver) = addresses(ends, request)?;
    let sid = new_sid(receiver).map_err(|error| {
        tracing::error!(%error, "failed to generate session identifier");
        Accept::INTERNAL_ERROR
    })?;
    let counters = Arc::new(SessionCounters::default());
    let drain_ns = request.timeout_ns.min(MAX_DRAIN_NS);
    let tos = Dscp::new(request.dscp).ok_or(Accept::NOT_SUPPORTED)?.tos();
    let entry = Arc::new(connection.admit_session(
        config,
        ServerSession {
            sid: sid.to_string(),
            sender_address: sender.to_string(),
            state: ServerSessionState::Accepted.into(),
            accept_time: Some(clock::unix().to_proto()),
            dscp: request.dscp.into(),
            padding_length: request.padding_length,
            timeout: Some(duration_to_proto(drain_ns)),
            ..ServerSession::default()
        },
        counters.clone(),
        ended,
    )?);
    let refwait_ns = config.refwait_ns;
    let (format, timestamps) = packets(sid);
    let session = ReflectorSession { sid, sender, tos, format, timestamps, refwait_ns, counters };
    let bound = (receiver, interface);
    for reflector in Candidates::new(config, sockets, ends.local, bound, request.receiver_port) {
        entry.set_reflector(SocketAddr::new(receiver, reflector.local.port()));
        if reflector.add(&session, &entry).await {
            return Ok(Allocation { sid, reflector, drain_ns });
        }
    }
    // No port is free, or this sender has a session on each.
    Err(Accept::TEMPORARY_RESOURCE_LIMIT)
}

/// Returns sender and reflector of a session. Third parties are refused: a server that sends
/// packets to arbitrary hosts could be abused for attacks (RFC 5357 §6).
fn addresses(ends: Ends, request: &RequestedSession) -> Result<(SocketAddr, IpAddr), Accept> {
    let sender = request.sender_address.unwrap_or_else(|| ends.client.ip()).to_canonical();
    let receiver = request.receiver_address.unwrap_or_else(|| ends.local.ip()).to_canonical();
    let versions_fit = sender.is_ipv4() == (request.ip_version == 4)
        && receiver.is_ipv4() == (request.ip_version == 4);
    if !versions_fit || sender != ends.client.ip() || receiver != ends.local.ip() {
        return Err(Accept::NOT_SUPPORTED);
    }
    Ok((SocketAddr::new(sender, request.sender_port), receiver))
}

/// Generates a SID from address, time and random octets (RFC 4656 §3.5).
fn new_sid(address: IpAddr) -> io::Result<Sid> {
    let mut sid = [0; 16];
    let octets = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => v6.octets()[12..].try_into().unwrap_or_default(),
    };
    sid[..4].copy_from_slice(&octets);
    sid[4..12].copy_from_slice(&NtpTimestamp::from_unix(clock::unix()).0.to_be_bytes());
    sid[12..].copy_from_slice(&random::bytes::<4>()?);
    Ok(Sid(sid))
}

/// Suitable reflectors, best first. Sockets are opened on demand.
struct Candidates<'a> {
    sockets: &'a Sockets,
    address: IpAddr,
    interface: Option<&'a str>,
    /// Requested port, if the policy allows it.
    requested: Option<u16>,
    shared: Option<u16>,
    range: Option<RangeWalk>,
}

/// Iteration over the ports of a range from a random start.
struct RangeWalk {
    minimum: u16,
    size: u32,
    first: u32,
    walked: u32,
}

impl<'a> Candidates<'a> {
    fn new(
        config: &ServerConfig,
        sockets: &'a Sockets,
        local: SocketAddr,
        (address, interface): (IpAddr, Option<&'a str>),
        requested: u16,
    ) -> Self {
        let is_suitable = |port: u16| port == TWAMP_PORT || port >= 1024;
        let (requested, shared, range) = match config.test_port {
            TestPort::Auto { shared_port } => {
                let requested = Some(requested).filter(|port| is_suitable(*port));
                (requested, Some(shared_port.unwrap_or_else(|| local.port())), None)
            }
            TestPort::Shared { shared_port } => {
                (None, Some(shared_port.unwrap_or_else(|| local.port())), None)
            }
            TestPort::Range { minimum, maximum } => {
                let requested = Some(requested).filter(|port| (minimum..=maximum).contains(port));
                let size = u32::from(maximum - minimum) + 1;
                let first = random::number() as u32 % size;
                (requested, None, Some(RangeWalk { minimum, size, first, walked: 0 }))
            }
        };
        Self { sockets, address, interface, requested, shared, range }
    }

    fn on_port(&self, port: u16) -> Option<ReflectorHandle> {
        let listen = UdpListen {
            address: SocketAddr::new(self.address, port),
            interface: self.interface.map(str::to_owned),
        };
        self.sockets
            .serving(self.address, port, self.interface)
            .or_else(|| self.sockets.dedicated(&listen).ok())
    }
}

impl Iterator for Candidates<'_> {
    type Item = ReflectorHandle;

    fn next(&mut self) -> Option<ReflectorHandle> {
        if let Some(reflector) = self.requested.take().and_then(|port| self.on_port(port)) {
            return Some(reflector);
        }
        if let Some(port) = self.shared.take() {
            return self.sockets.serving(self.address, port, self.interface);
        }
        loop {
            let walk = self.range.as_mut().filter(|walk| walk.walked < walk.size)?;
            let port = walk.minimum + ((walk.first + walk.walked) % walk.size) as u16;
            walk.walked += 1;
            if let Some(reflector) = self.on_port(port) {
                return Some(reflector);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn conformance_046_a_million_identifiers_are_unique() {
        let address = [192, 0, 2, 1].into();
        let all: HashSet<[u8; 16]> = (0..1_000_000).map(|_| new_sid(address).unwrap().0).collect();
        assert_eq!(all.len(), 1_000_000);
        assert!(all.iter().all(|sid| sid[..4] == [192, 0, 2, 1]));
        let _failing = random::failing::start();
        new_sid(address).unwrap_err();
    }
}
