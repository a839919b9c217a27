//! Signs of life. A task beats each time that it comes round, and comes round at least so often as
//! [`Pulse::rest`] says; one that does not is taken to have stalled, and is started again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How often a task that has nothing to do shows that it lives.
const REST: Duration = Duration::from_secs(15);
/// A task that did not come round for so long has stalled. Well above [`REST`], and above what a
/// host that is short of cores may hold a task up.
pub(super) const STALLED: Duration = Duration::from_secs(60);

/// The pulse of one task; clones are the same one.
#[derive(Clone, Debug)]
pub struct Pulse {
    begun: Instant,
    /// Milliseconds after `begun`.
    last: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { begun: Instant::now(), last: Arc::default() }
    }
}

impl Pulse {
    /// The task has come round.
    pub fn beat(&self) {
        self.last.store(self.begun.elapsed().as_millis() as u64, Relaxed);
    }

    /// When it is to come round again at the latest.
    pub fn rest(&self) -> Duration {
        REST
    }

    /// For how long it has not come round.
    pub fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Relaxed));
        self.begun.elapsed().saturating_sub(last)
    }

    /// Whether it has stalled.
    pub fn has_stalled(&self) -> bool {
        self.silence() >= STALLED
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_beats_has_not_stalled() {
        let pulse = Pulse::default();
        let other = pulse.clone();
        for _ in 0..10 {
            advance(pulse.rest()).await;
            other.beat();
            assert!(!pulse.has_stalled());
        }
        advance(STALLED).await;
        assert!(pulse.has_stalled());
        other.beat();
        assert!(!pulse.has_stalled());
    }
}
