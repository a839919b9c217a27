//! Where the API listens: TCP with or without TLS, and a Unix socket.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Connection, Peer},
    tls::{Reloading, TlsError, common_name},
};
use crate::supervise::Tasks;

/// Connections that wait for the server.
const ACCEPTED: usize = 16;
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Owner and group may speak to the agent.
const SOCKET_MODE: u32 = 0o660;

/// Where and how the API is offered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiSettings {
    /// TCP addresses.
    pub listen: Vec<SocketAddr>,
    /// Path of a Unix socket; none by default.
    pub unix_socket: Option<PathBuf>,
    /// TLS for all TCP addresses; none by default.
    pub tls: Option<TlsSettings>,
    /// Offer the API without TLS to other hosts. Whoever reaches the port commands the agent.
    pub allow_remote_without_tls: bool,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 9862))],
            unix_socket: None,
            tls: None,
            allow_remote_without_tls: false,
        }
    }
}

/// PEM files. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// Certificate of the agent, followed by those that lead to its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Roots of client certificates; with it, only clients with such a certificate are served.
    pub client_ca: Option<PathBuf>,
}

/// Why the API is not offered.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A port or path is not to be had.
    #[error("API on {address}: {source}")]
    Address {
        /// Address or path.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Open to other hosts.
    #[error(
        "API on {0}: other hosts could command this agent without TLS. Give [api.tls] in the \
         settings, listen on a loopback address, or say allow_remote_without_tls = true"
    )]
    RemoteWithoutTls(SocketAddr),
    /// Nobody could command the agent.
    #[error("API: neither [api] listen nor unix_socket names a place to listen on")]
    Nowhere,
    /// The PEM files.
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

/// Takes the file of a Unix socket away with the agent.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl ApiListener {
    /// Opens all sockets.
    pub async fn open(settings: &ApiSettings) -> Result<Self, ListenError> {
        if settings.listen.is_empty() && settings.unix_socket.is_none() {
            return Err(ListenError::Nowhere);
        }
        let mut tcp = Vec::new();
        for address in &settings.listen {
            let open_to_others = !address.ip().to_canonical().is_loopback();
            if open_to_others && settings.tls.is_none() && !settings.allow_remote_without_tls {
                return Err(ListenError::RemoteWithoutTls(*address));
            }
            let listener = TcpListener::bind(address).await;
            tcp.push(listener.map_err(|source| failed(address, source))?);
        }
        let tls = settings.tls.clone().map(Reloading::new).transpose()?.map(Arc::new);
        let unix = match &settings.unix_socket {
            None => None,
            Some(path) => Some(open_unix(path).map_err(|source| failed(path.display(), source))?),
        };
        Ok(Self { tcp, unix, tls })
    }

    /// The TCP addresses, with the ports that port 0 became.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Accepts on all sockets.
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

/// A socket that an agent left which is no more is in the way and goes; one that is in use stays.
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
                    // Beside the others: a slow handshake holds up nobody else.
                    Some(tls) => {
                        tasks
                            .spawn("TLS handshake", shake_hands(stream, tls, peer, sender.clone()));
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the API");
                sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn shake_hands(stream: TcpStream, tls: Arc<Reloading>, peer: Peer, sender: Sender) {
    match timeout(HANDSHAKE, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let common_name = certificates.and_then(|chain| common_name(chain.first()?));
            let _ = sender.send(Ok(Connection::new(stream, Peer { common_name, ..peer }))).await;
        }
        Ok(Err(error)) => tracing::info!(peer = peer.address, %error, "TLS handshake"),
        Err(_) => tracing::info!(peer = peer.address, "TLS handshake took too long"),
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
                tracing::warn!(%error, "cannot accept a connection to the API");
                sleep(ACCEPT_REST).await;
            }
        }
    }
}
