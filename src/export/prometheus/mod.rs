//! The page of metrics for Prometheus: HTTP, and nothing but `GET /metrics`.

mod families;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE,
    server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{ExporterStates, state::Run};
use crate::{net::tcp, proto, results::Results};

/// Connections at a time; others wait.
const CONNECTIONS: usize = 16;
/// Time for a client to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the whole exchange, with the response read.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Sources of the metrics.
#[derive(Clone)]
pub struct Sources {
    /// Statistics and the log.
    pub results: Arc<Results>,
    /// States of the exporters.
    pub states: Arc<ExporterStates>,
    /// States of the control connections.
    pub connections: Arc<dyn Fn() -> Vec<proto::Connection> + Send + Sync>,
    /// The same for the server role; nothing where there is none.
    pub server: Arc<dyn Fn() -> Option<proto::GetServerStatusResponse> + Send + Sync>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// Serves until the token is cancelled; an address that is not there is waited for.
pub(super) async fn serve(
    address: SocketAddr,
    sources: Sources,
    run: Run,
    token: CancellationToken,
) {
    let listener = loop {
        match tcp::listen(address, None) {
            Ok(listener) => break listener,
            Err(error) => run.failed(&format!("{address}: {error}")),
        }
        tokio::select! {
            () = sleep(LISTEN_AGAIN) => {}
            () = token.cancelled() => return,
        }
    };
    run.running();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = token.cancelled() => return,
        };
        let Ok(place) = place else { return };
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
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "metrics: not accepted");
                sleep(LISTEN_AGAIN).await;
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
        // One page, and the place is free.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(ANSWER_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "metrics: connection"),
        Err(_) => tracing::debug!("metrics: a client did not take its page in time"),
    }
}

async fn respond(
    request: Request<Incoming>,
    sources: Sources,
    run: Run,
) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let told = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(text.into()));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(told(StatusCode::NOT_FOUND, "the metrics are at /metrics\n".into()));
    }
    if request.method() != Method::GET {
        return Ok(told(StatusCode::METHOD_NOT_ALLOWED, "GET alone\n".into()));
    }
    // It may be megabytes of text.
    let results = sources.results.clone();
    let page = tokio::task::spawn_blocking(move || families::page(&sources)).await;
    // A counter that went back after a kill would look like one that began anew.
    results.settle().await;
    Ok(match page {
        Ok(Ok(page)) => {
            run.delivered(1, 0, "");
            let mut response = told(StatusCode::OK, page);
            let content = hyper::header::HeaderValue::from_static(OPENMETRICS);
            response.headers_mut().insert(CONTENT_TYPE, content);
            response
        }
        Ok(Err(_)) | Err(_) => {
            told(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n".into())
        }
    })
}
