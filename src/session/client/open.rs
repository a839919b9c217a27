//! Sockets of test sessions. They are opened concurrently, so that a slow one delays no other. A
//! socket is slow if its name is not resolved yet or its port is in use.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Duration,
};

use futures_util::{StreamExt, future::OptionFuture, stream::FuturesUnordered};
use tokio::time::sleep;

use super::connect::{first_reachable, resolve_target};
use crate::{
    model::{ControlConnection, StampSession, TestSession},
    net::{TestSocket, TransmitStamps, UdpOptions, clock, on_link, random},
    proto::FailureCause,
    time::TimestampFormat,
    twamp::{
        connection::{AttemptContext, Declined, Failure, StartedSession},
        control_client::SessionRequest,
        sender::{Carrier, StampSender},
    },
    wire::codes::Sid,
};

/// Longest time that a stopped test waits for replies to the probes in flight.
pub(super) const MAX_GRACE_NS: u64 = 2_000_000_000;
/// Longest wait for a port that another session of this agent is about to release.
const PORT_LIMIT_NS: u64 = MAX_GRACE_NS + 500_000_000;
/// Interval between attempts to bind a port that is in use.
const PORT_RETRY: Duration = Duration::from_millis(50);

/// A session with its socket.
#[derive(Debug)]
pub(super) struct OpenSession {
    pub(super) name: String,
    pub(super) socket: TestSocket,
    pub(super) remote: SocketAddr,
    pub(super) sid: Option<Sid>,
    /// Format of its packets.
    pub(super) carrier: Carrier,
    /// First octets of the padding of each probe (RFC 6038 §4.3).
    pub(super) padding_start: Option<[u8; 2]>,
}

impl OpenSession {
    /// Returns the facts of the session that the status shows.
    pub(super) fn started(&self) -> StartedSession {
        StartedSession {
            name: self.name.clone(),
            sid: self.sid,
            local: self.socket.local(),
            remote: self.remote,
        }
    }
}

/// A session with its socket and its request.
pub(super) type Opened = (OpenSession, SessionRequest);

/// Opens the sockets of the named sessions, which need no negotiation. `others_wait` is true if
/// other sessions wait for them.
pub(super) async fn open_unnegotiated(
    config: &ControlConnection,
    names: &[String],
    context: AttemptContext,
    others_wait: bool,
) -> (Vec<OpenSession>, Vec<Declined>) {
    let wanted = config.sessions.iter().filter(|session| names.contains(&session.name)).collect();
    let open = |session| open_one_unnegotiated(config, session, context);
    open_each(wanted, open, Duration::from_nanos(context.socket_wait_ns), others_wait).await
}

/// Opens the sockets of the named sessions between the two ends of a control connection, and
/// prepares their requests.
pub(super) async fn open_negotiated(
    config: &ControlConnection,
    names: &[String],
    ends: (IpAddr, IpAddr),
    context: AttemptContext,
    others_wait: bool,
) -> (Vec<Opened>, Vec<Declined>) {
    let wanted = config.sessions.iter().filter(|session| names.contains(&session.name)).collect();
    let open = |session| open_one_negotiated(config, session, ends, context);
    open_each(wanted, open, Duration::from_nanos(context.socket_wait_ns), others_wait).await
}

/// Opens all sockets. Once the first is open, or if other sessions wait, the remaining sockets must
/// open within `wait`.
async fn open_each<'a, T, O: Future<Output = Result<T, Failure>>>(
    wanted: Vec<&'a TestSession>,
    open: impl Fn(&'a TestSession) -> O,
    wait: Duration,
    others_wait: bool,
) -> (Vec<T>, Vec<Declined>) {
    let mut results: Vec<Option<Result<T, Failure>>> = wanted.iter().map(|_| None).collect();
    let indexed = wanted.iter().enumerate().map(|(index, session)| {
        let opened = open(session);
        async move { (index, opened.await) }
    });
    let mut opening: FuturesUnordered<_> = indexed.collect();
    let mut limit_reached = pin!(OptionFuture::from(others_wait.then(|| sleep(wait))));
    let mut is_limited = others_wait;
    loop {
        tokio::select! {
            next = opening.next() => {
                let Some((index, result)) = next else { break };
                if result.is_ok() && !std::mem::replace(&mut is_limited, true) {
                    limit_reached.set(Some(sleep(wait)).into());
                }
                results[index] = Some(result);
            }
            Some(()) = &mut limit_reached => break,
        }
    }
    let (mut sessions, mut declined) = (Vec::with_capacity(wanted.len()), Vec::new());
    for (session, result) in wanted.into_iter().zip(results) {
        match result.unwrap_or_else(|| Err(too_slow(wait))) {
            Ok(open) => sessions.push(open),
            Err(failure) => {
                let failure = failure.for_session(&session.name);
                declined.push(Declined { name: session.name.clone(), failure });
            }
        }
    }
    (sessions, declined)
}

