//! Address families that the kernel has.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
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
            tracing::warn!("kernel without IPv6, listening on IPv4 where all addresses are meant");
        }
        has
    })
}

/// Returns the address that stands for all addresses of the host: IPv4's on a kernel without IPv6.
pub(super) fn all_addresses(address: SocketAddr) -> SocketAddr {
    if is_missing(address) {
        return SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    }
    address
}

/// Returns true for `::` on a kernel without IPv6: no packet can come to it.
pub fn is_missing(address: SocketAddr) -> bool {
    address.ip() == Ipv6Addr::UNSPECIFIED && !has_ipv6()
}
