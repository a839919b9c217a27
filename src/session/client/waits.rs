//! What a connection that is not there waits for: its next attempt, or its next test.

use std::{future::pending, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::connection::{Driver, Next};
use crate::{
    net::{NetworkChanges, clock},
    time::Monotonic,
};

impl Driver {
    /// Waits for the time of the next test, which may change. Nothing is wrong: the network has no part
    /// in it.
    pub(super) async fn park_until(&mut self, mut due: Monotonic) -> Next {
        let progress = self.progress.clone();
        loop {
            self.status.parked(due, clock::now());
            tokio::select! {
                () = sleep(until(Some(due))) => return Next::Attempt,
                () = progress.changed() => {}
                next = self.change() => match next {
                    Next::Retimed => continue,
                    Next::Sessions => self.change_sessions_apart().await,
                    next @ (Next::Anew
                    | Next::Attempt
                    | Next::Tuned
                    | Next::Lost(..)
                    | Next::Completed
                    | Next::Parked(_)
                    | Next::Again
                    | Next::End) => return next,
                }
            }
            if progress.all_completed() {
                return Next::Completed;
            }
            // Where a session no longer waits, it has a test to run.
            due = progress.idle_until().unwrap_or_else(clock::monotonic);
            self.course.attempt_at(due);
        }
    }

    /// Waits for the time of the next attempt, or for a change of the network that may make one
    /// succeed before.
    pub(super) async fn wait_until(&mut self, mut due: Monotonic) -> Next {
        let (known, progress) = (self.network_seen, self.progress.clone());
        loop {
            self.status.waiting(due, clock::now());
            let mut network = self.network.clone();
            let better = gets_better(&mut network, known);
            tokio::select! {
                () = sleep(until(Some(due))) => return Next::Attempt,
                () = better => return Next::Attempt,
                () = progress.changed() => {
                    if progress.all_completed() {
                        return Next::Completed;
                    }
                    continue;
                }
                next = self.change() => if !matches!(next, Next::Retimed) {
                    return next;
                }
            }
            // Counted from now on, where that is sooner.
            self.course.attempt_at(clock::monotonic());
            due = due.min(self.next_attempt());
            self.course.attempt_at(due);
        }
    }
}

/// Waits for a change of the network, behind the ones that are known, that may make an attempt
/// succeed.
pub(super) async fn gets_better(network: &mut watch::Receiver<NetworkChanges>, known: u64) {
    if network.wait_for(|changes| changes.better != known).await.is_err() {
        pending::<()>().await;
    }
}

/// How long that is from now on.
pub(super) fn until(due: Option<Monotonic>) -> Duration {
    due.map_or(Duration::MAX, |due| Duration::from_nanos(due.since_ns(clock::monotonic())))
}
