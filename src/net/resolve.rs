//! Name service: hosts file and DNS as the host configures them, without threads. A name is asked
//! for again when its TTL has passed; that it does not exist is believed for a second.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::ResolverConfig,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RecordType},
    },
};

use tokio::time::timeout;

use crate::model::Endpoint;

/// What name service is configured by: read again when one of them changes.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// How long a name that does not exist is not asked for again.
const NEGATIVE_TTL: Duration = Duration::from_secs(1);
/// How long the addresses of one family wait for those of the other.
const OTHER_FAMILY: Duration = Duration::from_millis(300);

type Stamps = [Option<SystemTime>; 2];

/// Name service as the host configures it.
struct NameService {
    /// A name that stands there is not asked for elsewhere, in whichever family it has no address.
    hosts: Hosts,
    resolver: TokioResolver,
}

/// That of the process, with the times of the files that it was made of. Its cache is what makes
/// thousands of connections to one name ask once.
static SERVICE: Mutex<Option<(Stamps, Arc<NameService>)>> = Mutex::new(None);

/// The addresses of an endpoint, in the order in which they are to be tried. Only those of
/// `family`, if one is given, for a socket that is bound to an address of that family. May be
/// dropped at any time; nothing of it goes on then.
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
    let fitting = interleaved(fitting.collect());
    if fitting.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no address of the family of the source address",
        ));
    }
    Ok(fitting)
}

impl NameService {
    async fn in_dns(&self, name: &str, family: Option<IpAddr>) -> io::Result<Vec<IpAddr>> {
        let of = async |kind| {
            let lookup = self.resolver.lookup(name, kind).await;
            let lookup = lookup.map_err(|error| failed(name, kind, error))?;
            let records = lookup.answers().iter();
            Ok(records.filter_map(|record| record.data.ip_addr()).collect())
        };
        match family {
            Some(IpAddr::V4(_)) => of(RecordType::A).await,
            Some(IpAddr::V6(_)) => of(RecordType::AAAA).await,
            None => either(of(RecordType::AAAA), of(RecordType::A)).await,
        }
    }

    fn in_hosts(&self, name: &str) -> Vec<IpAddr> {
        let Ok(name) = Name::from_utf8(name) else { return Vec::new() };
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = [RecordType::AAAA, RecordType::A].into_iter().filter_map(of);
        found
            .flat_map(|lookup| lookup.answers().to_vec())
            .filter_map(|record| record.data.ip_addr())
            .collect()
    }
}

/// Why a name has no address, in the words of who looks for it: the library names what it asked last.
#[expect(clippy::wildcard_enum_match_arm, reason = "a name server may answer anything")]
fn failed(name: &str, kind: RecordType, error: NetError) -> io::Error {
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

/// Addresses of both families, once one is known and the other was waited for a little (RFC 8305
/// §3): a server that is silent for one of them does not hide the other.
async fn either(
    v6: impl Future<Output = io::Result<Vec<IpAddr>>>,
    v4: impl Future<Output = io::Result<Vec<IpAddr>>>,
) -> io::Result<Vec<IpAddr>> {
    let (mut v6, mut v4) = (pin!(v6), pin!(v4));
    let (of_v6, of_v4) = tokio::select! {
        first = &mut v6 => {
            let patience = if has_some(&first) { OTHER_FAMILY } else { Duration::MAX };
            (Some(first), timeout(patience, v4).await.ok())
        }
        first = &mut v4 => {
            let patience = if has_some(&first) { OTHER_FAMILY } else { Duration::MAX };
            (timeout(patience, v6).await.ok(), Some(first))
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

/// One of each family in turn, beginning with the first (RFC 8305 §4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
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
    // Without servers there still are the names of the hosts file.
    let none = || {
        let config = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
        tracing::debug!(%error, file = FILES[0], "no name servers");
        none()
    });
    let options = builder.options_mut();
    options.negative_max_ttl = Some(NEGATIVE_TTL);
    let hosts = Hosts::from_system().unwrap_or_default();
    let service = Arc::new(NameService { hosts, resolver: builder.build()? });
    *current = Some((stamps, service.clone()));
    Ok(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_family_does_not_wait_for_a_silent_one() {
        let address = IpAddr::from([192, 0, 2, 1]);
        let answers = async || Ok(vec![address]);
        let silent = async || {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Err(io::ErrorKind::TimedOut.into())
        };
        let nothing = async || Ok(Vec::new());
        let begun = tokio::time::Instant::now();
        assert_eq!(either(silent(), answers()).await.unwrap(), [address]);
        assert_eq!(either(answers(), silent()).await.unwrap(), [address]);
        assert_eq!(begun.elapsed(), OTHER_FAMILY * 2);
        assert!(either(silent(), nothing()).await.is_err(), "nothing is no answer");
        assert_eq!(either(nothing(), answers()).await.unwrap(), [address]);
        assert_eq!(either(answers(), answers()).await.unwrap().len(), 2);
    }

    #[test]
    fn families_take_turns() {
        let parse = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 1)).collect()
        };
        let given = parse(&["::1", "::2", "::3", "192.0.2.1", "192.0.2.2"]);
        let wanted = parse(&["::1", "192.0.2.1", "::2", "192.0.2.2", "::3"]);
        assert_eq!(interleaved(given), wanted);
        assert_eq!(interleaved(parse(&["192.0.2.1"])), parse(&["192.0.2.1"]));
        assert_eq!(interleaved(Vec::new()), []);
    }

    #[tokio::test]
    async fn names_of_the_hosts_file_and_addresses() {
        let localhost = Endpoint::Name("localhost".into());
        let v4 = IpAddr::from([127, 0, 0, 1]);
        let found = addresses(&localhost, 862, Some(v4)).await.unwrap();
        assert_eq!(found, [SocketAddr::new(v4, 862)]);
        let address = Endpoint::Address("2001:db8::1".parse().unwrap());
        assert!(addresses(&address, 1, Some(v4)).await.is_err());
        assert_eq!(addresses(&address, 1, None).await.unwrap()[0].port(), 1);
    }
}
