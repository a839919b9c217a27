//! Detection of pauses of the whole process: a frozen cgroup, SIGSTOP, a virtual machine that was
//! stopped. No task made progress in a pause, but no task has stalled.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Interval at which the process shows that it runs.
const INTERVAL: Duration = Duration::from_secs(1);
/// Gap between two signs of life from which on the process was paused. Above the delays of an
/// overloaded host, below what peers notice.
const MIN_PAUSE: Duration = Duration::from_secs(5);

static PROCESS: LazyLock<PauseWatch> = LazyLock::new(PauseWatch::default);

/// Pauses that were seen so far.
#[derive(Debug)]
struct PauseWatch {
    begun: Instant,
    /// Latest sign of life, in milliseconds after `begun`; 0 while [`watch_pauses`] does not run.
    alive_ms: AtomicU64,
    /// Time in pauses, in milliseconds.
    paused_ms: AtomicU64,
    /// End of the latest pause, in milliseconds after `begun`; 0 for none.
    ended_ms: AtomicU64,
}

impl Default for PauseWatch {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self { begun: Instant::now(), alive_ms: zero(), paused_ms: zero(), ended_ms: zero() }
    }
}

impl PauseWatch {
    /// Records a sign of life. A long gap before it counts as a pause, once if several threads call
    /// this.
    fn record_alive(&self, now_ms: u64) {
        let before_ms = self.alive_ms.fetch_max(now_ms.max(1), Relaxed);
        let gap_ms = now_ms.saturating_sub(before_ms);
        if before_ms > 0 && u128::from(gap_ms) >= MIN_PAUSE.as_millis() {
            self.paused_ms.fetch_add(gap_ms, Relaxed);
            self.ended_ms.fetch_max(now_ms, Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Returns the time in pauses up to the latest sign of life.
    fn paused(&self) -> Duration {
        Duration::from_millis(self.paused_ms.load(Relaxed))
    }

    /// Returns the time since the latest pause, which may have ended just now.
    fn since_pause(&self) -> Option<Duration> {
        if self.alive_ms.load(Relaxed) == 0 {
            return None;
        }
        let now_ms = self.now_ms();
        self.record_alive(now_ms);
        let ended_ms = self.ended_ms.load(Relaxed);
        (ended_ms > 0).then(|| Duration::from_millis(now_ms.saturating_sub(ended_ms)))
    }
}

/// Returns the time since the latest pause of the process; `None` without one, or while
/// [`watch_pauses`] does not run.
pub(super) fn since_pause() -> Option<Duration> {
    PROCESS.since_pause()
}

/// Notices pauses of the process until the token is cancelled, and reports the length of each.
pub async fn watch_pauses(report: impl Fn(Duration) + Send, token: CancellationToken) {
    PROCESS.record_alive(PROCESS.now_ms());
    let mut known = PROCESS.paused();
    loop {
        tokio::select! {
            () = sleep(INTERVAL) => {}
            () = token.cancelled() => break,
        }
        PROCESS.record_alive(PROCESS.now_ms());
        let paused = PROCESS.paused();
        let pause = paused.saturating_sub(std::mem::replace(&mut known, paused));
        if !pause.is_zero() {
            report(pause);
        }
    }
    PROCESS.alive_ms.store(0, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_between_signs_of_life_is_a_pause_and_counts_once() {
        let watch = PauseWatch::default();
        let paused_ms = |at_ms: u64| {
            watch.record_alive(at_ms);
            watch.paused_ms.load(Relaxed)
        };
        assert_eq!(paused_ms(100_000), 0, "no sign of life before");
        for second in 101..120 {
            assert_eq!(paused_ms(second * 1_000), 0);
        }
        assert_eq!(paused_ms(119_000 + 4_999), 0, "an overloaded host");
        assert_eq!(paused_ms(203_999), 80_000);
        assert_eq!(paused_ms(203_999), 80_000, "the next call sees the same pause");
        assert_eq!(paused_ms(203_000), 80_000, "as does a call that read the clock earlier");
        assert_eq!(paused_ms(209_000), 85_001);
    }
}
