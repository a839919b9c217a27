//! Outages of a control connection: one pair of events each, however many attempts lie between, and
//! whatever restarts of the agent.

use super::failure::Failure;
use crate::time::{Now, UnixTime};

/// An outage that is going on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Failure that began it.
    pub failure: Failure,
    /// Time at which it began.
    pub began: UnixTime,
    /// Attempts that failed since then.
    pub attempts: u64,
    /// Both clocks at the beginning, or when this process took it over.
    since: Now,
    /// Length before `since`.
    earlier_ns: u64,
}

impl Outage {
    /// Begins an outage; a first attempt that fails counts as the first failed attempt.
    pub(super) fn begin(failure: Failure, attempts: u64, now: Now) -> Self {
        Self { failure, began: now.unix, attempts, since: now, earlier_ns: 0 }
    }

    /// Continues an outage that began before this process was started.
    pub fn resume(failure: Failure, began: UnixTime, attempts: u64, now: Now) -> Self {
        let earlier_ns = u64::try_from(now.unix.since_ns(began)).unwrap_or(0);
        Self { failure, began, attempts, since: now, earlier_ns }
    }

    /// Returns its length so far.
    pub fn length_ns(&self, now: Now) -> u64 {
        self.earlier_ns.saturating_add(now.monotonic.since_ns(self.since.monotonic))
    }
}

/// Event in the life of a connection that is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// An outage began: the connection was lost, or a first attempt failed.
    Lost(Failure),
    /// The outage is over: all sessions are started, by the last of these attempts.
    Restored {
        /// The outage; its attempts include the one that succeeded.
        outage: Outage,
        /// Its length.
        length_ns: u64,
    },
    /// The outage ended because the connection is no longer desired.
    Abandoned {
        /// The outage.
        outage: Outage,
        /// Its length.
        length_ns: u64,
    },
    /// All `test_count` tests of all sessions were run.
    Completed,
}

/// State of a connection that outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The outage that is going on.
    pub outage: Option<Outage>,
    /// `test_count` of the tests that are complete.
    pub completed: Option<u64>,
}

impl Remembered {
    /// Returns whether both have to be stored alike; a further failed attempt is not worth a write.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let began = |remembered: &Self| remembered.outage.as_ref().map(|outage| outage.began);
        began(self) == began(other) && self.completed == other.completed
    }
}
