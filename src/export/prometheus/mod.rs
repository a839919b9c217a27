//! Metrics page for Prometheus: an HTTP server that answers only GET and HEAD of `/metrics`.

mod families;
mod format;

use std::{convert::Infallible, sync::Arc, time::Duration};

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
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{ExporterStates, otlp::FindPeer, state::Run};
use crate::{
    model::ZonedAddress,
    net::{scoped, tcp},
    proto,
    results::Results,
};
use format::Format;

/// Maximum number of connections served at a time; further connections wait.
const CONNECTIONS: usize = 16;
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
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit,
            () = token.cancelled() => return,
        };
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = token.cancelled() => return,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (sources, run) = (sources.clone(), run.clone());
                connections.spawn(async move {
                    answer(stream, sources, run).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "failed to accept metrics connection");
                sleep(LISTEN_RETRY).await;
            }
        }
    }
}

async fn answer<S>(stream: S, sources: Sources, run: Run)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| respond(request, sources.clone(), run.clone()));
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
    sources: Sources,
    run: Run,
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
    let page = tokio::task::spawn_blocking(move || {
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
