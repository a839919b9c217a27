//! Name resolution by the hosts file and DNS as the host configures them, without threads.
//!
//! Addresses are cached for their TTL; the absence of a name is cached for one second.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RecordType},
    },
};

use tokio::time::timeout;

use crate::model::Endpoint;

/// Files that configure name resolution; a change of either reloads both.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// Caching time of the absence of a name.
const NEGATIVE_TTL: Duration = Duration::from_secs(1);
/// Time to wait for the second address family once the first has answered (RFC 8305 section 3).
const OTHER_FAMILY_WAIT: Duration = Duration::from_millis(300);

type Stamps = [Option<SystemTime>; 2];

/// Resolver with the configuration of the host.
struct NameService {
    /// Names found here are not looked up in DNS, not even for a missing family.
    hosts: Hosts,
    resolver: TokioResolver,
}

/// Shared resolver with the modification times of its files. Because of its cache, thousands of
/// connections to one name need one query.
static SERVICE: Mutex<Option<(Stamps, Arc<NameService>)>> = Mutex::new(None);

/// Returns the addresses of an endpoint in the order in which to try them, limited to the family
/// of `family` (a source address). Cancel-safe.
pub async fn addresses(
    endpoint: &Endpoint,
    port: u16,
    family: Option<IpAddr>,
) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<IpAddr> = match endpoint {
        Endpoint::Address(address) => vec![*address],
        Endpoint::Name(name) => {
            let service = service().map_err(io::Error::other)?;
            match service.in_hosts(name) {
                found if found.is_empty() => service.in_dns(name, family).await?,
                found => found,
            }
        }
    };
    let fits = |address: &IpAddr| family.is_none_or(|f| f.is_ipv4() == address.is_ipv4());
    let fitting = found.into_iter().filter(fits).map(|ip| SocketAddr::new(ip, port));
    let fitting = interleave(fitting.collect());
    if fitting.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no address of the same IP version as the source address",
        ));
    }
    Ok(fitting)
}

impl NameService {
    async fn in_dns(&self, name: &str, family: Option<IpAddr>) -> io::Result<Vec<IpAddr>> {
        let parsed = dns_name(name).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("invalid name {name:?}"))
        })?;
        let query = async |kind| {
            let lookup = self.resolver.lookup(parsed.clone(), kind).await;
            let lookup = lookup.map_err(|error| to_io_error(name, kind, error))?;
            let records = lookup.answers().iter();
            Ok(records.filter_map(|record| record.data.ip_addr()).collect())
        };
        match family {
            Some(IpAddr::V4(_)) => query(RecordType::A).await,
            Some(IpAddr::V6(_)) => query(RecordType::AAAA).await,
            None => query_both(query(RecordType::AAAA), query(RecordType::A)).await,
        }
    }

    fn in_hosts(&self, name: &str) -> Vec<IpAddr> {
        let Some(name) = dns_name(name) else { return Vec::new() };
        let lookup = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = [RecordType::AAAA, RecordType::A].into_iter().filter_map(lookup);
        found
            .flat_map(|lookup| lookup.answers().to_vec())
            .filter_map(|record| record.data.ip_addr())
            .collect()
    }
}

/// Parses a name. `_` is allowed, which host names exclude but container networks use.
fn dns_name(name: &str) -> Option<Name> {
    if name.is_ascii() { Name::from_ascii(name).ok() } else { Name::from_utf8(name).ok() }
}

/// Converts a resolver error, and adds the name, because the library names only its last query.
#[expect(clippy::wildcard_enum_match_arm, reason = "a name server may answer anything")]
fn to_io_error(name: &str, kind: RecordType, error: NetError) -> io::Error {
    if let NetError::Dns(DnsError::NoRecordsFound(none)) = &error {
        let why = match none.response_code {
            ResponseCode::NXDomain => format!("{name:?} does not exist (NXDOMAIN)"),
            ResponseCode::NoError => format!("{name:?} has no {kind} record"),
            code => format!("{name:?}: the name server answers {code}"),
        };
        return io::Error::new(io::ErrorKind::NotFound, why);
    }
    io::Error::other(format!("{name:?}: {error}"))
}

