//! Revisions that wait to be confirmed, and the way back from them.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    ApplyError, Digester,
    parts::name_fields,
    proposal::{Proposal, digest},
};
use crate::{
    model::{Standing, changes, limits::CONFIRM_TIMEOUT, parse},
    proto::{self, ApplyConfigResponse, Revision},
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
    /// What runs is what was before already; the store has yet to take it.
    pub(super) gone_back: bool,
}

impl Waiting {
    pub(super) fn new(revision: u64, unconfirmed: Unconfirmed, now: UnixTime) -> Self {
        let left = UnixTime(unconfirmed.until_unix_ns).since_ns(now);
        let left = u64::try_from(left).unwrap_or(0);
        // However far a clock is behind that was set back, or has yet to be set.
        let left = left.min(match unconfirmed.timeout_ns {
            0 => *CONFIRM_TIMEOUT.range.end(),
            timeout_ns => timeout_ns,
        });
        let due = Instant::now() + Duration::from_nanos(left);
        Self { revision, unconfirmed, due, gone_back: false }
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
    let before = store.current()?.and_then(|stored| stored.config).unwrap_or_default();
    let mut answer = ApplyConfigResponse { revision, ..ApplyConfigResponse::default() };
    // One that this version does not take any more is gone back from all the same.
    if let Ok(config) = parse(&before) {
        let redacted = digester.redacted(proposal.document.clone());
        answer.changes = changes(&config, &proposal.config, &|_| Standing::Down);
        name_fields(&mut answer.changes, &|| digester.redacted(before.clone()), &redacted);
    }
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
        answer: Some(answer),
        ..StoredRevision::default()
    };
    let to = unconfirmed.rollback_to;
    let detail = format!("back to revision {to}: revision {waiting} was not confirmed in time");
    store.commit(revision, &stored)?;
    store.damage_stands();
    Ok(Some(detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_behind_waits_no_longer_than_was_asked_for() {
        let second = 1_000_000_000;
        let made = UnixTime(1_800_000_000 * second);
        let until_unix_ns = made.0 + 3 * second;
        let waits = Unconfirmed { until_unix_ns, rollback_to: 1, timeout_ns: 3 * second };
        let left = |now: UnixTime| {
            let due = Waiting::new(2, waits, now).due;
            due.duration_since(Instant::now()).as_secs()
        };
        assert_eq!(left(made), 3);
        assert_eq!(left(UnixTime(made.0 + second)), 2);
        assert_eq!(left(UnixTime(made.0 - 864_000 * second)), 3, "ten days back");
        assert_eq!(left(UnixTime(made.0 + 9 * second)), 0);
    }
}
