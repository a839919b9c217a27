//! When the tests of many sessions begin: spread over their interval, so that no probe has to wait
//! until a thousand others are sent, and on a grid, so that a thread that sends for all of them is
//! woken for several at once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::time::{Monotonic, NANOS_PER_SECOND};

/// Probes that may be due at one moment: the last waits for the others to be sent, which takes a
/// few microseconds each.
const TOGETHER: u64 = 10;
/// The grid is not coarser than this.
const COARSEST_NS: u64 = 8_000_000;
/// What its steps may be, the coarsest first: each is a multiple of the next, so that what begins
/// on one is on all that are finer. Finer than the last is not worth it.
const STEPS_NS: [u64; 6] = [COARSEST_NS, 4_000_000, 2_000_000, 1_000_000, 200_000, 20_000];
/// Rates are counted in probes in so many seconds.
const SECONDS: u64 = 1_000;
/// Tests begin so much later than they could, at most.
const LONGEST_WAIT_NS: u64 = NANOS_PER_SECOND;
/// The golden ratio in 64 bits: its multiples divide an interval evenly, however many there are.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The rate of all sessions of some threads.
#[derive(Debug)]
pub(super) struct Pace {
    threads: u64,
    /// Probes in [`SECONDS`].
    rate: AtomicU64,
    /// Sessions that joined since there was none.
    joined: AtomicU64,
}

/// The part of one session, for as long as this lives.
#[derive(Debug)]
pub(super) struct Share {
    pace: Arc<Pace>,
    rate: u64,
    /// Over this its first probe is spread.
    spread_ns: u64,
    number: u64,
}

impl Pace {
    pub(super) fn new(threads: usize) -> Arc<Self> {
        let (rate, joined) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { threads: threads.max(1) as u64, rate, joined })
    }

    /// A session sends at this interval, and so many probes each time, from now on. Its tests begin at
    /// most `latest_ns` later than they could.
    pub(super) fn join(
        self: &Arc<Self>,
        interval_ns: u64,
        burst_size: u32,
        latest_ns: u64,
    ) -> Share {
        let bursts = SECONDS * NANOS_PER_SECOND / interval_ns.max(1);
        let rate = (bursts * u64::from(burst_size)).max(1);
        if self.rate.fetch_add(rate, Relaxed) == 0 {
            self.joined.store(0, Relaxed);
        }
        let number = self.joined.fetch_add(1, Relaxed);
        let spread_ns = interval_ns.min(latest_ns).min(LONGEST_WAIT_NS);
        Share { pace: self.clone(), rate, spread_ns, number }
    }
}

impl Share {
    /// When the first test begins that could begin now: at once where the session is alone.
    pub(super) fn first(&self, now: Monotonic) -> Monotonic {
        let rate = (self.pace.rate.load(Relaxed) / self.pace.threads).max(1);
        let grid_ns = TOGETHER * SECONDS * NANOS_PER_SECOND / rate;
        let step = STEPS_NS.into_iter().find(|step| *step <= grid_ns).unwrap_or(1);
        let turn = u128::from(GOLDEN.wrapping_mul(self.number));
        let wait_ns = (turn * u128::from(self.spread_ns)) >> 64;
        let at = now.0.saturating_add(wait_ns as u64);
        Monotonic(at.div_ceil(step).saturating_mul(step))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pace.rate.fetch_sub(self.rate, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    #[test]
    fn a_session_that_is_alone_begins_at_once_each_time() {
        let pace = Pace::new(1);
        for _ in 0..3 {
            let now = Monotonic(7 * SECOND + 123_456_789);
            assert_eq!(
                pace.join(SECOND, 1, u64::MAX).first(now),
                Monotonic(7 * SECOND + 128_000_000)
            );
            let now = Monotonic(SECOND);
            assert_eq!(pace.join(SECOND, 1, u64::MAX).first(now), now, "where it is on the grid");
        }
    }

    /// Whatever begins at the same moment: never are many more probes due within 8 milliseconds
    /// than there have to be.
    #[test]
    fn what_begins_together_is_spread_over_its_interval() {
        for (sessions, gap_ns, most) in [
            (1_000, SECOND, 12),
            (10_000, SECOND, 90),
            (10_000, SECOND / 10, 900),
            (100, SECOND, 2),
        ] {
            for threads in [1, 2] {
                let pace = Pace::new(threads);
                let now = Monotonic(5 * SECOND + 77);
                let shares: Vec<Share> =
                    (0..sessions).map(|_| pace.join(gap_ns, 1, u64::MAX)).collect();
                let mut due = vec![0; (gap_ns / COARSEST_NS) as usize + 1];
                for share in &shares {
                    let first = share.first(now);
                    assert!(first.since_ns(now) <= gap_ns + COARSEST_NS);
                    due[(first.0 % gap_ns / COARSEST_NS) as usize] += 1;
                }
                let found = due.into_iter().max().unwrap();
                assert!(found <= most, "{sessions} each {gap_ns} ns: {found}");
            }
        }
    }

    #[test]
    fn the_more_probes_the_finer_the_grid() {
        let grid = |threads, sessions, gap_ns| {
            let pace = Pace::new(threads);
            let shares: Vec<Share> =
                (0..sessions).map(|_| pace.join(gap_ns, 1, u64::MAX)).collect();
            let firsts = shares.iter().map(|share| share.first(Monotonic(1)).0);
            STEPS_NS.into_iter().find(|step| firsts.clone().all(|at| at % step == 0))
        };
        assert_eq!(grid(1, 1_000, SECOND), Some(COARSEST_NS));
        assert_eq!(grid(1, 10_000, SECOND), Some(1_000_000));
        assert_eq!(grid(2, 10_000, SECOND), Some(2_000_000), "on two threads");
        assert_eq!(grid(1, 10_000, SECOND / 10), Some(20_000));
        assert_eq!(grid(1, 10_000, SECOND / 100), None, "hundreds of thousands");
    }

    #[test]
    fn nobody_waits_long() {
        let pace = Pace::new(1);
        let _others: Vec<Share> = (0..10).map(|_| pace.join(SECOND, 1, u64::MAX)).collect();
        for gap_ns in [0, 1, 255 * SECOND, u64::MAX] {
            let wait = |latest_ns| {
                pace.join(gap_ns, 1, latest_ns).first(Monotonic(1)).since_ns(Monotonic(1))
            };
            assert!(wait(u64::MAX) <= LONGEST_WAIT_NS + COARSEST_NS, "{gap_ns}");
            assert!(
                wait(SECOND / 10) <= SECOND / 10 + COARSEST_NS,
                "{gap_ns}: no test is left out"
            );
        }
    }
}
