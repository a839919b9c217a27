//! Detection of steps of the realtime clock, by comparison with the monotonic clock.

use super::{NANOS_PER_SECOND, Now};

/// Tolerated difference: the scheduler may interrupt a reading, and clocks are slewed.
const SLACK_NS: u64 = 10_000_000;
/// Largest slew rate in parts per million (adjtimex(2)).
const SLEW_PPM: u64 = 500;

/// Step in nanoseconds from which on the clock must have been wrong before the step or is wrong
/// after it. No daemon that synchronises a clock makes such a large step after the start of the
/// host.
pub const LARGE_STEP_NS: u64 = 60 * NANOS_PER_SECOND;

/// Comparison of both clocks.
#[derive(Clone, Copy, Debug)]
pub struct ClockWatch {
    last: Now,
}

impl ClockWatch {
    /// Starts the comparison at `now`.
    pub fn new(now: Now) -> Self {
        Self { last: now }
    }

    /// Returns the step since the previous call; `None` if there was none.
    pub fn step_ns(&mut self, now: Now) -> Option<i64> {
        let passed_ns = now.monotonic.since_ns(self.last.monotonic);
        let step_ns = now.step_since_ns(self.last);
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
    fn a_step_is_reported_once_and_slewing_is_not_a_step() {
        let at = |monotonic: u64, unix: u64| Now {
            monotonic: Monotonic(monotonic * 1_000_000),
            unix: UnixTime(unix * 1_000_000),
        };
        let mut watch = ClockWatch::new(at(1_000, 50_000));
        assert_eq!(watch.step_ns(at(2_000, 51_000)), None);
        assert_eq!(watch.step_ns(at(3_000, 52_009)), None, "torn readings");
        assert_eq!(watch.step_ns(at(4_000, 53_500)), Some(491_000_000));
        assert_eq!(watch.step_ns(at(5_000, 54_500)), None, "a step is reported once");
        assert_eq!(watch.step_ns(at(6_000, 50_000)), Some(-5_500_000_000));
        // An hour of the largest slew.
        assert_eq!(watch.step_ns(at(3_606_000, 3_650_000 + 1_800)), None);
    }
}
