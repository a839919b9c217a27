//! Sockets of the API: TCP with or without TLS, and a Unix socket.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::PathBuf,
    sync::Arc,
};

use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};

use super::{
    settings::ApiSettings,
    tls::{Reloading, TlsError},
    tokens::{TokenError, Tokens},
};
use crate::{model::ZonedAddress, net::scoped};

/// Mode of the Unix socket: its owner and its group may connect.
const SOCKET_MODE: u32 = 0o660;

/// Reason for which the API cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A port or a path cannot be bound.
    #[error("API on {address}: {source}")]
    Address {
        /// TCP address or path of the Unix socket.
        address: String,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A TCP address is reachable from other hosts, and TLS is not configured.
    #[error(
        "API on {0}: other hosts could command this agent without TLS; set [api.tls], listen on a \
         loopback address, or set allow_remote_without_tls = true"
    )]
    RemoteWithoutTls(ZonedAddress),
    /// Neither a TCP address nor a Unix socket is configured.
    #[error("API: nothing to listen on: set listen or unix_socket in [api]")]
    Nowhere,
    /// A PEM file is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file of tokens is unusable.
    #[error(transparent)]
    Tokens(#[from] TokenError),
}

/// The open sockets of the API.
#[derive(Debug)]
pub struct ApiListener {
    pub(super) tcp: Vec<TcpListener>,
    pub(super) unix: Option<(UnixListener, SocketFile)>,
    pub(super) tls: Option<Arc<Reloading>>,
    pub(super) tokens: Option<Tokens>,
}

/// File of the Unix socket, removed on drop.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl ApiListener {
    /// Binds the TCP addresses and the Unix socket.
    pub async fn open(settings: &ApiSettings) -> Result<Self, ListenError> {
        if settings.listen.is_empty() && settings.unix_socket.is_none() {
            return Err(ListenError::Nowhere);
        }
        let mut tcp = Vec::new();
        for address in &settings.listen {
            let ip = address.address.ip().to_canonical();
            let open_to_others = !ip.is_loopback();
            if open_to_others && settings.tls.is_none() && !settings.allow_remote_without_tls {
                return Err(ListenError::RemoteWithoutTls(address.clone()));
            }
            let scoped = scoped(address).map_err(|source| failed(address, source))?;
            let listener = TcpListener::bind(scoped).await;
            tcp.push(listener.map_err(|source| failed(address, source))?);
        }
        let tls = settings.tls.clone().map(Reloading::new).transpose()?.map(Arc::new);
        let unix = match &settings.unix_socket {
            None => None,
            Some(path) => Some(open_unix(path).map_err(|source| failed(path.display(), source))?),
        };
        let tokens = settings.tokens.as_deref().map(Tokens::open).transpose()?;
        Ok(Self { tcp, unix, tls, tokens })
    }

    /// Returns the bound TCP addresses; a configured port 0 is replaced by the actual port.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }
}

fn failed(address: impl ToString, source: io::Error) -> ListenError {
    ListenError::Address { address: address.to_string(), source }
}

/// Removes the socket file of an agent that no longer runs; a socket in use is left alone.
fn open_unix(path: &PathBuf) -> io::Result<(UnixListener, SocketFile)> {
    let left = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if left && std::os::unix::net::UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.clone());
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok((listener, file))
}
