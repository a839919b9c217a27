//! From a name to an open TCP connection, in bounded time.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};

use super::{failure::Failure, status::Status};
use crate::{
    model::{ControlConnection, Endpoint},
    net::{
        clock, resolve,
        tcp::{self, ConnectOptions, TcpStream},
    },
    proto::{ConnectionState, LossCause},
};

/// When the next address of a name is tried beside those before it (RFC 8305 §8).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

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

/// What name service says first.
pub(super) async fn first_address(
    config: &ControlConnection,
    target: &Endpoint,
    port: u16,
    source: Option<IpAddr>,
) -> Result<SocketAddr, Failure> {
    Ok(resolved(config, target, port, source).await?[0])
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
