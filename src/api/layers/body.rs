//! Bodies of requests and answers that are watched on their way.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Code, Status, body::Body};

use super::call::Call;

/// Octets in front of a message (gRPC over HTTP/2, Length-Prefixed-Message).
const PREFIX_OCTETS: usize = 5;

/// Body of an answer; its end is the end of the call.
#[derive(Debug)]
pub(super) struct ObservedBody {
    body: Body,
    call: Arc<Call>,
}

impl ObservedBody {
    pub(super) fn new(body: Body, call: Arc<Call>) -> Self {
        Self { body, call }
    }
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let trailers = frame.trailers_ref();
                if let Some(status) = trailers.and_then(Status::from_header_map) {
                    self.call.finish(status.code());
                }
            }
            Some(Err(status)) => self.call.finish(status.code()),
            None => self.call.finish(Code::Ok),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Limits of the body of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    /// Octets of the message in this body.
    pub(super) octets: usize,
    /// Octets of all bodies whose calls are not answered.
    pub(super) octets_in_flight: usize,
    /// Time from its first octet to its end, if that is limited.
    pub(super) time: Option<Duration>,
}

/// Body of a request with limits.
#[derive(Debug)]
pub(super) struct LimitedBody {
    body: Body,
    call: Arc<Call>,
    limits: BodyLimits,
    octets: usize,
    /// Set when it is read for the first time, since a request may wait for its turn.
    due: Option<Pin<Box<Sleep>>>,
}

impl LimitedBody {
    pub(super) fn new(body: Body, call: Arc<Call>, limits: BodyLimits) -> Self {
        Self { body, call, limits, octets: 0, due: None }
    }

    fn too_long(&self, octets: usize) -> Status {
        let (name, limit) = (self.call.method.name, self.limits.octets);
        Status::resource_exhausted(format!("{name}: request of {octets} octets; at most {limit}"))
    }

    /// Counts the octets of a frame; the error is the refusal.
    fn count(&mut self, octets: usize) -> Result<(), Status> {
        self.octets += octets;
        let BodyLimits { octets: limit, octets_in_flight, .. } = self.limits;
        if self.octets > limit + PREFIX_OCTETS {
            return Err(self.too_long(self.octets));
        }
        if !self.call.add_octets(octets, octets_in_flight) {
            return Err(Status::resource_exhausted(format!(
                "requests of {octets_in_flight} octets are in progress: try again later"
            )));
        }
        Ok(())
    }
}

/// Returns the length of a message as its prefix declares it (gRPC over HTTP/2,
/// Length-Prefixed-Message), which comes at the beginning of the first frame.
fn declared_octets(first: &Bytes) -> Option<usize> {
    let [_, length @ ..] = first.first_chunk::<PREFIX_OCTETS>()?;
    Some(u32::from_be_bytes(*length) as usize)
}

impl HttpBody for LimitedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let octets =
                frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref().map(Bytes::len));
            let declared = frame
                .as_ref()
                .and_then(|frame| declared_octets(frame.as_ref().ok()?.data_ref()?))
                .filter(|_| self.octets == 0);
            let counted = match declared.filter(|declared| *declared > self.limits.octets) {
                Some(declared) => Err(self.too_long(declared)),
                None => self.count(octets.unwrap_or(0)),
            };
            return Poll::Ready(match counted {
                Ok(()) => frame,
                Err(refused) => Some(Err(refused)),
            });
        }
        let Some(time) = self.limits.time else { return Poll::Pending };
        let due = self.due.get_or_insert_with(|| Box::pin(sleep(time)));
        ready!(due.as_mut().poll(context));
        let late = format!("the request was not complete after {time:?}");
        Poll::Ready(Some(Err(Status::deadline_exceeded(late))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
