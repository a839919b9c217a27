//! Requests to the commit actor.

use tokio::sync::{mpsc, oneshot};

use super::error::ApplyError;
use crate::{
    control::admission::Admission,
    proto::{ApplyConfigRequest, ApplyConfigResponse, RollbackConfigRequest},
};

/// Sender of the answer to one request.
pub(in crate::control) type ReplySender<T> = oneshot::Sender<Result<T, ApplyError>>;

/// Request to the actor: the change, its author, and the channel for the answer.
#[derive(Debug)]
pub(in crate::control) enum Commit {
    Apply(Box<ApplyConfigRequest>, String, Admission, ReplySender<ApplyConfigResponse>),
    Rollback(RollbackConfigRequest, String, ReplySender<ApplyConfigResponse>),
    Confirm(u64, String, ReplySender<u64>),
}

impl Commit {
    /// Answers the request with an error. The client may have given up already.
    pub(super) fn refuse(self, error: ApplyError) {
        match self {
            Self::Apply(.., reply) | Self::Rollback(_, _, reply) => {
                drop(reply.send(log_error(Err(error))));
            }
            Self::Confirm(_, _, reply) => drop(reply.send(log_error(Err(error)))),
        }
    }
}

/// Sends a request to the actor and waits for its answer.
pub(in crate::control) async fn send_request<T>(
    commits: &mpsc::Sender<Commit>,
    request: impl FnOnce(ReplySender<T>) -> Commit,
) -> Result<T, ApplyError> {
    let (reply, answer) = oneshot::channel();
    commits.send(request(reply)).await.map_err(|_| ApplyError::Ending)?;
    answer.await.map_err(|_| ApplyError::Ending)?
}

/// Logs the error of a request. Only a failed store needs attention: the other errors are mistakes in
/// the request, which its author sees.
pub(super) fn log_error<T>(result: Result<T, ApplyError>) -> Result<T, ApplyError> {
    match &result {
        Ok(_) => {}
        Err(ApplyError::Store(error)) => {
            tracing::warn!(%error, "failed to read or store the configuration");
        }
        Err(error) => tracing::info!(%error, "configuration request refused"),
    }
    result
}
