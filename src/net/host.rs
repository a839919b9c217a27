//! Name, file limits and free ports of the host.

use std::{
    io,
    net::{SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::model::ZonedAddress;

/// Upper limit of the open files that are reserved for the store and the API. They get a quarter of
/// all, so that many measurements do not make the API unusable, nor the reverse.
const RESERVED_FILES: u64 = 320;

/// Largest number of characters that are read of an identifier of the host.
const MAX_IDENTIFIER: usize = 64;

/// Raises the limit of open files to the maximum: the hard limit or, for root, `fs.nr_open`. Each
/// connection and session has a socket. Returns the new limit.
pub fn raise_open_files() -> u64 {
    let of_kernel = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
    let of_kernel = of_kernel.and_then(|most| most.trim().parse().ok());
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        let most = hard.max(of_kernel.unwrap_or(hard));
        setrlimit(Resource::RLIMIT_NOFILE, most, most)
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "failed to raise limit of open files");
    }
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// Returns the number of files available for measurement sockets.
pub fn files_for_measurements() -> u64 {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    limit - reserved_files(limit)
}

/// Returns the number of files available for connections to the API.
pub fn files_for_api() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    (reserved_files(limit) / 4 * 3) as usize
}

fn reserved_files(limit: u64) -> u64 {
    RESERVED_FILES.min(limit / 4)
}

/// Returns the number of open files.
pub fn open_files() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64)
}

/// Returns an error if `socket` exceeds the limit for measurements. Its descriptor number shows
/// that, because the kernel assigns the lowest free number.
pub(super) fn check_file_limit(socket: &impl AsFd) -> io::Result<()> {
    let most = files_for_measurements();
    if (socket.as_fd().as_raw_fd() as u64) < most {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "limit of {most} open files for measurements reached: raise LimitNOFILE="
    )))
}

/// Returns the index of a network interface; `None` if it does not exist.
pub fn interface_index(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// Returns the user of this process.
pub fn own_uid() -> u32 {
    nix::unistd::Uid::effective().as_raw()
}

/// Returns the number that stands for users of another user namespace.
pub fn overflow_uid() -> u32 {
    let of_kernel = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    of_kernel.and_then(|uid| uid.trim().parse().ok()).unwrap_or(65_534)
}

/// Returns an address with the scope of its zone, the name of an interface that exists
/// or an index.
pub fn scoped(zoned: &ZonedAddress) -> io::Result<SocketAddr> {
    let (SocketAddr::V6(v6), Some(zone)) = (zoned.address, &zoned.zone) else {
        return Ok(zoned.address);
    };
    let number = || zone.parse().ok().filter(|index| *index > 0);
    let scope = interface_index(zone).or_else(number).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no such interface: {zone}"))
    })?;
    Ok(SocketAddrV6::new(*v6.ip(), v6.port(), 0, scope).into())
}

/// Returns an address with the scope of an interface if it is link-local: without it the address
/// means nothing to a reader.
pub fn on_link(address: SocketAddr, interface: Option<&str>) -> SocketAddr {
    match (address, interface.and_then(interface_index)) {
        (SocketAddr::V6(v6), Some(scope))
            if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 =>
        {
            SocketAddrV6::new(*v6.ip(), v6.port(), v6.flowinfo(), scope).into()
        }
        _ => address,
    }
}

/// Returns the host name; empty if it is not UTF-8.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// Returns the machine id (machine-id(5)); empty if there is none.
pub fn machine_id() -> String {
    identifier("/etc/machine-id")
}

/// Returns the UUID of the (virtual) machine in its firmware; empty if there is none, or if the
/// agent may not read it because it is not root.
pub fn product_uuid() -> String {
    identifier("/sys/class/dmi/id/product_uuid")
}

fn identifier(file: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.trim().chars().take(MAX_IDENTIFIER).collect()
}

/// Returns a port that is currently free on the loopback address for TCP and UDP.
pub fn free_port() -> io::Result<u16> {
    let mut last = io::ErrorKind::AddrInUse.into();
    for _ in 0..20 {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        match std::net::UdpSocket::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_link_local_addresses_get_the_scope_of_an_interface() {
        let parse = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let index = interface_index("lo").unwrap();
        let shown = |text: &str, interface| on_link(parse(text), interface).to_string();
        assert_eq!(shown("[fe80::1]:9", Some("lo")), format!("[fe80::1%{index}]:9"));
        assert_eq!(shown("[fe80::1]:9", None), "[fe80::1]:9");
        assert_eq!(shown("[fe80::1%77]:9", Some("lo")), "[fe80::1%77]:9");
        for text in ["[2001:db8::1]:9", "192.0.2.1:9"] {
            assert_eq!(shown(text, Some("lo")), text);
        }
    }

    #[test]
    fn the_zone_of_an_address_is_the_name_or_the_index_of_an_interface() {
        let index = interface_index("lo").unwrap();
        for zone in ["lo".to_owned(), index.to_string()] {
            let zoned: ZonedAddress = format!("[fe80::1%{zone}]:9").parse().unwrap();
            assert_eq!(scoped(&zoned).unwrap().to_string(), format!("[fe80::1%{index}]:9"));
        }
        for zone in ["none0", "0"] {
            let zoned: ZonedAddress = format!("[fe80::1%{zone}]:9").parse().unwrap();
            let error = scoped(&zoned).unwrap_err().to_string();
            assert_eq!(error, format!("no such interface: {zone}"));
        }
        let zoned: ZonedAddress = "127.0.0.1:9".parse().unwrap();
        assert_eq!(scoped(&zoned).unwrap(), zoned.address);
    }
}
