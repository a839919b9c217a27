//! Notifications to the service manager (sd_notify(3)); none without one.

use std::{future::pending, time::Duration};

use sd_notify::NotifyState;
use tokio::time::sleep;

/// Reports that the agent is ready.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Reports that the agent is stopping.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Sends keep-alives at the interval required by the service manager, forever. When the threads of
/// the agent are stuck, they cease and the service manager restarts the agent.
pub(crate) async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| *limit > Duration::ZERO) else {
        return pending().await;
    };
    loop {
        notify(&[NotifyState::Watchdog]);
        sleep(limit / 3).await;
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "failed to notify service manager");
    }
}
