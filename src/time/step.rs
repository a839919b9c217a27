//! Steps of the clock, told by the clock that nobody sets.

use super::Now;

/// A difference that is no step: readings are torn apart by the scheduler, and clocks slewed.
const SLACK_NS: u64 = 10_000_000;
/// What a clock is slewed by at most, in parts of a million (adjtimex(2)).
const SLEW_PPM: u64 = 500;

/// Compares both clocks from time to time.
#[derive(Clone, Copy, Debug)]
pub struct ClockWatch {
    last: Now,
}

impl ClockWatch {
    /// From now on.
    pub fn new(now: Now) -> Self {
        Self { last: now }
    }

    /// By how much the clock was set since the last time; `None` where it was not.
    pub fn step_ns(&mut self, now: Now) -> Option<i64> {
        let passed_ns = now.monotonic.since_ns(self.last.monotonic);
        let step_ns = now.unix.since_ns(self.last.unix).saturating_sub(passed_ns as i64);
        self.last = now;
        let slack_ns = SLACK_NS + passed_ns / 1_000_000 * SLEW_PPM;
        (step_ns.unsigned_abs() >= slack_ns).then_some(step_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{Monotonic, UnixTime};

    #[test]
    fn a_step_is_told_once_and_a_slewed_clock_is_not_stepped() {
        let at = |monotonic: u64, unix: u64| Now {
            monotonic: Monotonic(monotonic * 1_000_000),
            unix: UnixTime(unix * 1_000_000),
        };
        let mut watch = ClockWatch::new(at(1_000, 50_000));
        assert_eq!(watch.step_ns(at(2_000, 51_000)), None);
        assert_eq!(watch.step_ns(at(3_000, 52_009)), None, "torn readings");
        assert_eq!(watch.step_ns(at(4_000, 53_500)), Some(491_000_000));
        assert_eq!(watch.step_ns(at(5_000, 54_500)), None, "and from there on");
        assert_eq!(watch.step_ns(at(6_000, 50_000)), Some(-5_500_000_000));
        // An hour at the fastest that a clock is slewed by.
        assert_eq!(watch.step_ns(at(3_606_000, 3_650_000 + 1_800)), None);
    }
}