fn too_slow(wait: Duration) -> Failure {
    let detail = format!(
        "the name service did not answer within {wait:?}; the other sessions start without this one"
    );
    Failure::new(FailureCause::Dns, detail)
}

async fn open_one_unnegotiated(
    config: &ControlConnection,
    session: &TestSession,
    context: AttemptContext,
) -> Result<OpenSession, Failure> {
    let source = session.source_address.or(config.source_address);
    let port = session.destination_port.unwrap_or(crate::model::limits::TWAMP_PORT);
    let Some(target) = session.target.as_ref().or(config.target.as_ref()) else {
        return Err(Failure::new(FailureCause::LocalError, "no target"));
    };
    let remote = first_reachable(config, target, port, source, context).await?;
    let any: IpAddr = if remote.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let socket = bind(config, session, source.unwrap_or(any), context).await?;
    let carrier = match &session.stamp {
        Some(stamp) => stamp_carrier(session, stamp),
        None => light_carrier(session),
    };
    let name = session.name.clone();
    Ok(OpenSession { name, socket, remote, sid: None, carrier, padding_start: None })
}

/// Returns the packet format of a TWAMP Light session. Its reflector negotiates nothing, and its Z
/// bit may have any value unless both ends are configured for PTP.
fn light_carrier(session: &TestSession) -> Carrier {
    Carrier {
        timestamps: session.timestamps,
        honours_z_bit: session.timestamps == TimestampFormat::Ptp,
        ..Carrier::default()
    }
}

fn stamp_carrier(session: &TestSession, stamp: &StampSession) -> Carrier {
    let ssid = stamp.ssid.unwrap_or_else(|| (random::number() as u16).max(1));
    let padding = |octets: &mut [u8]| {
        if !session.zero_padding {
            random::fill_padding(octets);
        }
    };
    let sender = StampSender::new(stamp.clone(), ssid, session.data_size.into(), padding);
    Carrier {
        format: sender.format(),
        timestamps: session.timestamps,
        honours_z_bit: true,
        stamp: Some(Box::new(sender)),
        ..Carrier::default()
    }
}

/// Opens the socket of a session and prepares its request.
async fn open_one_negotiated(
    config: &ControlConnection,
    session: &TestSession,
    (local, server): (IpAddr, IpAddr),
    context: AttemptContext,
) -> Result<(OpenSession, SessionRequest), Failure> {
    let source = session.source_address.or(config.source_address);
    let remote = match &session.target {
        // The addresses must be of the same IP version as the local address of the session.
        Some(target) => {
            resolve_target(config, target, 0, Some(source.unwrap_or(local))).await?[0].ip()
        }
        None => server,
    };
    let source = source.unwrap_or(local);
    if source.is_ipv4() != remote.is_ipv4() {
        return Err(Failure::new(
            FailureCause::LocalError,
            format!(
                "sender {source} and reflector {remote} are of different IP versions; \
                 change source_address or target_address of the session"
            ),
        ));
    }
    let socket = bind(config, session, source, context).await?;
    let unspecified: IpAddr = if remote.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let (port, is_zero) = (socket.local().port(), !context.sends_addresses);
    let request = SessionRequest {
        // Zero stands for the addresses of the control connection (RFC 5357 §3.5).
        sender_address: if source == local && is_zero { unspecified } else { source },
        sender_port: port,
        receiver_address: if remote == server && is_zero { unspecified } else { remote },
        receiver_port: session.destination_port.unwrap_or(port),
        data_size: session.data_size,
        reflected_length: session.reflected_octets,
        dscp: session.dscp.value(),
        timeout_ns: session.loss_timeout_ns,
    };
    // The port is unknown until Accept-Session arrives.
    let remote = on_link(SocketAddr::new(remote, 0), config.interface.as_deref());
    let carrier = Carrier { timestamps: session.timestamps, ..Carrier::default() };
    let name = session.name.clone();
    let open = OpenSession { name, socket, remote, sid: None, carrier, padding_start: None };
    Ok((open, request))
}

async fn bind(
    config: &ControlConnection,
    session: &TestSession,
    address: IpAddr,
    context: AttemptContext,
) -> Result<TestSocket, Failure> {
    let address = SocketAddr::new(address, session.source_port.unwrap_or(0));
    let options = UdpOptions {
        interface: config.interface.as_deref(),
        tos: session.dscp.tos(),
        ttl: session.ttl,
        transmit_stamps: TransmitStamps::Numbered,
    };
    let begun = clock::monotonic();
    loop {
        match TestSocket::bind(address, &options) {
            // The session of this agent that used the port before may still wait for replies.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && context.waits_for_ports
                    && clock::monotonic().since_ns(begun) < PORT_LIMIT_NS =>
            {
                sleep(PORT_RETRY).await;
            }
            bound => {
                let what = format!("UDP {address}");
                return bound.map_err(|error| Failure::from_local_error(&what, &error));
            }
        }
    }
}
