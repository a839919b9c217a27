//! Checks of routes and source addresses. They send no packet.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use super::udp;

/// Returns an error when packets cannot be sent to an address: no route, no such source address or
/// interface, or an interface without an address.
pub fn check_route(
    to: SocketAddr,
    source: Option<IpAddr>,
    interface: Option<&str>,
) -> io::Result<()> {
    let any: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let from = SocketAddr::new(source.unwrap_or(any), 0);
    let socket = udp::bind(from, interface, false)?;
    socket.connect(&to.into())?;
    let from = socket.local_addr()?.as_socket();
    if from.is_some_and(|from| from.ip().is_unspecified()) {
        // The kernel would send from 0.0.0.0 and no reply could arrive.
        let why = format!("interface {} has no address", interface.unwrap_or_default());
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, why));
    }
    Ok(())
}

/// Returns an error when this host does not have an address.
pub fn check_source(source: IpAddr, interface: Option<&str>) -> io::Result<()> {
    udp::bind(SocketAddr::new(source, 0), interface, false).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_addresses_and_interfaces_have_no_route() {
        let to = |text: &str| text.parse().unwrap();
        check_route(to("127.0.0.1:862"), None, None).unwrap();
        check_route(to("127.0.0.1:862"), Some([127, 0, 0, 9].into()), Some("lo")).unwrap();
        check_route(to("127.0.0.1:862"), Some([192, 0, 2, 1].into()), None).unwrap_err();
        check_route(to("127.0.0.1:862"), None, Some("none0")).unwrap_err();
        check_source([127, 0, 0, 9].into(), Some("lo")).unwrap();
        check_source([192, 0, 2, 1].into(), None).unwrap_err();
    }
}
