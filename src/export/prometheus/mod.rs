//! Metrics page for Prometheus: an HTTP server that answers only GET and HEAD of `/metrics`.

mod families;
mod format;

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue, VARY},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{ExporterStates, otlp::FindPeer, state::Run};
use crate::{
    model::ZonedAddress,
    net::{
        scoped,
        tcp::{self, TcpStream},
    },
    proto,
    results::Results,
};
use format::Format;

/// Maximum number of open connections.
const CONNECTIONS: usize = 16;
/// Maximum number of pages that are made at a time. A page may have megabytes.
const PAGES: usize = 4;
/// Time for a client to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit of a connection, including the transfer of the response.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after the address could not be bound or a connection could not be accepted.
const LISTEN_RETRY: Duration = Duration::from_secs(1);

/// Sources of the metrics, apart from the records of the log.
#[derive(Clone)]
pub struct Sources {
    /// Statistics and the log.
    pub results: Arc<Results>,
    /// States of the exporters.
    pub states: Arc<ExporterStates>,
    /// States of the control connections.
    pub connections: Arc<dyn Fn() -> Vec<proto::Connection> + Send + Sync>,
    /// Peers of connections and sessions.
    pub peer: FindPeer,
    /// State of the server role; `None` if there is none.
    pub server: Arc<dyn Fn() -> Option<proto::GetServerStatusResponse> + Send + Sync>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// Serves until the token is cancelled; retries while the address cannot be bound.
pub(super) async fn serve(
    address: ZonedAddress,
    sources: Sources,
    run: Run,
    token: CancellationToken,
) {
    let listener = loop {
        match scoped(&address).and_then(|address| tcp::listen(address, None)) {
            Ok(listener) => break listener,
            Err(error) => run.record_failure(&format!("{address}: {error}")),
        }
        tokio::select! {
            () = sleep(LISTEN_RETRY) => {}
            () = token.cancelled() => return,
        }
    };
    run.set_running();
    let mut scrapes = Scrapes::new(sources, run);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = token.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => scrapes.admit(stream),
            Err(error) => {
                tracing::debug!(%error, "failed to accept metrics connection");
                sleep(LISTEN_RETRY).await;
            }
        }
    }
}

/// Connections that are open.
struct Scrapes {
    page: Page,
    tasks: JoinSet<()>,
    /// The oldest first, and whether it has sent its request.
    open: VecDeque<(AbortHandle, Arc<AtomicBool>)>,
}

impl Scrapes {
    fn new(sources: Sources, run: Run) -> Self {
        let page = Page { sources, run, permits: Arc::new(Semaphore::new(PAGES)) };
        Self { page, tasks: JoinSet::new(), open: VecDeque::new() }
    }

    /// Serves a connection. If there are too many, it takes the place of the oldest that has sent no
    /// request, so that silent clients keep nobody out. Without such a one it is closed.
    fn admit(&mut self, stream: TcpStream) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(task, _)| !task.is_finished());
        if self.open.len() >= CONNECTIONS {
            let silent = self.open.iter().position(|(_, has_request)| !has_request.load(Relaxed));
            let Some((task, _)) = silent.and_then(|index| self.open.remove(index)) else { return };
            task.abort();
        }
        let has_request = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(answer(stream, self.page.clone(), has_request.clone()));
        self.open.push_back((task, has_request));
    }
}

/// The page of metrics and what is needed to make it.
#[derive(Clone)]
struct Page {
    sources: Sources,
    run: Run,
    permits: Arc<Semaphore>,
}

async fn answer<S>(stream: S, page: Page, has_request: Arc<AtomicBool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        has_request.store(true, Relaxed);
        respond(request, page.clone())
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        // An idle client would occupy one of the few connections.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(ANSWER_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "metrics connection failed"),
        Err(_) => tracing::debug!("metrics client timed out"),
    }
}

async fn respond(
    request: Request<Incoming>,
    Page { sources, run, permits }: Page,
) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let plain = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(text.into()));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "not found: the metrics are at /metrics\n".into()));
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let text = "method not allowed: use GET or HEAD\n";
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, text.into()));
    }
    let format = Format::accepted(request.headers().get_all(ACCEPT).iter());
    // The page may have megabytes of text.
    let results = sources.results.clone();
    let permit = permits.acquire_owned().await;
    let page = tokio::task::spawn_blocking(move || {
        // Kept until the page is complete, also if the client is gone.
        let _permit = permit;
        families::page(&sources).map(|page| format.render(page))
    })
    .await;
    // Statistics are persisted before they are shown: a counter that decreases after a crash would
    // look like a reset.
    results.persist_statistics().await;
    Ok(match page {
        Ok(Ok(page)) => {
            run.record_delivery(1, 0, "");
            let mut response = plain(StatusCode::OK, page);
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, format.content_type());
            headers.insert(VARY, HeaderValue::from_static("accept"));
            response
        }
        Ok(Err(_)) | Err(_) => {
            plain(StatusCode::INTERNAL_SERVER_ERROR, "failed to write the metrics\n".into())
        }
    })
}
