//! Layers around the services, in the order in which a request passes them: account, role, load,
//! deadline, size. Each can refuse a request before the next one works.

mod account;
mod body;
mod call;
mod deadline;
mod load;
mod method;
mod role;
mod size;

use std::{convert::Infallible, future::Future, sync::Arc};

use hyper::{Request, Response};
use tonic::{body::Body, service::Routes};
use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};

pub(super) use call::{Account, author, caller};
use deadline::Deadline;
use load::Load;
use role::RoleCheck;
pub(super) use role::check_role;
use size::Size;

use super::identity::Identities;

/// The API with its layers.
pub(super) type Service = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// A layer: answers a request itself, or passes it on and changes the answer.
trait Layer: Clone + Send + Sync + 'static {
    /// Answers a request, with the help of the layers behind this one or without.
    fn answer(
        &self,
        request: Request<Body>,
        next: Service,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// Returns the services with all layers around them.
pub(super) fn layered(routes: Routes, account: Account, identities: &Arc<Identities>) -> Service {
    let service = BoxCloneSyncService::new(routes);
    let service = with(Size, service);
    let service = with(Deadline, service);
    let service = with(Load::new(), service);
    let service = with(RoleCheck::new(identities.clone()), service);
    with(account, service)
}

fn with(layer: impl Layer, next: Service) -> Service {
    BoxCloneSyncService::new(service_fn(move |request| {
        let (layer, next) = (layer.clone(), next.clone());
        async move { Ok(layer.answer(request, next).await) }
    }))
}

/// Passes a request to the layers behind.
async fn pass(request: Request<Body>, next: Service) -> Response<Body> {
    match next.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
