//! The outermost layer: makes the call of a request, and records its end.

use std::sync::Arc;

use hyper::{Request, Response};
use tonic::{Status, body::Body};

use super::{
    Layer, Service,
    body::ObservedBody,
    call::{Account, Call},
    pass,
};

impl Layer for Account {
    async fn answer(&self, mut request: Request<Body>, next: Service) -> Response<Body> {
        let call = Arc::new(Call::new(&request, self.clone()));
        request.extensions_mut().insert(call.clone());
        let response = pass(request, next).await;
        // Refusals have their status in the head of the answer, others behind it.
        if let Some(status) = Status::from_header_map(response.headers()) {
            call.finish(status.code());
        } else {
            call.answered();
        }
        response.map(|body| Body::new(ObservedBody::new(body, call)))
    }
}
