//! What a service manager is told (sd_notify(3)): that the agent is ready, that it lives, that it
//! ends. Without one, nothing.

use std::{future::pending, time::Duration};

use sd_notify::NotifyState;
use tokio::time::sleep;

/// The agent has started.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The agent ends.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says that the agent lives, as often as the service manager wants to hear it, for ever. Where the
/// threads of the agent are stuck, nothing is said, and it is started again.
pub(crate) async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| *limit > Duration::ZERO) else {
        return pending().await;
    };
    loop {
        tell(&[NotifyState::Watchdog]);
        sleep(limit / 3).await;
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager was not told");
    }
}
