//! Restarts of failed tasks with backoff and a budget.

use std::{any::Any, collections::VecDeque, future::Future, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Heartbeat, heartbeat::STALL_LIMIT};

/// Backoff and budget of restarts.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Delay before the first restart; doubles with each further failure.
    pub first_delay: Duration,
    /// Upper limit of the delay.
    pub longest_delay: Duration,
    /// Number of failures within `window` after which the task is not restarted.
    pub budget: usize,
    /// Period in which failures count.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(60),
            budget: 10,
            window: Duration::from_secs(600),
        }
    }
}

/// Interval between checks for a stall.
const STALL_CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// Runs the task that `start` creates and restarts it when it panics or stalls, until it returns or
/// `token` is cancelled. The task must beat its heartbeat. `failed` receives the text of each
/// failure, and true if the failure exhausted the budget.
pub async fn keep_alive<F, Task>(
    token: CancellationToken,
    policy: RestartPolicy,
    mut start: F,
    mut failed: impl FnMut(&str, bool),
) where
    F: FnMut(Heartbeat) -> Task,
    Task: Future<Output = ()> + Send + 'static,
{
    let mut failures: VecDeque<Instant> = VecDeque::new();
    loop {
        // Dropping the set aborts the task at its next await.
        let mut running = JoinSet::new();
        let heartbeat = Heartbeat::default();
        running.spawn(start(heartbeat.clone()));
        let panic = tokio::select! {
            ended = running.join_next() => match ended {
                Some(Err(error)) if error.is_panic() => error.into_panic(),
                _ => return,
            },
            () = wait_for_stall(&heartbeat) => Box::new(format!("stalled for {} s", STALL_LIMIT.as_secs())),
        };
        drop(running);
        let now = Instant::now();
        failures.push_back(now);
        failures.retain(|at| now.duration_since(*at) < policy.window);
        let exhausted = failures.len() >= policy.budget;
        failed(panic_text(panic.as_ref()), exhausted);
        if exhausted {
            return;
        }
        let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(16);
        let delay = policy.first_delay.saturating_mul(1 << doublings).min(policy.longest_delay);
        tokio::select! {
            () = sleep(delay) => {}
            () = token.cancelled() => return,
        }
    }
}

async fn wait_for_stall(heartbeat: &Heartbeat) {
    while !heartbeat.has_stalled() {
        sleep(STALL_CHECK_INTERVAL).await;
    }
}

/// Returns the message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    #[tokio::test(start_paused = true)]
    async fn a_task_is_restarted_until_the_budget_is_exhausted() {
        let starts = Arc::new(AtomicUsize::new(0));
        let mut failures = Vec::new();
        let policy = RestartPolicy { budget: 3, ..RestartPolicy::default() };
        let begun = Instant::now();
        keep_alive(
            CancellationToken::new(),
            policy,
            |_| {
                let starts = starts.clone();
                async move {
                    starts.fetch_add(1, Relaxed);
                    panic!("no {}", "luck");
                }
            },
            |text, last| failures.push((text.to_owned(), last)),
        )
        .await;
        assert_eq!(starts.load(Relaxed), 3);
        assert_eq!(failures[0], ("no luck".to_owned(), false));
        assert_eq!(failures[2], ("no luck".to_owned(), true));
        assert_eq!(begun.elapsed().as_secs(), 1 + 2);
    }

    #[tokio::test]
    async fn a_task_that_returns_is_not_restarted() {
        let starts = AtomicUsize::new(0);
        let count = |_| {
            starts.fetch_add(1, Relaxed);
            async {}
        };
        keep_alive(CancellationToken::new(), RestartPolicy::default(), count, |_, _| {}).await;
        assert_eq!(starts.load(Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_stalled_task_is_restarted() {
        let starts = Arc::new(AtomicUsize::new(0));
        let mut failures = Vec::new();
        let begun = Instant::now();
        keep_alive(
            CancellationToken::new(),
            RestartPolicy::default(),
            |heartbeat: Heartbeat| {
                let first = starts.fetch_add(1, Relaxed) == 0;
                async move {
                    for _ in 0..20 {
                        sleep(heartbeat.interval()).await;
                        if !first {
                            heartbeat.beat();
                        }
                    }
                }
            },
            |text, last| failures.push((text.to_owned(), last)),
        )
        .await;
        assert_eq!(failures, [("stalled for 60 s".to_owned(), false)]);
        assert_eq!(starts.load(Relaxed), 2);
        assert_eq!(begun.elapsed().as_secs(), 60 + 1 + 300);
    }
}
