//! Connections of the API: accepted, limited in number and time, and served over HTTP/2.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, interval, sleep, sleep_until, timeout},
};
use tonic::body::Body;
use tower::ServiceExt;

use super::{
    admission::{Admission, Place},
    connection::{Connection, Peer},
    identity::{Identities, Origin, certificate_identity},
    layers::Service,
    listen::{ApiListener, SocketFile},
    log_limit::LogLimit,
    tls::{Reloading, linger},
};
use crate::{net::random, supervise::Tasks};

/// Limit of a TLS handshake, and of the HTTP/2 preface after it.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Interval of HTTP/2 pings on idle connections, and the time limit of their answer: the stream of
/// a collector that vanished must end.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(20);
/// Time that open requests have to end when the agent stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
/// Age at which a connection is asked to end (GOAWAY), and the random part of it: collectors spread
/// over agents anew, and not all at once.
const MAXIMUM_AGE: Duration = Duration::from_secs(24 * 3600);
const AGE_JITTER_SECONDS: u64 = 2 * 3600;
/// Calls of a connection at a time, and data that may be on its way to each. The window of a
/// connection has space for all of them: requests that wait for their turn do not keep out the data
/// of the one whose turn it is.
const STREAMS: u32 = 100;
const STREAM_WINDOW_OCTETS: u32 = 64 * 1024;
/// Time in which an answer that is no stream must be read, and the interval of the check.
const READ_LIMIT: Duration = Duration::from_secs(30);
const READ_CHECK: Duration = Duration::from_secs(5);
/// Octets of answers that wait in a stream for their reader.
const STREAM_BUFFER_OCTETS: usize = 256 * 1024;
/// Octets of the headers of a request.
const HEADER_OCTETS: u32 = 16 * 1024;
/// Pause after an error of accept(2).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// State shared by all connections.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) service: Service,
    pub(super) admission: Arc<Admission>,
    pub(super) identities: Arc<Identities>,
    pub(super) tasks: Tasks,
}

impl Connections {
    /// Accepts connections on all sockets until the group of tasks ends.
    pub(super) fn accept(self, listener: ApiListener) {
        let ApiListener { tcp, unix, tls, .. } = listener;
        let tasks = self.tasks.clone();
        for listener in tcp {
            tasks.spawn("API listener", self.clone().accept_tcp(listener, tls.clone()));
        }
        if let Some((listener, file)) = unix {
            tasks.spawn("API listener", self.accept_unix(listener, file));
        }
    }

