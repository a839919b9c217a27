//! From a name to an open TCP connection, in bounded time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};

use super::{failure::Failure, status::Status};
use crate::{
    model::{ControlConnection, Endpoint, TestSession},
    net::{
        clock, resolve,
        tcp::{self, ConnectOptions, TcpStream},
    },
    proto::{ConnectionState, LossCause},
};

/// When the next address of a name is tried beside those before it (RFC 8305 §8).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// How often it is looked whether the TTL of a name has passed.
const NAMES_EVERY: Duration = Duration::from_secs(5);

/// Opens the TCP connection to the first address that takes it, all within `connect_timeout`.
pub(super) async fn connect(
    config: &ControlConnection,
    status: &Status,
) -> Result<TcpStream, Failure> {
    let Some(target) = &config.target else {
        return Err(Failure::new(LossCause::Local, "no target_address"));
    };
    if matches!(target, Endpoint::Name(_)) {
        status.state(ConnectionState::Resolving, clock::now());
    }
    let limit = Duration::from_nanos(config.connect_timeout_ns);
    let addresses =
        resolved(config, target, config.destination_port, config.source_address).await?;
    status.state(ConnectionState::Connecting, clock::now());
    let options = ConnectOptions {
        source: config.source_address,
        interface: config.interface.as_deref(),
        dscp: config.control_dscp,
        keepalive: config.keepalive,
    };
    match timeout(limit, connect_to_any(&addresses, &options)).await {
        Ok(connected) => connected,
        Err(_) => Err(Failure::new(
            LossCause::ConnectTimeout,
            format!("TCP connect to {} took longer than {limit:?}", words(&addresses)),
        )),
    }
}

/// The first connection that comes about. Addresses are tried one after the other, each a little
/// after the one before and beside it (RFC 8305 §5): one that is silent does not hide the next.
async fn connect_to_any(
    addresses: &[SocketAddr],
    options: &ConnectOptions<'_>,
) -> Result<TcpStream, Failure> {
    let mut rest = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = Failure::new(LossCause::Dns, "no address");
    let mut begin = true;
    loop {
        if std::mem::take(&mut begin)
            && let Some(address) = rest.next()
        {
            attempts.push(async move { (address, tcp::connect(*address, options).await) });
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
            () = sleep(NEXT_ADDRESS), if more => begin = true,
        }
    }
}

fn words(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What name service says first or, with a turn other than 0, behind that.
pub(super) async fn address(
    config: &ControlConnection,
    target: &Endpoint,
    port: u16,
    source: Option<IpAddr>,
    turn: usize,
) -> Result<SocketAddr, Failure> {
    let addresses = resolved(config, target, port, source).await?;
    Ok(addresses[turn % addresses.len()])
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
async fn resolved(
    config: &ControlConnection,
    target: &Endpoint,
    port: u16,
    source: Option<IpAddr>,
) -> Result<Vec<SocketAddr>, Failure> {
    let limit = Duration::from_nanos(config.response_timeout_ns);
    timeout(limit, resolve::addresses(target, port, source))
        .await
        .map_err(|_| Failure::new(LossCause::Dns, "name service did not answer in time"))?
        .map_err(|error| Failure::new(LossCause::Dns, error.to_string()))
}
