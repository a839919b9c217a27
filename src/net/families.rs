//! Address families that the kernel supports.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::OnceLock,
};

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

/// Returns false on a kernel without IPv6 (`ipv6.disable=1`).
fn has_ipv6() -> bool {
    static HAS_IPV6: OnceLock<bool> = OnceLock::new();
    *HAS_IPV6.get_or_init(|| {
        let lacks = |error: &io::Error| error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32);
        let has = !Socket::new(Domain::IPV6, Type::DGRAM, None).is_err_and(|error| lacks(&error));
        if !has {
            tracing::warn!("kernel without IPv6, listening on 0.0.0.0 instead of ::");
        }
        has
    })
}

/// Returns the address to listen on. On a kernel without IPv6, `::` is replaced by `0.0.0.0`.
pub(super) fn all_addresses(address: SocketAddr) -> SocketAddr {
    if is_missing(address) {
        return SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    }
    address
}

/// Returns the address, converted to IPv4 if it is an IPv4-mapped IPv6 address. The scope of a
/// link-local address is kept, because the address is incomplete without it.
pub fn canonical(end: SocketAddr) -> SocketAddr {
    match end.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::from((v4, end.port())),
        IpAddr::V6(_) => end,
    }
}

/// Returns true for `::` on a kernel without IPv6, to which no packet can be sent.
pub fn is_missing(address: SocketAddr) -> bool {
    address.ip() == Ipv6Addr::UNSPECIFIED && !has_ipv6()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_of_a_link_local_end_is_kept() {
        let parse = |text: &str| -> SocketAddr { text.parse().unwrap() };
        assert_eq!(canonical(parse("[fe80::1%3]:9")), parse("[fe80::1%3]:9"));
        assert_eq!(canonical(parse("[::ffff:192.0.2.1]:9")), parse("192.0.2.1:9"));
    }
}
