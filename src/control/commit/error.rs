//! Errors of configuration changes.

use thiserror::Error;

use crate::{model::Violation, net::ResourceRefusal, store::StoreError};

/// Refusal of a change; the configuration is as before.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The request is not valid.
    #[error("the configuration has {} violations", .0.len())]
    Invalid(Vec<Violation>),
    /// The configuration has changed since the caller read it.
    #[error(
        "expected_revision is {expected}, but the current revision is {current}: \
         read it, and apply the change to it"
    )]
    Stale {
        /// `expected_revision` of the request.
        expected: u64,
        /// Number of the current revision.
        current: u64,
    },
    /// The `request_id` belongs to a request with another document.
    #[error("request_id {0} was used for another document")]
    RequestReused(String),
    /// The revision does not exist or is no longer kept.
    #[error("revision {0} was never made or is no longer kept: see ListRevisions")]
    NoRevision(u64),
    /// The current revision is the first one.
    #[error("no revision before the current one ({0}) to roll back to")]
    NothingBefore(u64),
    /// The revision does not wait to be confirmed.
    #[error("{}", not_waiting(*.asked, *.waiting))]
    NotWaiting {
        /// Revision of the request; 0 for any.
        asked: u64,
        /// Revision that waits to be confirmed.
        waiting: Option<u64>,
    },
    /// The host lacks resources that the document names.
    #[error("this host refuses {} resources that the configuration names", .0.len())]
    Refused(Vec<ResourceRefusal>),
    /// The store failed to commit the revision.
    #[error("failed to store the configuration: {0}")]
    Store(#[from] StoreError),
    /// The agent is shutting down.
    #[error("the agent is shutting down")]
    Ending,
}

fn not_waiting(asked: u64, waiting: Option<u64>) -> String {
    match waiting {
        None => "no revision is pending: it was confirmed, or rolled back after its \
                 confirm_timeout; see ListRevisions"
            .into(),
        Some(waiting) => format!("revision {waiting} is pending, not {asked}"),
    }
}
