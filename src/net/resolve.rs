//! Name service: hosts file and DNS as the host configures them, without threads. A name is asked
//! for again when its TTL has passed; that it does not exist is believed for a second.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{LookupIpStrategy, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
};

use crate::model::Endpoint;

/// What name service is configured by: read again when one of them changes.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// How long a name that does not exist is not asked for again.
const NEGATIVE_TTL: Duration = Duration::from_secs(1);

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
                found if found.is_empty() => {
                    let lookup = service.resolver.lookup_ip(name.as_str()).await;
                    lookup.map_err(io::Error::other)?.iter().collect()
                }
                found => found,
            }
        }
    };
    let fits = |address: &IpAddr| family.is_none_or(|f| f.is_ipv4() == address.is_ipv4());
    let fitting: Vec<SocketAddr> =
        found.into_iter().filter(fits).map(|ip| SocketAddr::new(ip, port)).collect();
    if fitting.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no address of the family of the source address",
        ));
    }
    Ok(fitting)
}

impl NameService {
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
    options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    options.negative_max_ttl = Some(NEGATIVE_TTL);
    let hosts = Hosts::from_system().unwrap_or_default();
    let service = Arc::new(NameService { hosts, resolver: builder.build()? });
    *current = Some((stamps, service.clone()));
    Ok(service)
}

#[cfg(test)]
mod tests {
    use super::*;

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
