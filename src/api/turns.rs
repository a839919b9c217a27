//! Turns of ApplyConfig: its requests have megabytes, so only a few are received and decoded at a
//! time, however many calls are open.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tokio::time::timeout;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

use crate::{control::Admissions, model::limits::MAXIMUM_REQUEST_OCTETS};

const LIMITED: &str = "/twamp.agent.v1.ConfigService/ApplyConfig";
/// Longest silence of a client in the middle of its request: others wait for it.
const MAX_SILENCE: Duration = Duration::from_secs(5);
/// Length of the prefix of a message, from which one that is too long is recognised.
const PREFIX_BYTES: usize = 5;

/// A service whose requests of one method wait for their turns.
#[derive(Clone, Debug)]
pub(super) struct InTurn<S> {
    inner: S,
    admissions: Admissions,
}

impl<S> InTurn<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, admissions: Admissions::default() }
    }
}

impl<S: NamedService> NamedService for InTurn<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for InTurn<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != LIMITED {
            return Box::pin(self.inner.call(request));
        }
        // The service that is ready is the one to be called.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let admissions = self.admissions.clone();
        Box::pin(async move {
            let admission = admissions.admit().await;
            let (mut parts, body) = request.into_parts();
            match received(body).await {
                Ok(body) => {
                    parts.extensions.insert(admission);
                    inner.call(http::Request::from_parts(parts, body)).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// Receives a request whole, or as much as shows that it is too long.
async fn received(mut body: Body) -> Result<Body, Status> {
    let mut octets = Vec::new();
    while octets.len() <= MAXIMUM_REQUEST_OCTETS + PREFIX_BYTES {
        let frame = timeout(MAX_SILENCE, body.frame()).await.map_err(|_| {
            Status::deadline_exceeded(format!(
                "the request did not arrive: nothing came for {} s",
                MAX_SILENCE.as_secs()
            ))
        })?;
        match frame {
            None => break,
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    octets.extend_from_slice(&data);
                }
            }
            Some(Err(status)) => return Err(status),
        }
    }
    Ok(Body::new(Full::new(Bytes::from(octets))))
}
