//! Allocation of requested sessions to reflector sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{
    reflector::ReflectorHandle,
    registry::{ConnectionEntry, SessionEnd, SessionRefusal},
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

/// Longest time for which packets are reflected after Stop-Sessions.
const MAX_DRAIN_NS: u64 = 900 * NANOS_PER_SECOND;

/// An accepted session on its socket.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) sid: Sid,
    pub(super) reflector: ReflectorHandle,
    /// Time for which packets are reflected after Stop-Sessions.
    pub(super) drain_ns: u64,
    /// True if the requested IP version is not that of the control connection.
    pub(super) ip_version_corrected: bool,
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

/// Accepts a session on the first suitable reflector socket.
pub(super) async fn allocate(
    config: &ServerConfig,
    sockets: &Sockets,
    connection: &ConnectionEntry,
    PathInfo { ends, interface }: PathInfo<'_>,
    (request, packets): (&RequestedSession, &Packets<'_>),
    ended: mpsc::Sender<(Sid, SessionEnd)>,
) -> Result<Allocation, SessionRefusal> {
    let (sender, receiver) = session_addresses(ends, request)?;
    let sid = new_sid(receiver).map_err(|error| {
        tracing::error!(%error, "failed to generate session identifier");
        SessionRefusal::new(Accept::INTERNAL_ERROR, format!("no session identifier: {error}"))
    })?;
    let counters = Arc::new(SessionCounters::default());
    let drain_ns = request.timeout_ns.min(MAX_DRAIN_NS);
    let tos = Dscp::new(request.dscp).ok_or_else(|| {
        SessionRefusal::new(Accept::NOT_SUPPORTED, format!("DSCP {}", request.dscp))
    })?;
    let tos = tos.tos();
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
    for reflector in
        Candidates::new(config, sockets, (ends.local, interface), request.receiver_port)
    {
        entry.set_reflector(with_port(ends.local, reflector.local.port()));
        if reflector.add(&session, &entry).await {
            entry.set_removal(reflector.removal(sid));
            let ip_version_corrected = receiver.is_ipv4() != (request.ip_version == 4);
            return Ok(Allocation { sid, reflector, drain_ns, ip_version_corrected });
        }
    }
    let detail = format!("no UDP port of test_port is free, or {sender} has a session on each");
    Err(SessionRefusal::new(Accept::TEMPORARY_RESOURCE_LIMIT, detail))
}

/// Returns the addresses of the sender and the reflector of a session. Third parties are refused: a
/// server that sends packets to arbitrary hosts could be abused for attacks (RFC 5357 §6). Zero
/// addresses mean the ends of the control connection, whatever IP version the request names.
fn session_addresses(
    ends: Ends,
    request: &RequestedSession,
) -> Result<(SocketAddr, IpAddr), SessionRefusal> {
    let sender = request.sender_address.unwrap_or_else(|| ends.client.ip()).to_canonical();
    let receiver = request.receiver_address.unwrap_or_else(|| ends.local.ip()).to_canonical();
    if sender != ends.client.ip() || receiver != ends.local.ip() {
        let detail = format!(
            "sender {sender} and reflector {receiver} are not the ends of the control connection, \
             {} and {}",
            ends.client.ip(),
            ends.local.ip()
        );
        return Err(SessionRefusal::new(Accept::NOT_SUPPORTED, detail));
    }
    Ok((with_port(ends.client, request.sender_port), receiver))
}

/// Returns the address of an end with another port. The scope of an IPv6 address is kept.
fn with_port(end: SocketAddr, port: u16) -> SocketAddr {
    let mut address = end;
    address.set_port(port);
    address
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

/// Suitable reflector sockets, best first. A dedicated socket is opened when its turn comes.
struct Candidates<'a> {
    sockets: &'a Sockets,
    /// Address of the reflector with its scope; the port is that of the listener.
    local: SocketAddr,
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
        (local, interface): (SocketAddr, Option<&'a str>),
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
        Self { sockets, local, interface, requested, shared, range }
    }

    fn open_on_port(&self, port: u16) -> Option<ReflectorHandle> {
        let listen = UdpListen {
            address: with_port(self.local, port),
            interface: self.interface.map(str::to_owned),
        };
        self.sockets
            .find_shared(self.local.ip(), port, self.interface)
            .or_else(|| self.sockets.open_dedicated(&listen).ok())
    }
}

impl Iterator for Candidates<'_> {
    type Item = ReflectorHandle;

    fn next(&mut self) -> Option<ReflectorHandle> {
        if let Some(reflector) = self.requested.take().and_then(|port| self.open_on_port(port)) {
            return Some(reflector);
        }
        if let Some(port) = self.shared.take() {
            return self.sockets.find_shared(self.local.ip(), port, self.interface);
        }
        loop {
            let walk = self.range.as_mut().filter(|walk| walk.walked < walk.size)?;
            let port = walk.minimum + ((walk.first + walk.walked) % walk.size) as u16;
            walk.walked += 1;
            if let Some(reflector) = self.open_on_port(port) {
                return Some(reflector);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn request(ip_version: u8, receiver: Option<&str>) -> RequestedSession {
        RequestedSession {
            ip_version,
            sender_address: None,
            sender_port: 4000,
            receiver_address: receiver.map(|address| address.parse().unwrap()),
            receiver_port: 4000,
            padding_length: 0,
            timeout_ns: 0,
            dscp: 0,
        }
    }

    #[test]
    fn zero_addresses_have_the_family_of_the_control_connection() {
        let ends = |client: &str, local: &str| Ends {
            client: client.parse().unwrap(),
            local: local.parse().unwrap(),
        };
        let v6 = ends("[2001:db8::1]:1", "[2001:db8::2]:862");
        for ip_version in [4, 6] {
            let (sender, receiver) = session_addresses(v6, &request(ip_version, None)).unwrap();
            assert_eq!(sender.to_string(), "[2001:db8::1]:4000");
            assert_eq!(receiver, v6.local.ip());
            session_addresses(ends("192.0.2.1:1", "192.0.2.2:862"), &request(ip_version, None))
                .unwrap();
        }
        session_addresses(v6, &request(6, Some("2001:db8::2"))).unwrap();
        let refusal = session_addresses(v6, &request(4, Some("192.0.2.2"))).unwrap_err();
        assert_eq!(refusal.accept, Accept::NOT_SUPPORTED);
        assert!(refusal.detail.contains("192.0.2.2"), "{}", refusal.detail);
    }

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
