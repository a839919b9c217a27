//! Revisions that wait to be confirmed, and the way back from them.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    ApplyError, Digester,
    parts::name_fields,
    proposal::{Proposal, digest},
};
use crate::{
    model::{SessionControl, changes, limits::CONFIRM_TIMEOUT, parse},
    net::clock::Uptime,
    proto::{self, ApplyConfigResponse, Revision},
    store::{ConfigStore, StoredRevision, Unconfirmed},
    time::UnixTime,
};

/// A revision that waits to be confirmed.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) revision: u64,
    pub(super) unconfirmed: Unconfirmed,
    /// What holds again then: a disk that fails is no reason not to know it. `None` where it could
    /// not be read yet.
    pub(super) before: Option<Arc<proto::AgentConfig>>,
    /// On the clock that nobody sets.
    pub(super) due: Instant,
    /// What runs is what was before already; the store has yet to take it.
    pub(super) gone_back: bool,
}

impl Waiting {
    pub(super) fn new(
        revision: u64,
        unconfirmed: Unconfirmed,
        before: Option<Arc<proto::AgentConfig>>,
        now: UnixTime,
        uptime: Uptime,
    ) -> Self {
        let left = left_ns(unconfirmed, now, uptime);
        let due = Instant::now() + Duration::from_nanos(left);
        Self { revision, unconfirmed, before, due, gone_back: false }
    }
}

/// How long it may wait yet: by the clock that nobody sets, as long as the host is up; by the time of
/// day otherwise, but no longer than was asked for, however far that is behind.
fn left_ns(unconfirmed: Unconfirmed, now: UnixTime, uptime: Uptime) -> u64 {
    let Unconfirmed { until_unix_ns, timeout_ns, until_uptime_ns, boot, .. } = unconfirmed;
    if boot != 0 && boot == uptime.boot {
        return until_uptime_ns.saturating_sub(uptime.ns);
    }
    let left = u64::try_from(UnixTime(until_unix_ns).since_ns(now)).unwrap_or(0);
    left.min(if timeout_ns == 0 { *CONFIRM_TIMEOUT.range.end() } else { timeout_ns })
}

/// The document of a revision; an empty one of 0.
pub(super) fn document(
    store: &ConfigStore,
    revision: u64,
) -> Result<proto::AgentConfig, ApplyError> {
    if revision == 0 {
        return Ok(proto::AgentConfig::default());
    }
    let stored = store.revision(revision)?.ok_or(ApplyError::NoRevision(revision))?;
    Ok(stored.config.unwrap_or_default())
}

/// Where the time of the current revision is over already: makes the one before it current again,
/// before anything runs. What was done, in words.
pub(in super::super) fn roll_back_overdue(
    store: &ConfigStore,
    digester: &Digester,
    now: UnixTime,
    uptime: Uptime,
) -> Result<Option<String>, ApplyError> {
    let Some((waiting, unconfirmed)) = store.unconfirmed()? else { return Ok(None) };
    if left_ns(unconfirmed, now, uptime) > 0 {
        return Ok(None);
    }
    let before = document(store, unconfirmed.rollback_to)?;
    let proposal = Proposal::of_time(waiting, unconfirmed.rollback_to, before)?;
    let revision = waiting + 1;
    let before = store.current()?.and_then(|stored| stored.config).unwrap_or_default();
    let mut answer = ApplyConfigResponse { revision, ..ApplyConfigResponse::default() };
    // One that this version does not take any more is gone back from all the same.
    if let Ok(config) = parse(&before) {
        let redacted = digester.redacted(proposal.document.clone());
        answer.changes = changes(&config, &proposal.config, &|_| SessionControl::Down);
        let shown = || Ok(digester.redacted(before.clone()));
        name_fields(&mut answer.changes, &shown, &redacted)?;
    }
    let stored = StoredRevision {
        revision: Some(Revision {
            revision,
            commit_time: Some(now.to_proto()),
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
        let waits = Unconfirmed {
            until_unix_ns,
            rollback_to: 1,
            timeout_ns: 3 * second,
            until_uptime_ns: 103 * second,
            boot: 7,
        };
        let left_at = |now: UnixTime, boot, up_s: u64| {
            let uptime = Uptime { boot, ns: up_s * second };
            let due = Waiting::new(2, waits, None, now, uptime).due;
            due.duration_since(Instant::now()).as_secs()
        };
        let left = |now: UnixTime| left_at(now, 8, 1);
        assert_eq!(left(made), 3);
        assert_eq!(left(UnixTime(made.0 + second)), 2);
        assert_eq!(left(UnixTime(made.0 - 864_000 * second)), 3, "ten days back");
        assert_eq!(left(UnixTime(made.0 + 9 * second)), 0);
        // While the host is up, whatever is done to the clock, and however often the agent starts.
        for now in [made.0, made.0 - 3_600 * second, made.0 + 3_600 * second] {
            assert_eq!(left_at(UnixTime(now), 7, 101), 2);
            assert_eq!(left_at(UnixTime(now), 7, 104), 0);
        }
    }
}
