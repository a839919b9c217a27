//! Limits on the octets of requests: of each, and of all at a time.

use std::time::Duration;

use hyper::{Request, Response};
use tonic::body::Body;

use super::{
    Layer, Service,
    body::{BodyLimits, LimitedBody},
    call::{Account, call},
    pass,
};
use crate::model::limits::{MAXIMUM_CALL_OCTETS, MAXIMUM_REQUEST_OCTETS};

/// Octets in front of a message (gRPC over HTTP/2, Length-Prefixed-Message).
const PREFIX_OCTETS: usize = 5;
/// Octets of all requests that are not answered: one of the longest, and many of the others.
const OCTETS_IN_FLIGHT: usize = 96 << 20;
/// Time in which a request must be complete.
const BODY_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(super) struct Size(Account);

impl Size {
    pub(super) fn new(account: Account) -> Self {
        Self(account)
    }
}

impl Layer for Size {
    async fn answer(&self, request: Request<Body>, next: Service) -> Response<Body> {
        // Requests to reflection and health may be streams; their own limits are small.
        let Some(call) = call(&request).filter(|call| call.method.is_own()) else {
            return pass(request, next).await;
        };
        let octets = match call.method.name {
            "ApplyConfig" => MAXIMUM_REQUEST_OCTETS,
            _ => MAXIMUM_CALL_OCTETS,
        };
        let limits = BodyLimits {
            octets: octets + PREFIX_OCTETS,
            octets_in_flight: OCTETS_IN_FLIGHT,
            time: BODY_LIMIT,
        };
        let account = self.0.clone();
        let request = request.map(|body| Body::new(LimitedBody::new(body, call, account, limits)));
        pass(request, next).await
    }
}
