//! Groups of tasks that can be cancelled and awaited together.

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

    /// Returns a subgroup that is cancelled with this group, or alone by its own token. Its tasks are
    /// tracked by this group, so [`Self::end`] must be called only on this group.
    pub fn child(&self) -> Self {
        Self { tracker: self.tracker.clone(), token: self.token.child_token() }
    }

    /// Spawns a task, which must watch [`Self::token`] and end soon after its cancellation.
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
