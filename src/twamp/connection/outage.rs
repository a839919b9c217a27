//! Outages of a control connection. Each has one pair of events, across all attempts and restarts
//! of the agent.

use super::failure::Failure;
use crate::time::{Now, UnixTime};

/// Outage that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outage {
    pub(crate) failure: Failure,
    pub(crate) began: UnixTime,
    /// Attempts so far, all failed; in [`ConnectionEvent::Restored`], including the successful one.
    pub(crate) attempts: u64,
    /// Both clocks at the beginning, or at the start of this process if the outage is older.
    since: Now,
    /// Length of the outage before `since`, in nanoseconds.
    earlier_ns: u64,
}

impl Outage {
    /// Begins an outage; a first attempt that fails counts as the first failed attempt.
    pub(super) fn begin(failure: Failure, attempts: u64, now: Now) -> Self {
        Self { failure, began: now.unix, attempts, since: now, earlier_ns: 0 }
    }

    /// Continues an outage that began before this process was started.
    pub(crate) fn resume(failure: Failure, began: UnixTime, attempts: u64, now: Now) -> Self {
        let earlier_ns = u64::try_from(now.unix.since_ns(began)).unwrap_or(0);
        Self { failure, began, attempts, since: now, earlier_ns }
    }

    /// Returns the length of the outage so far.
    pub(crate) fn length_ns(&self, now: Now) -> u64 {
        self.earlier_ns.saturating_add(now.monotonic.since_ns(self.since.monotonic))
    }
}

/// Event of a connection that is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionEvent {
    /// An outage began: the connection was lost, or a first attempt failed.
    Lost(Failure),
    /// The outage ended: the last attempt started sessions.
    Restored {
        /// The outage; its attempts include the one that succeeded.
        outage: Outage,
        length_ns: u64,
    },
    /// The outage ended because the connection is no longer desired.
    Abandoned { outage: Outage, length_ns: u64 },
    /// All `test_count` tests of all sessions were run.
    Completed,
}

/// State of a connection that survives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remembered {
    /// Outage that has not ended.
    pub(crate) outage: Option<Outage>,
    /// `test_count` of the tests that are complete.
    pub(crate) completed: Option<u64>,
    /// Number of outages that have ended.
    pub(crate) past_outages: u64,
    /// Length of these outages, nanoseconds.
    pub(crate) past_outages_ns: u64,
}

impl Remembered {
    /// Returns true if the difference is not worth a write. A different number of attempts is worth
    /// one only when it reaches a power of two.
    pub(super) fn is_equivalent(&self, other: &Self) -> bool {
        let outage = |remembered: &Self| {
            let outage = remembered.outage.as_ref()?;
            Some((outage.began, outage.attempts.checked_ilog2()))
        };
        outage(self) == outage(other)
            && self.completed == other.completed
            && self.past_outages == other.past_outages
    }
}