    async fn accept_tcp(self, listener: TcpListener, tls: Option<Arc<Reloading>>) {
        let token = self.tasks.token();
        let mut log_limit = LogLimit::default();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = token.cancelled() => return,
            };
            match accepted {
                Ok((stream, address)) => {
                    let Some(place) = self.admission.admit(Some(address.ip().to_canonical()))
                    else {
                        continue;
                    };
                    let _ = stream.set_nodelay(true);
                    let peer = Peer {
                        address: address.to_string(),
                        origin: self.origin(&stream, address),
                    };
                    let serve = self.clone().serve_tcp(stream, tls.clone(), peer, place);
                    self.tasks.spawn("API connection", serve);
                }
                Err(error) => pause_after(&error, &mut log_limit).await,
            }
        }
    }

    async fn accept_unix(self, listener: tokio::net::UnixListener, _file: SocketFile) {
        let token = self.tasks.token();
        let mut log_limit = LogLimit::default();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = token.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Some(place) = self.admission.admit(None) else { continue };
                    let user = stream.peer_cred().map(|peer| peer.uid());
                    let origin = user.map_or(Origin::Network, Origin::Unix);
                    let peer = Peer { address: "unix".to_owned(), origin };
                    let connection = Connection::new(stream, peer);
                    self.tasks.spawn("API connection", self.clone().serve(connection, place));
                }
                Err(error) => pause_after(&error, &mut log_limit).await,
            }
        }
    }

    /// Returns the origin of a TCP connection before any handshake.
    fn origin(&self, stream: &TcpStream, client: SocketAddr) -> Origin {
        let canonical =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        match stream.local_addr() {
            Ok(own) if client.ip().to_canonical().is_loopback() => {
                Origin::Loopback(self.identities.loopback(canonical(client), canonical(own)))
            }
            _ => Origin::Network,
        }
    }

    /// Serves a TCP connection, after its TLS handshake if there is one.
    async fn serve_tcp(
        self,
        stream: TcpStream,
        tls: Option<Arc<Reloading>>,
        peer: Peer,
        place: Place,
    ) {
        let Some(tls) = tls else {
            return self.serve(Connection::new(stream, peer), place).await;
        };
        let shaken = tokio::select! {
            shaken = timeout(HANDSHAKE_LIMIT, tls.acceptor().accept(stream).into_fallible()) => shaken,
            () = place.displaced() => return,
        };
        match shaken {
            Ok(Ok(stream)) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let name = certificates.and_then(|chain| certificate_identity(chain.first()?));
                let origin = match (name, peer.origin) {
                    (Some(name), _) => Origin::Certificate(name),
                    (None, Origin::Network) => Origin::Tls,
                    (None, local) => local,
                };
                self.serve(Connection::new(stream, Peer { address: peer.address, origin }), place)
                    .await;
            }
            Ok(Err((error, stream))) => {
                tracing::info!(peer = peer.address, %error, "TLS handshake failed");
                linger(stream).await;
            }
            Err(_) => tracing::debug!(peer = peer.address, "TLS handshake timed out"),
        }
    }

    async fn serve(self, connection: Connection, place: Place) {
        let (peer, preface) = (connection.peer(), connection.preface());
        let place = Arc::new(place);
        let service = {
            let (service, place) = (self.service, place.clone());
            service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(peer.clone());
                request.extensions_mut().insert(place.clone());
                service.clone().oneshot(request.map(Body::new))
            })
        };
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(KEEPALIVE_INTERVAL))
            .keep_alive_timeout(KEEPALIVE_LIMIT)
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(STREAM_WINDOW_OCTETS)
            .initial_connection_window_size((STREAMS + 1) * STREAM_WINDOW_OCTETS)
            .max_send_buf_size(STREAM_BUFFER_OCTETS)
            .max_header_list_size(HEADER_OCTETS);
        let mut http = pin!(builder.serve_connection(TokioIo::new(connection), service));
        let token = self.tasks.token();
        let mut is_ending = false;
        let mut preface_due = pin!(sleep(HANDSHAKE_LIMIT));
        let mut age_due = pin!(sleep(maximum_age()));
        let mut read_check = interval(READ_CHECK);
        let mut drained = pin!(sleep_until(far()));
        loop {
            tokio::select! {
                served = &mut http => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "API connection failed");
                    }
                    return;
                }
                () = place.displaced() => return,
                _ = read_check.tick() => {
                    if place.has_unread_answer(READ_LIMIT) {
                        tracing::debug!("API client does not read its answers");
                        return;
                    }
                }
                () = &mut preface_due => {
                    if !preface.is_complete() {
                        return;
                    }
                    preface_due.as_mut().reset(far());
                }
                () = &mut age_due => {
                    http.as_mut().graceful_shutdown();
                    age_due.as_mut().reset(far());
                }
                () = token.cancelled(), if !is_ending => {
                    is_ending = true;
                    http.as_mut().graceful_shutdown();
                    drained.as_mut().reset(Instant::now() + DRAIN_LIMIT);
                }
                () = &mut drained => {
                    tracing::debug!("requests still open at shutdown");
                    return;
                }
            }
        }
    }
}

fn maximum_age() -> Duration {
    MAXIMUM_AGE + Duration::from_secs(random::number() % AGE_JITTER_SECONDS)
}

/// Returns a time that does not come while the connection lives.
fn far() -> Instant {
    Instant::now() + 2 * MAXIMUM_AGE
}

/// Pauses after an error of accept(2), which may repeat immediately.
async fn pause_after(error: &io::Error, log_limit: &mut LogLimit) {
    if let Some(errors) = log_limit.count() {
        tracing::warn!(%error, errors, "failed to accept API connection");
    }
    sleep(ACCEPT_PAUSE).await;
}
