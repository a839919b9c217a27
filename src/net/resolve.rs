//! Name service.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use crate::model::Endpoint;

/// The addresses of an endpoint, in the order in which name service prefers them. Only those of
/// `family`, if one is given, for a socket that is bound to an address of that family.
pub async fn addresses(
    endpoint: &Endpoint,
    port: u16,
    family: Option<IpAddr>,
) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = match endpoint {
        Endpoint::Address(address) => vec![SocketAddr::new(*address, port)],
        Endpoint::Name(name) => tokio::net::lookup_host((name.as_str(), port)).await?.collect(),
    };
    let fits = |address: &SocketAddr| family.is_none_or(|f| f.is_ipv4() == address.is_ipv4());
    let fitting: Vec<SocketAddr> = found.into_iter().filter(fits).collect();
    if fitting.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no address of the family of the source address",
        ));
    }
    Ok(fitting)
}
