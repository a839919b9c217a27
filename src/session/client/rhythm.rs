//! When attempts are due: the n-th one n intervals after the loss, however long each took.

use crate::time::Monotonic;

/// A beat that is over for no longer, nor for a quarter of an interval, is still met.
const JUST_NOW_NS: u64 = 250_000_000;

/// The beat of the attempts of one outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rhythm {
    last_due: Monotonic,
    /// Pauses so far, for what backs off.
    pauses: u32,
}

impl Rhythm {
    /// A connection was lost, or a first attempt is made, at `start`.
    pub(super) fn new(start: Monotonic) -> Self {
        Self { last_due: start, pauses: 0 }
    }

    /// The next beat that is not yet over: the same again before its time. Beats that passed
    /// during an attempt are left out, but for one that passed just now: an attempt that takes a
    /// whole interval to fail, as one to a silent host does, must not cost the next one.
    pub(super) fn next(&mut self, interval_ns: u64, now: Monotonic) -> Monotonic {
        if self.last_due > now {
            return self.last_due;
        }
        let interval_ns = interval_ns.max(1);
        let beats = now.since_ns(self.last_due) / interval_ns;
        let late_ns = now.since_ns(self.last_due) % interval_ns;
        let just_now = beats > 0 && late_ns <= tolerance_ns(interval_ns);
        let beats = if just_now { beats } else { beats + 1 };
        self.last_due = self.last_due.plus_ns(beats.saturating_mul(interval_ns));
        self.last_due
    }
}

impl Rhythm {
    /// The next beat behind now.
    pub(super) fn beat_behind(&self, interval_ns: u64, now: Monotonic) -> Monotonic {
        if self.last_due > now {
            return self.last_due;
        }
        let beats = now.since_ns(self.last_due) / interval_ns.max(1) + 1;
        self.last_due.plus_ns(beats.saturating_mul(interval_ns))
    }

    /// When an attempt that begins now is over, which may take `limit_ns`: counted from its beat, so that
    /// one that takes it all ends at a beat, however late it began. One besides the rhythm leaves the
    /// next beat to the attempt that is due there.
    pub(super) fn deadline(&self, interval_ns: u64, limit_ns: u64, now: Monotonic) -> Monotonic {
        let late_ns = now.since_ns(self.last_due);
        if self.last_due <= now && late_ns <= tolerance_ns(interval_ns) {
            return self.last_due.plus_ns(limit_ns);
        }
        let own = now.plus_ns(limit_ns);
        if limit_ns > interval_ns {
            return own;
        }
        own.min(self.beat_behind(interval_ns, now))
    }

    /// A random pause of up to `interval * 2^n`, at most `longest` (full jitter): agents that lost
    /// a server at the same moment do not come back to it at the same moments. `random` is uniform.
    pub(super) fn back_off(
        &mut self,
        interval_ns: u64,
        longest_ns: u64,
        random: u64,
        now: Monotonic,
    ) -> Monotonic {
        if self.last_due > now {
            return self.last_due;
        }
        let factor = 1u64.checked_shl(self.pauses.min(63)).unwrap_or(u64::MAX);
        let most_ns = interval_ns.saturating_mul(factor).min(longest_ns).max(1);
        self.pauses += 1;
        self.last_due = now.plus_ns(random % most_ns);
        self.last_due
    }
}

fn tolerance_ns(interval_ns: u64) -> u64 {
    JUST_NOW_NS.min(interval_ns / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_does_not_grow_from_beat_to_beat() {
        const MS: u64 = 1_000_000;
        let (interval, limit) = (1_000 * MS, 1_000 * MS);
        let mut rhythm = Rhythm::new(Monotonic(0));
        let mut due = Monotonic(0);
        for beat in 0..10_000u64 {
            assert_eq!(due, Monotonic(beat * interval));
            // Each attempt begins a little late, takes all of its time, and its end is seen late.
            let begun = due.plus_ns(beat % 40 * MS);
            let failed = rhythm.deadline(interval, limit, begun).plus_ns(beat % 30 * MS);
            due = rhythm.next(interval, failed);
        }
        // Besides the rhythm: the beat is not given up for it.
        let mut rhythm = Rhythm::new(Monotonic(0));
        assert_eq!(rhythm.next(interval, Monotonic(0)), Monotonic(interval));
        let besides = Monotonic(300 * MS);
        assert_eq!(rhythm.deadline(interval, limit, besides), Monotonic(interval));
        assert_eq!(rhythm.deadline(interval, 100 * MS, besides), Monotonic(400 * MS));
        assert_eq!(rhythm.deadline(interval, 5_000 * MS, besides), Monotonic(5_300 * MS));
        // In the place of the one that was made at the beat.
        let besides = Monotonic(2_500 * MS);
        assert_eq!(rhythm.deadline(interval, limit, besides), Monotonic(3 * interval));
        assert_eq!(rhythm.deadline(interval, 5_000 * MS, besides), Monotonic(7_500 * MS));
    }

    #[test]
    fn beats_do_not_drift_over_a_day() {
        let mut rhythm = Rhythm::new(Monotonic(500));
        let mut now = Monotonic(500);
        for beat in 1..=86_400u64 {
            now = rhythm.next(1_000_000_000, now.plus_ns(beat % 900_000_000));
            assert_eq!(now, Monotonic(500 + beat * 1_000_000_000));
        }
    }

    #[test]
    fn an_attempt_longer_than_the_interval_skips_beats() {
        let mut rhythm = Rhythm::new(Monotonic(0));
        assert_eq!(rhythm.next(100, Monotonic(0)), Monotonic(100));
        assert_eq!(rhythm.next(100, Monotonic(450)), Monotonic(500));
        // An attempt by hand, before the beat.
        assert_eq!(rhythm.next(100, Monotonic(460)), Monotonic(500));
        assert_eq!(rhythm.next(100, Monotonic(600)), Monotonic(600));
        assert_eq!(rhythm.next(100, Monotonic(600)), Monotonic(700));
        // Just over: still met, once.
        assert_eq!(rhythm.next(100, Monotonic(801)), Monotonic(800));
        assert_eq!(rhythm.next(100, Monotonic(801)), Monotonic(900));
    }

    #[test]
    fn pauses_of_a_fleet_are_spread_and_grow_up_to_the_longest() {
        let (interval, longest) = (1_000u64, 60_000u64);
        for pauses in 0..100u32 {
            let most = interval.checked_shl(pauses).unwrap_or(u64::MAX).min(longest);
            let due = |random| {
                let mut rhythm = Rhythm { last_due: Monotonic(0), pauses };
                rhythm.back_off(interval, longest, random, Monotonic(5)).0 - 5
            };
            let most = if pauses >= 54 { longest } else { most };
            assert_eq!((due(0), due(most - 1)), (0, most - 1), "{pauses}");
            assert!(due(u64::MAX) < most, "{pauses}");
        }
        // An attempt besides, before its time, does not lengthen the pause.
        let mut rhythm = Rhythm::new(Monotonic(0));
        let due = rhythm.back_off(interval, longest, 900, Monotonic(0));
        assert_eq!(rhythm.back_off(interval, longest, 100, Monotonic(10)), due);
    }
}
