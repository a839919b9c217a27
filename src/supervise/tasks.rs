//! Task groups of the agent: no task is detached, and all end together.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// A group of tasks with one cancellation token.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// Creates an independent group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a subgroup with its own token. The end of this group also waits for the tasks of the
    /// subgroup.
    pub fn child(&self) -> Self {
        Self { tracker: self.tracker.clone(), token: self.token.child_token() }
    }

    /// Runs a task. It must end soon after the token is cancelled.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task.instrument(tracing::debug_span!("task", name)));
    }

    /// Returns the token that is cancelled when the group must end.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Cancels the token and waits for all tasks; false if some did not end within `grace`.
    pub async fn end(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}
