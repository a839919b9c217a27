//! How far the sessions of a connection are: written by their tasks, read by the driver. A value
//! and a bell rather than a queue: nothing waits for the driver, and nothing piles up.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::time::Monotonic;

/// What one session does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Tests, or waits for a connection.
    #[default]
    Testing,
    /// Its test has ended; when the next is due.
    Between(Monotonic),
    /// It ran its `test_count` of tests.
    Completed,
}

/// The stages of all sessions of a connection.
#[derive(Debug)]
pub(super) struct Progress {
    stages: Mutex<Vec<Stage>>,
    bell: Notify,
}

impl Progress {
    pub(super) fn new(sessions: usize) -> Self {
        Self { stages: Mutex::new(vec![Stage::default(); sessions]), bell: Notify::new() }
    }

    /// A session enters a stage.
    pub(super) fn set(&self, index: usize, stage: Stage) {
        if let Some(old) = self.lock().get_mut(index) {
            *old = stage;
        }
        self.bell.notify_one();
    }

    /// All sessions begin again.
    pub(super) fn reset(&self) {
        self.lock().fill(Stage::Testing);
    }

    /// Waits until some session entered a stage.
    pub(super) async fn changed(&self) {
        self.bell.notified().await;
    }

    pub(super) fn all_completed(&self) -> bool {
        let stages = self.lock();
        !stages.is_empty() && stages.iter().all(|stage| *stage == Stage::Completed)
    }

    /// Where no session tests: when the first test is due.
    pub(super) fn idle_until(&self) -> Option<Monotonic> {
        let stages = self.lock();
        let due = |stage: &Stage| match stage {
            Stage::Testing => Some(None),
            Stage::Between(due) => Some(Some(*due)),
            Stage::Completed => None,
        };
        stages.iter().filter_map(due).collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Stage>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
