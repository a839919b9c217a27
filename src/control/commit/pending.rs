//! Revisions that wait to be confirmed.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    control::committed::Committed, model::limits::CONFIRM_TIMEOUT, net::clock::Uptime, proto,
    store::Unconfirmed, time::UnixTime,
};

/// A revision that waits to be confirmed.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) revision: u64,
    pub(super) unconfirmed: Unconfirmed,
    /// Document of the revision to roll back to, kept in memory so that the rollback does not depend
    /// on the disk. `None` if it could not be read yet.
    pub(super) rollback_document: Option<Arc<proto::AgentConfig>>,
}

/// Time left to confirm a pending revision.
#[derive(Clone, Debug)]
pub(super) struct Countdown {
    pub(super) pending: Pending,
    /// Time of the rollback, or of the next attempt to persist it.
    pub(super) due: Instant,
    /// True if the configuration to roll back to is published although the rollback could not be
    /// persisted.
    pub(super) is_rolled_back: bool,
}

impl Countdown {
    pub(super) fn new(pending: Pending, now: UnixTime, uptime: Uptime) -> Self {
        let left = left_ns(pending.unconfirmed, now, uptime);
        Self { pending, due: Instant::now() + Duration::from_nanos(left), is_rolled_back: false }
    }

    /// Restores `is_rolled_back` after a restart of the actor: the store does not have it, but the
    /// published configuration names the revision that a rollback in memory returned to.
    pub(super) fn with_published(self, published: &Committed) -> Self {
        let is_rolled_back = published.rolled_back_to == Some(self.pending.unconfirmed.rollback_to);
        Self { is_rolled_back, ..self }
    }
}

/// Returns the nanoseconds left to confirm. Within one boot of the host, they are measured by the
/// monotonic clock. After a reboot, they are measured by the time of day and limited to the timeout,
/// in case the time of day was set back.
pub(super) fn left_ns(unconfirmed: Unconfirmed, now: UnixTime, uptime: Uptime) -> u64 {
    let Unconfirmed { until_unix_ns, timeout_ns, until_uptime_ns, boot, .. } = unconfirmed;
    if boot != 0 && boot == uptime.boot {
        return until_uptime_ns.saturating_sub(uptime.ns);
    }
    let left = u64::try_from(UnixTime(until_unix_ns).since_ns(now)).unwrap_or(0);
    left.min(if timeout_ns == 0 { *CONFIRM_TIMEOUT.range.end() } else { timeout_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_restart_of_the_actor_keeps_a_rollback_in_memory() {
        let unconfirmed = Unconfirmed { rollback_to: 1, ..Unconfirmed::default() };
        let pending = Pending { revision: 2, unconfirmed, rollback_document: None };
        let countdown = Countdown::new(pending, UnixTime(0), Uptime { boot: 7, ns: 0 });
        let published =
            |rolled_back_to| Committed { revision: 2, rolled_back_to, ..Committed::default() };
        let is_rolled_back =
            |published| countdown.clone().with_published(&published).is_rolled_back;
        assert!(is_rolled_back(published(Some(1))));
        assert!(!is_rolled_back(published(None)), "the revision may still be confirmed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_back_does_not_prolong_the_timeout() {
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
            let pending = Pending { revision: 2, unconfirmed: waits, rollback_document: None };
            let due = Countdown::new(pending, now, uptime).due;
            due.duration_since(Instant::now()).as_secs()
        };
        let left = |now: UnixTime| left_at(now, 8, 1);
        assert_eq!(left(made), 3);
        assert_eq!(left(UnixTime(made.0 + second)), 2);
        assert_eq!(left(UnixTime(made.0 - 864_000 * second)), 3, "ten days back");
        assert_eq!(left(UnixTime(made.0 + 9 * second)), 0);
        // Within one boot, clock changes and restarts of the agent have no effect.
        for now in [made.0, made.0 - 3_600 * second, made.0 + 3_600 * second] {
            assert_eq!(left_at(UnixTime(now), 7, 101), 2);
            assert_eq!(left_at(UnixTime(now), 7, 104), 0);
        }
    }
}
