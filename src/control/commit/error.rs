//! Errors of configuration changes.

use thiserror::Error;

use crate::{model::Violation, net::ResourceRefusal, store::StoreError};

/// Reason for which a configuration request failed. After [`Self::Store`] and [`Self::Ending`], the
/// change may have been committed nevertheless: the current revision shows it.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The request is not valid.
    #[error("invalid configuration: {}", first_of(.0.iter().map(|v| (&v.field, &v.description))))]
    Invalid(Vec<Violation>),
    /// The configuration has changed since the caller read it.
    #[error(
        "the current revision is {current}, not {expected} as expected: \
         read the current revision and repeat the change on top of it"
    )]
    Stale {
        /// `expected_revision` of the request.
        expected: u64,
        /// Number of the current revision.
        current: u64,
    },
    /// The `request_id` belongs to a request with another document, mode, deletion or timeout.
    #[error("request_id {0} was used for a different request: use a new one")]
    RequestReused(String),
    /// The revision does not exist or is no longer kept.
    #[error("revision {0} was never made or is no longer kept: see ListRevisions")]
    NoRevision(u64),
    /// The current revision is the first one.
    #[error("no revision before the current one ({0}) to roll back to")]
    NothingBefore(u64),
    /// The revision to confirm is not pending.
    #[error("{}", not_pending(*.requested, *.pending))]
    NotPending {
        /// Revision of the request; 0 for any.
        requested: u64,
        /// Revision that waits to be confirmed.
        pending: Option<u64>,
    },
    /// Resources that the document names are missing, in use or not permitted.
    #[error(
        "resources are not available on this host: {}",
        first_of(.0.iter().map(|r| (&r.field, &r.description)))
    )]
    Refused(Vec<ResourceRefusal>),
    /// The store failed to read the configuration or to commit the revision.
    #[error("failed to read or store the configuration: {0}")]
    Store(#[from] StoreError),
    /// The commit task ended before it answered.
    #[error(
        "the commit task ended before it answered, because the agent is shutting down or restarting \
         the task: read the current revision before a new attempt"
    )]
    Ending,
}

/// Returns the first of several errors and their number. Answers of the API have all of them.
fn first_of<'a>(mut errors: impl ExactSizeIterator<Item = (&'a String, &'a String)>) -> String {
    let count = errors.len();
    let (field, description) = errors.next().unzip();
    let separator = if field.is_none_or(String::is_empty) { "" } else { ": " };
    let (field, description) = (field.map_or("", |f| f), description.map_or("", |d| d));
    format!("{field}{separator}{description} (1 of {count})")
}

fn not_pending(requested: u64, pending: Option<u64>) -> String {
    match pending {
        None => {
            "no revision is pending: either none was committed with confirm_timeout, or it has \
                 already been confirmed or rolled back; see ListRevisions"
                .into()
        }
        Some(pending) => format!("revision {pending} is pending, not {requested}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_their_first_violation_and_their_number() {
        let violation = |field: &str| Violation { field: field.into(), description: "bad".into() };
        let error = ApplyError::Invalid(vec![violation("client.x"), violation("")]);
        assert_eq!(error.to_string(), "invalid configuration: client.x: bad (1 of 2)");
        let error = ApplyError::Invalid(vec![violation("")]);
        assert_eq!(error.to_string(), "invalid configuration: bad (1 of 1)");
    }
}
