//! Resolution of a server's name and the TCP connect to it, in bounded time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};

use crate::{
    model::{ControlConnection, Endpoint, TestSession},
    net::{
        check_route, on_link, resolve,
        tcp::{self, ConnectOptions, TcpStream},
    },
    proto::FailureCause,
    twamp::connection::{AttemptContext, Failure},
};

/// Range of the delay before the next address of a name is tried concurrently (RFC 8305 §8). The
/// more addresses share the time limit, the shorter is the delay.
const MAX_ADDRESS_DELAY: Duration = Duration::from_millis(250);
const MIN_ADDRESS_DELAY: Duration = Duration::from_millis(10);
/// Interval at which names are resolved again. The resolver caches its answers for their TTL.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5);

/// Resolves the address of the server.
pub(super) async fn resolve_server(config: &ControlConnection) -> Result<Vec<SocketAddr>, Failure> {
    let Some(target) = &config.target else {
        return Err(Failure::new(FailureCause::LocalError, "no target_address"));
    };
    resolve_target(config, target, config.destination_port, config.source_address).await
}

/// Opens the TCP connection to the first address that accepts it within `limit`. Attempts start one
/// shortly after the other and run concurrently (RFC 8305 §5), so that a silent address does not
/// block the others.
pub(super) async fn connect(
    config: &ControlConnection,
    addresses: &[SocketAddr],
    limit: Duration,
) -> Result<TcpStream, Failure> {
    let options = ConnectOptions {
        source: config.source_address,
        interface: config.interface.as_deref(),
        dscp: config.control_dscp,
        keepalive: config.keepalive,
    };
    let delay = limit / (addresses.len() as u32 + 1);
    let delay = delay.clamp(MIN_ADDRESS_DELAY, MAX_ADDRESS_DELAY);
    let mut limit_reached = pin!(sleep(limit));
    let mut untried = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = Failure::new(FailureCause::Dns, "no address");
    let mut begin = true;
    loop {
        if std::mem::take(&mut begin)
            && let Some(address) = untried.next()
        {
            let options = &options;
            attempts.push(async move {
                let connected = match check_route(*address, options.source, options.interface) {
                    Ok(()) => tcp::connect(*address, options).await,
                    Err(error) => Err(error),
                };
                (*address, connected)
            });
        }
        let more = untried.len() > 0;
        tokio::select! {
            attempt = attempts.next() => match attempt {
                Some((_, Ok(stream))) => return Ok(stream),
                Some((address, Err(error))) => {
                    failure = Failure::from_connect_error(&error, address);
                    begin = true;
                }
                None if more => begin = true,
                None => return Err(failure),
            },
            () = sleep(delay), if more => begin = true,
            () = &mut limit_reached => {
                let tried = &addresses[..addresses.len() - untried.len()];
                let tried = tried.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return Err(Failure::new(
                    FailureCause::ConnectTimeout,
                    format!("TCP connect to {tried} took longer than {limit:.1?}"),
                ));
            }
        }
    }
}

/// Returns the first address with a route. The search begins at the address that this attempt is to
/// use.
pub(super) async fn first_reachable(
    config: &ControlConnection,
    target: &Endpoint,
    port: u16,
    source: Option<IpAddr>,
    context: AttemptContext,
) -> Result<SocketAddr, Failure> {
    let mut addresses = resolve_target(config, target, port, source).await?;
    let first = context.address % addresses.len();
    addresses.rotate_left(first);
    let mut failure = Failure::new(FailureCause::Dns, "no address");
    for address in addresses {
        match check_route(address, source, config.interface.as_deref()) {
            Ok(()) => return Ok(address),
            Err(error) => failure = Failure::from_send_error(&error, address),
        }
    }
    Err(failure)
}

/// Waits until a name no longer resolves to the address of a session without control connection.
/// Failures of the resolver are ignored.
pub(super) async fn wait_for_dns_change(
    config: Arc<ControlConnection>,
    remotes: BTreeMap<String, IpAddr>,
) {
    let watched_target = |session: &TestSession| {
        let target = session.target.as_ref().or(config.target.as_ref());
        let source = session.source_address.or(config.source_address);
        let remote = remotes.get(&session.name);
        target
            .cloned()
            .filter(|t| matches!(t, Endpoint::Name(_)))
            .zip(remote.copied())
            .map(|(target, remote)| (target, source, remote))
    };
    let names: Vec<_> = config.sessions.iter().filter_map(watched_target).collect();
    if names.is_empty() {
        return std::future::pending().await;
    }
    loop {
        sleep(RESOLVE_INTERVAL).await;
        for (target, source, remote) in &names {
            if let Ok(addresses) = resolve_target(&config, target, 0, *source).await
                && !addresses.iter().any(|address| address.ip() == *remote)
            {
                return;
            }
        }
    }
}

/// Resolves a target to at least one address within the response timeout.
pub(super) async fn resolve_target(
    config: &ControlConnection,
    target: &Endpoint,
    port: u16,
    source: Option<IpAddr>,
) -> Result<Vec<SocketAddr>, Failure> {
    let limit = Duration::from_nanos(config.response_timeout_ns);
    let timed_out = |_| {
        let name = if let Endpoint::Name(name) = target { name.as_str() } else { "" };
        Failure::new(FailureCause::Dns, format!("{name:?}: name service did not answer in time"))
    };
    let interface = config.interface.as_deref();
    timeout(limit, resolve::addresses(target, port, source))
        .await
        .map_err(timed_out)?
        .map(|found| found.into_iter().map(|found| on_link(found, interface)).collect())
        .map_err(|error| Failure::new(FailureCause::Dns, error.to_string()))
}
