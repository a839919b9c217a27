//! Sockets of the API: TCP with or without TLS, and a Unix socket.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, sink},
    net::{TcpListener, TcpStream, UnixListener},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Connection, Peer},
    settings::ApiSettings,
    tls::{Reloading, TlsError, common_name},
};
use crate::{model::ZonedAddress, net::scoped, supervise::Tasks};

/// Length of the accept queue of each socket.
const ACCEPTED: usize = 16;
/// Limit of a TLS handshake; a slower one is aborted.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Limits of what is read from a client behind a handshake that failed.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_OCTETS: u64 = 64 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
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
}

/// The open sockets of the API.
#[derive(Debug)]
pub struct ApiListener {
    tcp: Vec<TcpListener>,
    unix: Option<(UnixListener, SocketFile)>,
    tls: Option<Arc<Reloading>>,
}

/// File of the Unix socket, removed on drop.
#[derive(Debug)]
struct SocketFile(PathBuf);

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
        Ok(Self { tcp, unix, tls })
    }

    /// Returns the bound TCP addresses; a configured port 0 is replaced by the actual port.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Accepts connections on all sockets.
    pub(super) fn accept(self, tasks: &Tasks) -> ReceiverStream<io::Result<Connection>> {
        let (sender, receiver) = mpsc::channel(ACCEPTED);
        for listener in self.tcp {
            let accept = accept_tcp(listener, self.tls.clone(), sender.clone(), tasks.clone());
            tasks.spawn("API listener", accept);
        }
        if let Some((listener, file)) = self.unix {
            let accept = accept_unix(listener, file, sender, tasks.token());
            tasks.spawn("API listener", accept);
        }
        ReceiverStream::new(receiver)
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

type Sender = mpsc::Sender<io::Result<Connection>>;

async fn accept_tcp(
    listener: TcpListener,
    tls: Option<Arc<Reloading>>,
    sender: Sender,
    tasks: Tasks,
) {
    let token = tasks.token();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = token.cancelled() => return,
        };
        match accepted {
            Ok((stream, address)) => {
                let _ = stream.set_nodelay(true);
                let peer = Peer { address: address.to_string(), common_name: None };
                match tls.clone() {
                    None => {
                        if sender.send(Ok(Connection::new(stream, peer))).await.is_err() {
                            return;
                        }
                    }
                    // Each handshake has its own task, so that a slow one delays no other.
                    Some(tls) => {
                        tasks
                            .spawn("TLS handshake", shake_hands(stream, tls, peer, sender.clone()));
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept API connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn shake_hands(stream: TcpStream, tls: Arc<Reloading>, peer: Peer, sender: Sender) {
    match timeout(HANDSHAKE, tls.acceptor().accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let common_name = certificates.and_then(|chain| common_name(chain.first()?));
            let _ = sender.send(Ok(Connection::new(stream, Peer { common_name, ..peer }))).await;
        }
        Ok(Err((error, stream))) => {
            tracing::info!(peer = peer.address, %error, "TLS handshake failed");
            linger(stream).await;
        }
        Err(_) => tracing::info!(peer = peer.address, "TLS handshake timed out"),
    }
}

/// Reads what the client has sent already. A socket that is closed with octets unread is reset, and
/// a reset takes the alert from the client's side before it is read.
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_ok() {
        let mut rest = stream.take(LINGER_OCTETS);
        let _ = timeout(LINGER, copy(&mut rest, &mut sink())).await;
    }
}

async fn accept_unix(
    listener: UnixListener,
    _file: SocketFile,
    sender: Sender,
    token: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = token.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let user = stream.peer_cred().map(|peer| format!(" uid {}", peer.uid()));
                let address = format!("unix{}", user.unwrap_or_default());
                let peer = Peer { address, common_name: None };
                if sender.send(Ok(Connection::new(stream, peer))).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept API connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
