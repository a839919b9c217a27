//! Retry schedule of a connection: the n-th attempt is due n intervals after the loss, independent
//! of the duration of attempts. With a backoff, pauses are random and grow.

use crate::{model::ControlConnection, time::Monotonic};

/// Maximum lateness with which a due time is still used; a quarter of the interval if that is
/// shorter.
const MAX_LATENESS_NS: u64 = 250_000_000;

/// Times at which attempts are due, counted from the loss or from the first attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RetrySchedule {
    last_due: Monotonic,
    /// Number of pauses so far; the backoff grows with it.
    pauses: u32,
}

impl RetrySchedule {
    /// Counts intervals from `start`: a loss, or an attempt outside the schedule.
    pub(super) fn starting_at(start: Monotonic) -> Self {
        Self { last_due: start, pauses: 0 }
    }

    /// Returns the time of the next attempt: at the next multiple of the interval, or at random
    /// with a backoff. `random` is uniform.
    pub(super) fn next_attempt(
        &mut self,
        config: &ControlConnection,
        random: u64,
        now: Monotonic,
    ) -> Monotonic {
        match config.retry_backoff_max_ns {
            0 => self.next_due(config.test_interval_ns, now),
            max_ns => self.next_random(config.test_interval_ns, max_ns, random, now),
        }
    }

    /// Returns the time of the attempt after one that begins now; `None` if it is random.
    pub(super) fn following_attempt(
        &self,
        config: &ControlConnection,
        now: Monotonic,
    ) -> Option<Monotonic> {
        let regular = config.retry_backoff_max_ns == 0;
        regular.then(|| self.first_due_after(config.test_interval_ns, now))
    }

    /// Returns the time at which the TCP connect of an attempt that begins now must be complete.
    pub(super) fn connect_deadline(&self, config: &ControlConnection, now: Monotonic) -> Monotonic {
        match config.retry_backoff_max_ns {
            0 => self.deadline(config.test_interval_ns, config.connect_timeout_ns, now),
            _ => now.plus_ns(config.connect_timeout_ns),
        }
    }

    /// Returns the next due time; the same one again before it has passed. Due times that passed
    /// during an attempt are skipped, except one that has just passed: an attempt that takes a
    /// whole interval to fail, for example to a silent host, must not skip the next one.
    fn next_due(&mut self, interval_ns: u64, now: Monotonic) -> Monotonic {
        if self.last_due > now {
            return self.last_due;
        }
        let interval_ns = interval_ns.max(1);
        let intervals = now.since_ns(self.last_due) / interval_ns;
        let late_ns = now.since_ns(self.last_due) % interval_ns;
        let just_passed = intervals > 0 && late_ns <= max_lateness_ns(interval_ns);
        let intervals = if just_passed { intervals } else { intervals + 1 };
        self.last_due = self.last_due.plus_ns(intervals.saturating_mul(interval_ns));
        self.last_due
    }

    fn first_due_after(&self, interval_ns: u64, now: Monotonic) -> Monotonic {
        if self.last_due > now {
            return self.last_due;
        }
        let intervals = now.since_ns(self.last_due) / interval_ns.max(1) + 1;
        self.last_due.plus_ns(intervals.saturating_mul(interval_ns))
    }

    /// Counts `limit_ns` from the due time, so that an attempt that takes all of it ends at a due
    /// time even if it began late. An attempt outside the schedule ends before the next due time.
    fn deadline(&self, interval_ns: u64, limit_ns: u64, now: Monotonic) -> Monotonic {
        let late_ns = now.since_ns(self.last_due);
        if self.last_due <= now && late_ns <= max_lateness_ns(interval_ns) {
            return self.last_due.plus_ns(limit_ns);
        }
        let own = now.plus_ns(limit_ns);
        if limit_ns > interval_ns {
            return own;
        }
        own.min(self.first_due_after(interval_ns, now))
    }

    /// Adds a random pause of up to `interval * 2^n`, at most `max_ns` (full jitter): agents that lost
    /// a server at the same moment do not return to it at the same moments.
    fn next_random(
        &mut self,
        interval_ns: u64,
        max_ns: u64,
        random: u64,
        now: Monotonic,
    ) -> Monotonic {
        if self.last_due > now {
            return self.last_due;
        }
        let factor = 1u64.checked_shl(self.pauses.min(63)).unwrap_or(u64::MAX);
        let limit_ns = interval_ns.saturating_mul(factor).min(max_ns).max(1);
        self.pauses = self.pauses.saturating_add(1);
        self.last_due = now.plus_ns(random % limit_ns);
        self.last_due
    }
}