/// Returns the addresses of both families. After the first answer it waits only
/// [`OTHER_FAMILY_WAIT`] for the second, because some servers drop the queries for one family.
async fn query_both(
    v6: impl Future<Output = io::Result<Vec<IpAddr>>>,
    v4: impl Future<Output = io::Result<Vec<IpAddr>>>,
) -> io::Result<Vec<IpAddr>> {
    let (mut v6, mut v4) = (pin!(v6), pin!(v4));
    let (of_v6, of_v4) = tokio::select! {
        first = &mut v6 => {
            let wait = if has_some(&first) { OTHER_FAMILY_WAIT } else { Duration::MAX };
            (Some(first), timeout(wait, v4).await.ok())
        }
        first = &mut v4 => {
            let wait = if has_some(&first) { OTHER_FAMILY_WAIT } else { Duration::MAX };
            (timeout(wait, v6).await.ok(), Some(first))
        }
    };
    let (mut found, mut failed) = (Vec::new(), None);
    for answer in [of_v6, of_v4].into_iter().flatten() {
        match answer {
            Ok(addresses) => found.extend(addresses),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// Alternates between families, starting with the first address (RFC 8305 section 4).
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let begins = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == begins);
    let longer = first.len().max(other.len());
    let pair = |index: usize| [first.get(index), other.get(index)];
    (0..longer).flat_map(pair).flatten().copied().collect()
}

fn has_some(answer: &io::Result<Vec<IpAddr>>) -> bool {
    answer.as_ref().is_ok_and(|addresses| !addresses.is_empty())
}

fn service() -> Result<Arc<NameService>, NetError> {
    let stamps = FILES.map(|file| fs::metadata(file).and_then(|m| m.modified()).ok());
    let mut current = SERVICE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((made_of, service)) = &*current
        && *made_of == stamps
    {
        return Ok(service.clone());
    }
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
        tracing::debug!(%error, file = FILES[0], "no name servers configured, querying this host");
        TokioResolver::builder_with_config(loopback_servers(), TokioRuntimeProvider::default())
    });
    let options = builder.options_mut();
    options.negative_max_ttl = Some(NEGATIVE_TTL);
    let hosts = Hosts::from_system().unwrap_or_default();
    let service = Arc::new(NameService { hosts, resolver: builder.build()? });
    *current = Some((stamps, service.clone()));
    Ok(service)
}

/// Returns the name servers to use if `resolv.conf` is missing or empty: those on this host
/// (resolv.conf(5)).
fn loopback_servers() -> ResolverConfig {
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let servers = loopback.map(NameServerConfig::udp_and_tcp).to_vec();
    ResolverConfig::from_parts(None, Vec::new(), servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn addresses_of_one_family_do_not_wait_for_a_silent_server() {
        let address = IpAddr::from([192, 0, 2, 1]);
        let answers = async || Ok(vec![address]);
        let silent = async || {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Err(io::ErrorKind::TimedOut.into())
        };
        let nothing = async || Ok(Vec::new());
        let begun = tokio::time::Instant::now();
        assert_eq!(query_both(silent(), answers()).await.unwrap(), [address]);
        assert_eq!(query_both(answers(), silent()).await.unwrap(), [address]);
        assert_eq!(begun.elapsed(), OTHER_FAMILY_WAIT * 2);
        assert!(
            query_both(silent(), nothing()).await.is_err(),
            "an empty answer does not hide an error"
        );
        assert_eq!(query_both(nothing(), answers()).await.unwrap(), [address]);
        assert_eq!(query_both(answers(), answers()).await.unwrap().len(), 2);
    }

    #[test]
    fn names_of_services_may_have_an_underscore() {
        for name in ["my_service", "my_service.example.org.", "_x", "a-b", "bücher.example"] {
            assert!(dns_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn families_alternate() {
        let parse = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 1)).collect()
        };
        let given = parse(&["::1", "::2", "::3", "192.0.2.1", "192.0.2.2"]);
        let wanted = parse(&["::1", "192.0.2.1", "::2", "192.0.2.2", "::3"]);
        assert_eq!(interleave(given), wanted);
        assert_eq!(interleave(parse(&["192.0.2.1"])), parse(&["192.0.2.1"]));
        assert_eq!(interleave(Vec::new()), []);
    }

    #[tokio::test]
    async fn hosts_file_names_and_addresses_resolve_without_dns() {
        let localhost = Endpoint::Name("localhost".into());
        let v4 = IpAddr::from([127, 0, 0, 1]);
        let found = addresses(&localhost, 862, Some(v4)).await.unwrap();
        assert_eq!(found, [SocketAddr::new(v4, 862)]);
        let address = Endpoint::Address("2001:db8::1".parse().unwrap());
        assert!(addresses(&address, 1, Some(v4)).await.is_err());
        assert_eq!(addresses(&address, 1, None).await.unwrap()[0].port(), 1);
    }
}
