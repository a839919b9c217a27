//! When the tests of many sessions begin, so that a thread that sends for all of them is woken for
//! several probes at once, and never for so many that the last of them is late.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::time::{Monotonic, NANOS_PER_SECOND};

/// Probes that may be due at one moment: the last waits for the others to be sent, which takes a
/// few microseconds each.
const TOGETHER: u64 = 16;
/// Tests begin so much later than they could, at most.
const COARSEST_NS: u64 = 1_000_000;
/// Finer is not worth it.
const FINEST_NS: u64 = 20_000;
/// Rates are counted in probes in so many seconds.
const SECONDS: u64 = 1_000;

/// The rate of all sessions of some threads.
#[derive(Debug)]
pub(super) struct Pace {
    threads: u64,
    /// Probes in [`SECONDS`].
    rate: AtomicU64,
}

/// The part of one session, for as long as this lives.
#[derive(Debug)]
pub(super) struct Share {
    pace: Arc<Pace>,
    rate: u64,
}

impl Pace {
    pub(super) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self { threads: threads.max(1) as u64, rate: AtomicU64::new(0) })
    }

    /// A session sends at this interval in the mean from now on.
    pub(super) fn join(self: &Arc<Self>, mean_gap_ns: u64) -> Share {
        let rate = SECONDS * NANOS_PER_SECOND / mean_gap_ns.max(1);
        self.rate.fetch_add(rate, Relaxed);
        Share { pace: self.clone(), rate }
    }

    /// The first moment from `now` on at which a test may begin.
    pub(super) fn first(&self, now: Monotonic) -> Monotonic {
        let rate = (self.rate.load(Relaxed) / self.threads).max(1);
        let grid_ns = TOGETHER * SECONDS * NANOS_PER_SECOND / rate;
        // Each step is a multiple of the one below, so that what begins on one is on the finer.
        let steps = [COARSEST_NS, COARSEST_NS / 2, COARSEST_NS / 10, FINEST_NS];
        let step = steps.into_iter().find(|step| *step <= grid_ns).unwrap_or(1);
        Monotonic(now.0.div_ceil(step).saturating_mul(step))
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

    #[test]
    fn the_more_probes_the_finer_the_grid() {
        let pace = Pace::new(1);
        let second = NANOS_PER_SECOND;
        let now = Monotonic(7 * second + 123_456_789);
        let wait = |pace: &Pace| pace.first(now).since_ns(now);
        assert_eq!(pace.first(now), Monotonic(7 * second + 124_000_000));
        assert_eq!(pace.first(Monotonic(second)), Monotonic(second), "at once where it fits");
        let thousands: Vec<Share> = (0..30_000).map(|_| pace.join(second)).collect();
        assert_eq!(pace.first(now), Monotonic(7 * second + 123_500_000));
        let more: Vec<Share> = (0..5_000).map(|_| pace.join(second / 100)).collect();
        assert!(wait(&pace) < FINEST_NS, "hundreds of thousands");
        drop((thousands, more));
        assert_eq!(pace.first(now), Monotonic(7 * second + 124_000_000));
        let halves = Pace::new(2);
        let _shares: Vec<Share> = (0..30_000).map(|_| halves.join(second)).collect();
        assert_eq!(halves.first(now), Monotonic(7 * second + 124_000_000), "on two threads");
    }
}
