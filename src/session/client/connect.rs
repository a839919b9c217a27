//! From a name to an open TCP connection, in bounded time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};

use super::{failure::Failure, status::Status};
use crate::{
    model::{ControlConnection, Endpoint, TestSession},
    net::{
        check_route, clock, resolve,
        tcp::{self, ConnectOptions, TcpStream},
    },
    proto::{ConnectionState, FailureCause},
    time::Monotonic,
};

/// When the next address of a name is tried beside those before it: at the latest and, where there
/// are many for the time that there is, at the earliest (RFC 8305 §8).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
const SOONEST_ADDRESS: Duration = Duration::from_millis(10);
/// How often it is looked whether the TTL of a name has passed.
const NAMES_EVERY: Duration = Duration::from_secs(5);

/// How long sessions that are ready wait for others, and by how much longer one is waited for each time
/// that nobody has to wait with it, up to so many times as long: no name service is too slow for ever.
pub(super) const PATIENCE: Duration = Duration::from_millis(2_600);
pub(super) const MOST_PATIENCE: u32 = 4;

/// Where an attempt stands among others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// When its TCP connection is to be there.
    pub(super) deadline: Monotonic,
    /// Which address of a name comes first: another one each time.
    pub(super) address: usize,
    /// Whether a port that is taken may be one that a session of this agent is about to give up.
    pub(super) waits_for_ports: bool,
    /// How long sessions whose sockets are open wait for others, which name service may hold up.
    pub(super) patience: Duration,
}

impl Turn {
    /// The only attempt that there is.
    pub(super) fn only(config: &ControlConnection) -> Self {
        let deadline = clock::monotonic().plus_ns(config.connect_timeout_ns);
        Self { deadline, address: 0, waits_for_ports: false, patience: PATIENCE }
    }
}

/// Opens the TCP connection to the first address that takes it.
pub(super) async fn connect(
    config: &ControlConnection,
    status: &Status,
    turn: Turn,
) -> Result<TcpStream, Failure> {
    let Some(target) = &config.target else {
        return Err(Failure::new(FailureCause::LocalError, "no target_address"));
    };
    if matches!(target, Endpoint::Name(_)) {
        status.state(ConnectionState::Resolving, clock::now());
    }
    let mut addresses =
        resolved(config, target, config.destination_port, config.source_address).await?;
    let first = turn.address % addresses.len();
    addresses.rotate_left(first);
    status.state(ConnectionState::Connecting, clock::now());
    let options = ConnectOptions {
        source: config.source_address,
        interface: config.interface.as_deref(),
        dscp: config.control_dscp,
        keepalive: config.keepalive,
    };
    // Name service that is slow does not take all of the time.
    let left_ns = turn.deadline.since_ns(clock::monotonic()).max(config.connect_timeout_ns / 4);
    connect_to_any(&addresses, &options, Duration::from_nanos(left_ns)).await
}

/// The first connection that comes about within `limit`. Addresses are tried one after the other, each
/// a little after the one before and beside it (RFC 8305 §5), and all of them: one that is silent does
/// not hide the next.
async fn connect_to_any(
    addresses: &[SocketAddr],
    options: &ConnectOptions<'_>,
    limit: Duration,
) -> Result<TcpStream, Failure> {
    let step = limit / (addresses.len() as u32 + 1);
    let step = step.clamp(SOONEST_ADDRESS, NEXT_ADDRESS);
    let mut over = pin!(sleep(limit));
    let mut rest = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = Failure::new(FailureCause::Dns, "no address");
    let mut begin = true;
    loop {
        if std::mem::take(&mut begin)
            && let Some(address) = rest.next()
        {
            attempts.push(async move {
                let connected = match check_route(*address, options.source, options.interface) {
                    Ok(()) => tcp::connect(*address, options).await,
                    Err(error) => Err(error),
                };
                (address, connected)
            });
        }
        let more = rest.len() > 0;
        tokio::select! {
            attempt = attempts.next() => match attempt {
                Some((_, Ok(stream))) => return Ok(stream),
                Some((address, Err(error))) => {
                    failure = Failure::connecting(&error, &address.to_string());
                    begin = true;
                }
                None if more => begin = true,
                None => return Err(failure),
            },
            () = sleep(step), if more => begin = true,
            () = &mut over => {
                let tried = words(&addresses[..addresses.len() - rest.len()]);
                return Err(Failure::new(
                    FailureCause::ConnectTimeout,
                    format!("TCP connect to {tried} took longer than {limit:.1?}"),
                ));
            }
        }
    }
}

fn words(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The first address that there is a way to, beginning with that of the turn.
pub(super) async fn reachable(
    config: &ControlConnection,
    target: &Endpoint,
    port: u16,
    source: Option<IpAddr>,
    turn: Turn,
) -> Result<SocketAddr, Failure> {
    let mut addresses = resolved(config, target, port, source).await?;
    let first = turn.address % addresses.len();
    addresses.rotate_left(first);
    let mut failure = Failure::new(FailureCause::Dns, "no address");
    for address in addresses {
        match check_route(address, source, config.interface.as_deref()) {
            Ok(()) => return Ok(address),
            Err(error) => failure = Failure::sending(&error, address),
        }
    }
    Err(failure)
}

/// Waits until name service no longer knows an address that a session without control is sent to.
/// It is asked anew when the TTL of its answer has passed; that it fails says nothing.
pub(super) async fn names_move(config: Arc<ControlConnection>, remotes: BTreeMap<String, IpAddr>) {
    let named = |session: &TestSession| {
        let target = session.target.as_ref().or(config.target.as_ref());
        let source = session.source_address.or(config.source_address);
        let remote = remotes.get(&session.name);
        target
            .cloned()
            .filter(|t| matches!(t, Endpoint::Name(_)))
            .zip(remote.copied())
            .map(|(target, remote)| (target, source, remote))
    };
    let names: Vec<_> = config.sessions.iter().filter_map(named).collect();
    if names.is_empty() {
        return std::future::pending().await;
    }
    loop {
        sleep(NAMES_EVERY).await;
        for (target, source, remote) in &names {
            if let Ok(addresses) = resolved(&config, target, 0, *source).await
                && !addresses.iter().any(|address| address.ip() == *remote)
            {
                return;
            }
        }
    }
}

/// At least one address, in bounded time.
pub(super) async fn resolved(
    config: &ControlConnection,
    target: &Endpoint,
    port: u16,
    source: Option<IpAddr>,
) -> Result<Vec<SocketAddr>, Failure> {
    let limit = Duration::from_nanos(config.response_timeout_ns);
    let silent = |_| {
        let name = if let Endpoint::Name(name) = target { name.as_str() } else { "" };
        Failure::new(FailureCause::Dns, format!("{name:?}: name service did not answer in time"))
    };
    timeout(limit, resolve::addresses(target, port, source))
        .await
        .map_err(silent)?
        .map_err(|error| Failure::new(FailureCause::Dns, error.to_string()))
}
