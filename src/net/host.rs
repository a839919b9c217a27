//! Name, file limits and free ports of the host.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Upper limit of the open files that are reserved for the store and the API. They get an eighth of
/// all, so that many measurements do not make the API unusable.
const RESERVED_FILES: u64 = 64;

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
    limit - RESERVED_FILES.min(limit / 8)
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
