//! Identity of the caller, and the role that the method needs.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::{Request, Response};
use tonic::{Code, Extensions, Status, body::Body};

use super::{
    super::{
        identity::{Caller, Identities},
        log_limit::LogLimit,
    },
    Layer, Service,
    call::{Call, call},
    pass,
};
use crate::proto::{Role, Word};

#[derive(Clone, Debug)]
pub(super) struct RoleCheck {
    identities: Arc<Identities>,
    log_limit: Arc<Mutex<LogLimit>>,
}

impl RoleCheck {
    pub(super) fn new(identities: Arc<Identities>) -> Self {
        Self { identities, log_limit: Arc::default() }
    }

    fn log_denial(&self, caller: &Caller, call: &Call) {
        let mut log_limit = self.log_limit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(requests) = log_limit.count() {
            tracing::warn!(
                requests,
                identity = caller.identity,
                address = call.peer.address,
                method = call.method.name,
                "API requests denied; the latest is named"
            );
        }
    }
}

impl Layer for RoleCheck {
    async fn answer(&self, request: Request<Body>, next: Service) -> Response<Body> {
        let Some(call) = call(&request) else {
            return Status::internal("request without an account").into_http();
        };
        let commands = call.method.role > Role::Collector;
        let caller = self.identities.caller(&call.peer.origin, request.headers(), commands);
        let caller = call.caller.get_or_init(|| caller);
        if let Some(status) = refusal(caller, call.method.name, call.method.role) {
            self.log_denial(caller, &call);
            return status.into_http();
        }
        call.accepted(&caller.identity);
        pass(request, next).await
    }
}

/// Checks the role of a caller for what only some requests of a method ask for.
pub(in crate::api) fn check_role(
    extensions: &Extensions,
    name: &str,
    role: Role,
) -> Result<(), Status> {
    let caller = extensions.get::<Arc<Call>>().and_then(|call| call.caller());
    let caller = caller.ok_or_else(|| Status::internal("request without a caller"))?;
    refusal(caller, name, role).map_or(Ok(()), Err)
}

/// Returns the refusal of what needs a role; `None` if the caller has it, or a higher one.
fn refusal(caller: &Caller, name: &str, needed: Role) -> Option<Status> {
    let Caller { identity, role } = caller;
    if *role >= needed {
        return None;
    }
    let needed = word(needed);
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

#[cfg(test)]
mod tests {
    use super::{super::method::METHODS, *};

    #[test]
    fn every_method_is_open_to_its_role_and_the_higher_ones_alone() {
        let roles = [Role::Unspecified, Role::Viewer, Role::Collector, Role::Operator, Role::Admin];
        for identity in ["uid:1000", "cert:noc", "anonymous"] {
            for (method, role) in METHODS.iter().flat_map(|m| roles.map(|role| (m, role))) {
                let caller = Caller { identity: identity.to_owned(), role };
                let refusal = refusal(&caller, method.name, method.role);
                assert_eq!(refusal.is_none(), role >= method.role, "{} {role:?}", method.name);
                let Some(status) = refusal else { continue };
                let is_unknown = role == Role::Unspecified && identity == "anonymous";
                let code = if is_unknown { Code::Unauthenticated } else { Code::PermissionDenied };
                assert_eq!(status.code(), code);
                assert!(status.message().contains(&word(method.role)), "{}", status.message());
            }
        }
    }
}
