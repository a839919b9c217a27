//! Identity of the caller, and the role that the method needs.

use std::sync::Arc;

use hyper::{Request, Response};
use tonic::{Code, Status, body::Body};

use super::{
    super::identity::{Caller, Identities},
    Layer, Service,
    call::call,
    method::Method,
    pass,
};
use crate::proto::{Role, Word};

#[derive(Clone, Debug)]
pub(super) struct RoleCheck(Arc<Identities>);

impl RoleCheck {
    pub(super) fn new(identities: Arc<Identities>) -> Self {
        Self(identities)
    }
}

impl Layer for RoleCheck {
    async fn answer(&self, request: Request<Body>, next: Service) -> Response<Body> {
        let Some(call) = call(&request) else {
            return Status::internal("request without an account").into_http();
        };
        // Asked anew for each request: the owner of a socket on loopback may have gone.
        let caller = self.0.caller(&call.peer.origin, request.headers());
        let refusal = refusal(&caller, call.method);
        let caller = call.caller.get_or_init(|| caller);
        if let Some(status) = refusal {
            tracing::info!(
                identity = caller.identity,
                address = call.peer.address,
                method = call.method.name,
                "API request denied"
            );
            return status.into_http();
        }
        pass(request, next).await
    }
}

/// Returns the refusal of a method; `None` if the caller's role is enough for it.
fn refusal(caller: &Caller, method: &Method) -> Option<Status> {
    let Caller { identity, role } = caller;
    if *role >= method.role {
        return None;
    }
    let (name, needed) = (method.name, word(method.role));
    let (code, has) = match role {
        Role::Unspecified if identity == "anonymous" => {
            (Code::Unauthenticated, "the caller is not identified".to_owned())
        }
        Role::Unspecified => (Code::PermissionDenied, format!("{identity} has no role")),
        Role::Viewer | Role::Collector | Role::Operator | Role::Admin => {
            (Code::PermissionDenied, format!("{identity} has the role {}", word(*role)))
        }
    };
    Some(Status::new(code, format!("{name} needs the role {needed}: {has}")))
}

fn word(role: Role) -> String {
    role.word().to_ascii_lowercase()
}
