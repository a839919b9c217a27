//! How far the sessions of a connection are: written by their tasks, read by the driver. A value
//! and a bell rather than a queue: nothing waits for the driver, and nothing piles up.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::time::Monotonic;

/// Silence after which sessions are negotiated anew, the first time.
const FIRST_SILENCE_NS: u64 = 30_000_000_000;
/// And at most.
const LONGEST_SILENCE_NS: u64 = 900_000_000_000;
/// Fewer tests without a reply are no silence.
const SILENT_TESTS: u32 = 3;

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

/// Tests of a session without a single reply, one after the other.
#[derive(Clone, Copy, Debug, Default)]
struct Unanswered {
    tests: u32,
    /// When the first of them ended.
    since: Monotonic,
    now: Monotonic,
}

/// The stages of all sessions of a connection.
#[derive(Debug)]
pub(super) struct Progress {
    stages: Mutex<Vec<Stage>>,
    unanswered: Mutex<Vec<Unanswered>>,
    bell: Notify,
}

impl Progress {
    pub(super) fn new(sessions: usize) -> Self {
        Self {
            stages: Mutex::new(vec![Stage::default(); sessions]),
            unanswered: Mutex::new(vec![Unanswered::default(); sessions]),
            bell: Notify::new(),
        }
    }

    /// A test ended in which probes were sent.
    pub(super) fn test_ended(&self, index: usize, answered: bool, now: Monotonic) {
        if let Some(session) = lock(&self.unanswered).get_mut(index) {
            *session = match session {
                _ if answered => Unanswered::default(),
                Unanswered { tests: 0, .. } => Unanswered { tests: 1, since: now, now },
                Unanswered { tests, since, .. } => {
                    Unanswered { tests: *tests + 1, since: *since, now }
                }
            };
        }
    }

    /// What was negotiated anew has yet to prove itself.
    pub(super) fn forget_silence(&self) {
        lock(&self.unanswered).fill(Unanswered::default());
    }

    /// For how long the session that is silent longest has been; 0 where all were answered.
    fn silent_ns(&self) -> u64 {
        let silent = |session: &Unanswered| match session.tests {
            0..SILENT_TESTS => 0,
            _ => session.now.since_ns(session.since),
        };
        lock(&self.unanswered).iter().map(silent).max().unwrap_or(0)
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
        lock(&self.stages)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a session may be silent, though its control connection lives, before it is taken to be
/// forgotten by its server (REFWAIT, a reflector that was started again). Longer each time that it
/// does not help: then it is the path.
#[derive(Debug)]
pub(super) struct Silence {
    limit_ns: u64,
}

impl Default for Silence {
    fn default() -> Self {
        Self { limit_ns: FIRST_SILENCE_NS }
    }
}

impl Silence {
    /// Whether it is time to negotiate anew.
    pub(super) fn is_over(&mut self, progress: &Progress) -> bool {
        let silent_ns = progress.silent_ns();
        if silent_ns == 0 {
            if lock(&progress.unanswered).iter().all(|session| session.tests == 0) {
                self.limit_ns = FIRST_SILENCE_NS;
            }
            return false;
        }
        let over = silent_ns >= self.limit_ns;
        if over {
            self.limit_ns = (self.limit_ns * 2).min(LONGEST_SILENCE_NS);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_from_a_lost_test_and_grows() {
        let second = |n: u64| Monotonic(n * 1_000_000_000);
        let (progress, mut silence) = (Progress::new(2), Silence::default());
        progress.test_ended(1, true, second(0));
        for now in 0..30 {
            progress.test_ended(0, false, second(now));
            assert!(!silence.is_over(&progress), "{now}");
        }
        progress.test_ended(0, false, second(30));
        assert!(silence.is_over(&progress));
        // Anew, and no better: twice as long.
        progress.forget_silence();
        for now in 40..100 {
            progress.test_ended(0, false, second(now));
            assert!(!silence.is_over(&progress), "{now}");
        }
        progress.test_ended(0, false, second(100));
        assert!(silence.is_over(&progress));
        // One reply, and all is forgotten.
        progress.test_ended(0, true, second(101));
        assert!(!silence.is_over(&progress));
        assert_eq!(silence.limit_ns, FIRST_SILENCE_NS);
    }
}
