//! Starts a task again that failed, but not for ever at once.

use std::{any::Any, collections::VecDeque, future::Future, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Pulse, pulse::STALLED};

/// How often a task may fail.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Wait before the first restart; doubles with each further one.
    pub first_delay: Duration,
    /// Longest wait.
    pub longest_delay: Duration,
    /// Failures within `window` after which it is left alone.
    pub budget: usize,
    /// See `budget`.
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

/// How often it is looked whether a task has stalled.
const LOOK: Duration = Duration::from_secs(15);

/// Runs what `start` makes, again whenever it panics or stalls, until it ends by itself or `token`
/// is cancelled. What it makes is to beat the pulse that it is given. Each failure is told to `failed` with its text and whether it was the last one that
/// the budget allows.
pub async fn keep_alive<F, Task>(
    token: CancellationToken,
    policy: RestartPolicy,
    mut start: F,
    mut failed: impl FnMut(&str, bool),
) where
    F: FnMut(Pulse) -> Task,
    Task: Future<Output = ()> + Send + 'static,
{
    let mut failures: VecDeque<Instant> = VecDeque::new();
    loop {
        // Dropping the set ends the task; one that never yields goes on until it does.
        let mut running = JoinSet::new();
        let pulse = Pulse::default();
        running.spawn(start(pulse.clone()));
        let panic = tokio::select! {
            ended = running.join_next() => match ended {
                Some(Err(error)) if error.is_panic() => error.into_panic(),
                _ => return,
            },
            () = stalled(&pulse) => Box::new(format!("stalled for {} s", STALLED.as_secs())),
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

async fn stalled(pulse: &Pulse) {
    while !pulse.has_stalled() {
        sleep(LOOK).await;
    }
}

/// What a panic says.
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
    async fn restarts_until_the_budget_is_spent() {
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
    async fn a_task_that_ends_is_not_started_again() {
        let starts = AtomicUsize::new(0);
        let count = |_| {
            starts.fetch_add(1, Relaxed);
            async {}
        };
        keep_alive(CancellationToken::new(), RestartPolicy::default(), count, |_, _| {}).await;
        assert_eq!(starts.load(Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_stalls_is_started_again_and_one_that_beats_is_not() {
        let starts = Arc::new(AtomicUsize::new(0));
        let mut failures = Vec::new();
        let begun = Instant::now();
        keep_alive(
            CancellationToken::new(),
            RestartPolicy::default(),
            |pulse: Pulse| {
                let first = starts.fetch_add(1, Relaxed) == 0;
                async move {
                    for _ in 0..20 {
                        sleep(pulse.rest()).await;
                        if !first {
                            pulse.beat();
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
