//! Limits on the octets of requests: of each, and of all at a time.

use std::time::Duration;

use hyper::{Request, Response};
use tonic::body::Body;

use super::{
    Layer, Service,
    body::{BodyLimits, LimitedBody},
    call::call,
    pass,
};
use crate::model::limits::{MAXIMUM_CALL_OCTETS, MAXIMUM_REQUEST_OCTETS};

/// Octets of all requests that are not answered: one of the longest, and many of the others.
const OCTETS_IN_FLIGHT: usize = 96 << 20;
/// Octets of all requests of a stream to reflection, and of one to health.
const OTHER_OCTETS: usize = 64 << 10;
/// Time in which a request must be complete.
const BODY_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(super) struct Size;

impl Layer for Size {
    async fn answer(&self, request: Request<Body>, next: Service) -> Response<Body> {
        let Some(call) = call(&request) else { return pass(request, next).await };
        let octets = match call.method.name {
            "ApplyConfig" => MAXIMUM_REQUEST_OCTETS,
            _ if call.method.is_own() => MAXIMUM_CALL_OCTETS,
            _ => OTHER_OCTETS,
        };
        let limits = BodyLimits {
            octets,
            octets_in_flight: OCTETS_IN_FLIGHT,
            // Reflection asks as long as its caller wants.
            time: call.method.is_own().then_some(BODY_LIMIT),
        };
        let request = request.map(|body| Body::new(LimitedBody::new(body, call, limits)));
        pass(request, next).await
    }
}
