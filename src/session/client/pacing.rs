//! Start times of the tests of many sessions. They are spread over the interval of the sessions, so
//! that no probe waits until a thousand others are sent. They lie on a grid, so that one wake-up of
//! a thread serves several sessions.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::time::{Monotonic, NANOS_PER_SECOND};

/// Number of probes that may be due at the same moment. The last probe waits a few microseconds for
/// each of the others.
const MAX_SIMULTANEOUS: u64 = 10;
/// Step of the coarsest grid.
const COARSEST_NS: u64 = 8_000_000;
/// Steps of all grids, coarsest first. Each is a multiple of the next, so that a time on one grid
/// is also on all finer grids. Steps finer than the last would save no wake-ups.
const STEPS_NS: [u64; 6] = [COARSEST_NS, 4_000_000, 2_000_000, 1_000_000, 200_000, 20_000];
/// Unit of the rates: probes in this number of seconds.
const RATE_SECONDS: u64 = 1_000;
/// Longest delay of a test that could begin at once.
const MAX_DELAY_NS: u64 = NANOS_PER_SECOND;
/// Fraction of the golden ratio in 64 bits. Its multiples modulo 2^64 divide an interval evenly,
/// however many there are.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Rate of all sessions of a group of threads.
#[derive(Debug)]
pub(super) struct Pacing {
    threads: u64,
    /// Probes in [`RATE_SECONDS`] seconds.
    rate: AtomicU64,
    /// Number of sessions that joined since there were none.
    joined: AtomicU64,
}

/// Share of one session in the rate. Dropping it takes the session out of the rate.
#[derive(Debug)]
pub(super) struct Share {
    pacing: Arc<Pacing>,
    rate: u64,
    /// Upper limit of the delay of its first probe.
    spread_ns: u64,
    number: u64,
}

impl Pacing {
    pub(super) fn new(threads: usize) -> Arc<Self> {
        let (rate, joined) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { threads: threads.max(1) as u64, rate, joined })
    }

    /// Adds a session that sends bursts at this interval. Its tests are delayed by at most `latest_ns`.
    pub(super) fn join(
        self: &Arc<Self>,
        interval_ns: u64,
        burst_size: u32,
        latest_ns: u64,
    ) -> Share {
        let bursts = RATE_SECONDS * NANOS_PER_SECOND / interval_ns.max(1);
        let rate = (bursts * u64::from(burst_size)).max(1);
        if self.rate.fetch_add(rate, Relaxed) == 0 {
            self.joined.store(0, Relaxed);
        }
        let number = self.joined.fetch_add(1, Relaxed);
        let spread_ns = interval_ns.min(latest_ns).min(MAX_DELAY_NS);
        Share { pacing: self.clone(), rate, spread_ns, number }
    }
}

impl Share {
    /// Returns the start time of a first test that could begin now. A session without others begins
    /// at the next step of the grid.
    pub(super) fn first_start(&self, now: Monotonic) -> Monotonic {
        let rate = (self.pacing.rate.load(Relaxed) / self.pacing.threads).max(1);
        let grid_ns = MAX_SIMULTANEOUS * RATE_SECONDS * NANOS_PER_SECOND / rate;
        let step = STEPS_NS.into_iter().find(|step| *step <= grid_ns).unwrap_or(1);
        let fraction = u128::from(GOLDEN.wrapping_mul(self.number));
        let wait_ns = (fraction * u128::from(self.spread_ns)) >> 64;
        let at = now.0.saturating_add(wait_ns as u64);
        Monotonic(at.div_ceil(step).saturating_mul(step))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pacing.rate.fetch_sub(self.rate, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    #[test]
    fn a_single_session_begins_without_delay() {
        let pacing = Pacing::new(1);
        for _ in 0..3 {
            let now = Monotonic(7 * SECOND + 123_456_789);
            assert_eq!(
                pacing.join(SECOND, 1, u64::MAX).first_start(now),
                Monotonic(7 * SECOND + 128_000_000)
            );
            let now = Monotonic(SECOND);
            assert_eq!(
                pacing.join(SECOND, 1, u64::MAX).first_start(now),
                now,
                "where it is on the grid"
            );
        }
    }

    /// When sessions begin at the same moment, the number of probes due within 8 milliseconds is
    /// close to the unavoidable minimum.
    #[test]
    fn sessions_that_begin_together_are_spread_over_the_interval() {
        for (sessions, gap_ns, most) in [
            (1_000, SECOND, 12),
            (10_000, SECOND, 90),
            (10_000, SECOND / 10, 900),
            (100, SECOND, 2),
        ] {
            for threads in [1, 2] {
                let pacing = Pacing::new(threads);
                let now = Monotonic(5 * SECOND + 77);
                let shares: Vec<Share> =
                    (0..sessions).map(|_| pacing.join(gap_ns, 1, u64::MAX)).collect();
                let mut due = vec![0; (gap_ns / COARSEST_NS) as usize + 1];
                for share in &shares {
                    let first = share.first_start(now);
                    assert!(first.since_ns(now) <= gap_ns + COARSEST_NS);
                    due[(first.0 % gap_ns / COARSEST_NS) as usize] += 1;
                }
                let found = due.into_iter().max().unwrap();
                assert!(found <= most, "{sessions} each {gap_ns} ns: {found}");
            }
        }
    }

    #[test]
    fn grid_becomes_finer_with_more_probes() {
        let grid = |threads, sessions, gap_ns| {
            let pacing = Pacing::new(threads);
            let shares: Vec<Share> =
                (0..sessions).map(|_| pacing.join(gap_ns, 1, u64::MAX)).collect();
            let firsts = shares.iter().map(|share| share.first_start(Monotonic(1)).0);
            STEPS_NS.into_iter().find(|step| firsts.clone().all(|at| at % step == 0))
        };
        assert_eq!(grid(1, 1_000, SECOND), Some(COARSEST_NS));
        assert_eq!(grid(1, 10_000, SECOND), Some(1_000_000));
        assert_eq!(grid(2, 10_000, SECOND), Some(2_000_000), "on two threads");
        assert_eq!(grid(1, 10_000, SECOND / 10), Some(20_000));
        assert_eq!(grid(1, 10_000, SECOND / 100), None, "hundreds of thousands");
    }

    #[test]
    fn delay_of_the_first_test_is_limited() {
        let pacing = Pacing::new(1);
        let _others: Vec<Share> = (0..10).map(|_| pacing.join(SECOND, 1, u64::MAX)).collect();
        for gap_ns in [0, 1, 255 * SECOND, u64::MAX] {
            let wait = |latest_ns| {
                pacing.join(gap_ns, 1, latest_ns).first_start(Monotonic(1)).since_ns(Monotonic(1))
            };
            assert!(wait(u64::MAX) <= MAX_DELAY_NS + COARSEST_NS, "{gap_ns}");
            assert!(
                wait(SECOND / 10) <= SECOND / 10 + COARSEST_NS,
                "{gap_ns}: no test is left out"
            );
        }
    }
}
