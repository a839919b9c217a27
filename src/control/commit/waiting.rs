//! Revisions that wait to be confirmed, and the way back from them.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    ApplyError, Digester,
    proposal::{Proposal, digest},
};
use crate::{
    proto::{self, Revision},
    store::{ConfigStore, StoredRevision, Unconfirmed},
    time::UnixTime,
};

/// A revision that waits to be confirmed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) revision: u64,
    pub(super) unconfirmed: Unconfirmed,
    /// On the clock that nobody sets.
    pub(super) due: Instant,
}

impl Waiting {
    pub(super) fn new(revision: u64, unconfirmed: Unconfirmed, now: UnixTime) -> Self {
        let left = UnixTime(unconfirmed.until_unix_ns).since_ns(now);
        let left = Duration::from_nanos(u64::try_from(left).unwrap_or(0));
        Self { revision, unconfirmed, due: Instant::now() + left }
    }
}

/// The proposal to go back from a revision that nobody confirmed.
pub(super) fn overdue(store: &ConfigStore, revision: u64, to: u64) -> Result<Proposal, ApplyError> {
    let document = match to {
        0 => proto::AgentConfig::default(),
        _ => {
            let stored = store.revision(to)?.ok_or(ApplyError::NoRevision(to))?;
            stored.config.unwrap_or_default()
        }
    };
    Proposal::of_time(revision, to, document)
}

/// Where the time of the current revision is over already: makes the one before it current again,
/// before anything runs. What was done, in words.
pub(in super::super) fn roll_back_overdue(
    store: &ConfigStore,
    digester: &Digester,
    now: UnixTime,
) -> Result<Option<String>, ApplyError> {
    let Some((waiting, unconfirmed)) = store.unconfirmed()? else { return Ok(None) };
    if unconfirmed.until_unix_ns > now.0 {
        return Ok(None);
    }
    let proposal = overdue(store, waiting, unconfirmed.rollback_to)?;
    let revision = waiting + 1;
    let stored = StoredRevision {
        revision: Some(Revision {
            revision,
            time: Some(now.to_proto()),
            author: proposal.author,
            comment: proposal.comment,
            digest: digest(&digester.redacted(proposal.document.clone())),
            rollback_to: proposal.rollback_to,
            ..Revision::default()
        }),
        config: Some(proposal.document),
        ..StoredRevision::default()
    };
    let to = unconfirmed.rollback_to;
    let detail = format!("back to revision {to}: revision {waiting} was not confirmed in time");
    store.commit(revision, &stored)?;
    Ok(Some(detail))
}
