//! Detection of stalled tasks: a supervised task calls [`Heartbeat::beat`] at least once per
//! [`Heartbeat::interval`], and is restarted after [`STALL_LIMIT`] without a call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::pause::since_pause;

/// Longest time between two beats of a healthy task.
const INTERVAL: Duration = Duration::from_secs(15);
/// Time without a beat after which a task counts as stalled. It is well above [`INTERVAL`] and
/// above the delays of an overloaded host.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Heartbeat of one task, shared by all clones.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    begun: Instant,
    /// Time of the latest beat, milliseconds after `begun`.
    last: Arc<AtomicU64>,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { begun: Instant::now(), last: Arc::default() }
    }
}

impl Heartbeat {
    /// Records that the task is alive.
    pub fn beat(&self) {
        self.last.store(self.begun.elapsed().as_millis() as u64, Relaxed);
    }

    /// Returns the longest allowed time between two beats.
    pub fn interval(&self) -> Duration {
        INTERVAL
    }

    /// Returns the time since the latest beat, or since the end of a pause of the process after it.
    pub fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Relaxed));
        let silence = self.begun.elapsed().saturating_sub(last);
        since_pause().map_or(silence, |since| silence.min(since))
    }

    /// Returns true when the task has stalled.
    pub fn has_stalled(&self) -> bool {
        self.silence() >= STALL_LIMIT
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_beats_has_not_stalled() {
        let heartbeat = Heartbeat::default();
        let other = heartbeat.clone();
        for _ in 0..10 {
            advance(heartbeat.interval()).await;
            other.beat();
            assert!(!heartbeat.has_stalled());
        }
        advance(STALL_LIMIT).await;
        assert!(heartbeat.has_stalled());
        other.beat();
        assert!(!heartbeat.has_stalled());
    }
}
