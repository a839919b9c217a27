//! What the host says of itself, and what it allows.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Of the files that may be open an eighth, and not more than so many, are for the store and for those
/// who manage the agent: measurements that are too many must not lock them out.
const RESERVED_FILES: u64 = 64;

/// Raises the number of open files to what is allowed at most, which for root is what the kernel
/// allows: each connection and each session has a socket. What it is then.
pub fn raise_open_files() -> u64 {
    let of_kernel = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
    let of_kernel = of_kernel.and_then(|most| most.trim().parse().ok());
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        let most = hard.max(of_kernel.unwrap_or(hard));
        setrlimit(Resource::RLIMIT_NOFILE, most, most)
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the number of open files");
    }
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// How many files may be open for measurements: as many sockets.
pub fn files_for_measurements() -> u64 {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    limit - RESERVED_FILES.min(limit / 8)
}

/// How many files are open.
pub fn open_files() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64)
}

/// An error where a socket was made that is one too many. The kernel gives the lowest number that is
/// free, so all below are open.
pub(super) fn spare_files(socket: &impl AsFd) -> io::Result<()> {
    let most = files_for_measurements();
    if (socket.as_fd().as_raw_fd() as u64) < most {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{most} files are open, the most for measurements: see LimitNOFILE"
    )))
}

/// The kernel's number of a network interface; `None` where there is none of this name.
pub fn interface_index(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// Name of the host; empty where it has none that is text.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// A port that is free on the loopback address for TCP and UDP, for now.
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
