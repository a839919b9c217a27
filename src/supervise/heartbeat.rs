//! Detection of stalled tasks: a supervised task beats at least once per [`Heartbeat::interval`],
//! and is restarted when it has not for [`STALL_LIMIT`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::pause::paused;

/// Longest time between two beats of a healthy task.
const INTERVAL: Duration = Duration::from_secs(15);
/// Silence after which a task counts as stalled. Well above [`INTERVAL`] and above the delays of
/// an overloaded host.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Heartbeat of one task, shared by all clones.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    begun: Instant,
    /// Time of the latest beat, milliseconds after `begun`.
    last: Arc<AtomicU64>,
    /// Time in pauses of the process up to the latest beat, in milliseconds.
    paused: Arc<AtomicU64>,
}

impl Default for Heartbeat {
    fn default() -> Self {
        let paused = AtomicU64::new(paused().as_millis() as u64).into();
        Self { begun: Instant::now(), last: Arc::default(), paused }
    }
}

impl Heartbeat {
    /// Records that the task is alive.
    pub fn beat(&self) {
        self.last.store(self.begun.elapsed().as_millis() as u64, Relaxed);
        self.paused.store(paused().as_millis() as u64, Relaxed);
    }

    /// Returns the longest allowed time between two beats.
    pub fn interval(&self) -> Duration {
        INTERVAL
    }

    /// Returns the time since the latest beat, without pauses of the process.
    pub fn silence(&self) -> Duration {
        let at_beat = [&self.last, &self.paused].map(|ms| Duration::from_millis(ms.load(Relaxed)));
        let [last, paused_then] = at_beat;
        let paused_since = paused().saturating_sub(paused_then);
        self.begun.elapsed().saturating_sub(last + paused_since)
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
