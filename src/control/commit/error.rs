//! Why a change of the configuration is not made.

use thiserror::Error;

use crate::{model::Violation, net::ResourceRefusal, store::StoreError};

/// Why a change was not made. Nothing has changed then.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The request is not valid.
    #[error("the configuration has {} violations", .0.len())]
    Invalid(Vec<Violation>),
    /// Someone else changed the configuration.
    #[error(
        "expected_revision is {expected}, but the current revision is {current}: \
         read it, and apply the change to it"
    )]
    Stale {
        /// In the request.
        expected: u64,
        /// What is.
        current: u64,
    },
    /// The identifier stands for another document.
    #[error("request_id {0} was used for another document")]
    RequestReused(String),
    /// There is no such revision.
    #[error("revision {0} was never made or is no longer kept: see ListRevisions")]
    NoRevision(u64),
    /// There is nothing to go back to.
    #[error("there is no revision before the current one, {0}, to go back to")]
    NothingBefore(u64),
    /// Nothing waits to be confirmed, or something else does.
    #[error("{}", not_waiting(*.asked, *.waiting))]
    NotWaiting {
        /// Revision in the request; 0 for any.
        asked: u64,
        /// The one that waits.
        waiting: Option<u64>,
    },
    /// This host does not give what the document names.
    #[error("this host refuses {} resources that the configuration names", .0.len())]
    Refused(Vec<ResourceRefusal>),
    /// It cannot be stored.
    #[error("the configuration was not stored: {0}")]
    Store(#[from] StoreError),
    /// The agent ends.
    #[error("the agent is ending")]
    Ending,
}

fn not_waiting(asked: u64, waiting: Option<u64>) -> String {
    match waiting {
        None => "no revision waits to be confirmed: it stays, or its time was over and it was \
                 rolled back; see ListRevisions"
            .into(),
        Some(waiting) => format!("revision {waiting} waits to be confirmed, not {asked}"),
    }
}