fn max_lateness_ns(interval_ns: u64) -> u64 {
    MAX_LATENESS_NS.min(interval_ns / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_does_not_accumulate() {
        const MS: u64 = 1_000_000;
        let (interval, limit) = (1_000 * MS, 1_000 * MS);
        let mut schedule = RetrySchedule::starting_at(Monotonic(0));
        let mut due = Monotonic(0);
        for attempt in 0..10_000u64 {
            assert_eq!(due, Monotonic(attempt * interval));
            // Each attempt begins a little late, takes all of its time, and ends a little late.
            let begun = due.plus_ns(attempt % 40 * MS);
            let failed = schedule.deadline(interval, limit, begun).plus_ns(attempt % 30 * MS);
            due = schedule.next_due(interval, failed);
        }
        // An attempt outside the schedule does not skip the due time.
        let mut schedule = RetrySchedule::starting_at(Monotonic(0));
        assert_eq!(schedule.next_due(interval, Monotonic(0)), Monotonic(interval));
        let outside = Monotonic(300 * MS);
        assert_eq!(schedule.deadline(interval, limit, outside), Monotonic(interval));
        assert_eq!(schedule.deadline(interval, 100 * MS, outside), Monotonic(400 * MS));
        assert_eq!(schedule.deadline(interval, 5_000 * MS, outside), Monotonic(5_300 * MS));
        // This attempt replaces the one at the due time.
        let outside = Monotonic(2_500 * MS);
        assert_eq!(schedule.deadline(interval, limit, outside), Monotonic(3 * interval));
        assert_eq!(schedule.deadline(interval, 5_000 * MS, outside), Monotonic(7_500 * MS));
    }

    #[test]
    fn due_times_do_not_drift_over_a_day() {
        let mut schedule = RetrySchedule::starting_at(Monotonic(500));
        let mut now = Monotonic(500);
        for attempt in 1..=86_400u64 {
            now = schedule.next_due(1_000_000_000, now.plus_ns(attempt % 900_000_000));
            assert_eq!(now, Monotonic(500 + attempt * 1_000_000_000));
        }
    }

    #[test]
    fn attempt_longer_than_the_interval_skips_due_times() {
        let mut schedule = RetrySchedule::starting_at(Monotonic(0));
        assert_eq!(schedule.next_due(100, Monotonic(0)), Monotonic(100));
        assert_eq!(schedule.next_due(100, Monotonic(450)), Monotonic(500));
        // An attempt by hand is made before the due time.
        assert_eq!(schedule.next_due(100, Monotonic(460)), Monotonic(500));
        assert_eq!(schedule.next_due(100, Monotonic(600)), Monotonic(600));
        assert_eq!(schedule.next_due(100, Monotonic(600)), Monotonic(700));
        // A due time that has just passed is used once.
        assert_eq!(schedule.next_due(100, Monotonic(801)), Monotonic(800));
        assert_eq!(schedule.next_due(100, Monotonic(801)), Monotonic(900));
    }

    #[test]
    fn pauses_are_spread_and_grow_up_to_the_maximum() {
        let (interval, max) = (1_000u64, 60_000u64);
        for pauses in 0..100u32 {
            let limit = interval.checked_shl(pauses).unwrap_or(u64::MAX).min(max);
            let due = |random| {
                let mut schedule = RetrySchedule { last_due: Monotonic(0), pauses };
                schedule.next_random(interval, max, random, Monotonic(5)).0 - 5
            };
            let limit = if pauses >= 54 { max } else { limit };
            assert_eq!((due(0), due(limit - 1)), (0, limit - 1), "{pauses}");
            assert!(due(u64::MAX) < limit, "{pauses}");
        }
        // An attempt before the due time does not lengthen the pause.
        let mut schedule = RetrySchedule::starting_at(Monotonic(0));
        let due = schedule.next_random(interval, max, 900, Monotonic(0));
        assert_eq!(schedule.next_random(interval, max, 100, Monotonic(10)), due);
    }
}
