//! How far the sessions of a connection are: written by their threads, read by the driver. A value
//! and a bell rather than a queue: nothing waits for the driver, and nothing piles up.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::failure::Failure;
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

/// What is known of one session.
#[derive(Clone, Debug, Default)]
struct OfSession {
    stage: Stage,
    unanswered: Unanswered,
    /// Why this host would not send a single probe of the last test.
    refused: Option<Failure>,
    /// Tests that ended since the last time that all sessions had ended one.
    ended: u64,
}

/// How far all sessions of a connection are, by their names.
#[derive(Debug, Default)]
pub(super) struct Progress {
    sessions: Mutex<HashMap<String, OfSession>>,
    bell: Notify,
}

impl Progress {
    /// These are the sessions now; what is known of those that stay stays.
    pub(super) fn follow(&self, names: &[&str]) {
        let mut sessions = self.lock();
        sessions.retain(|name, _| names.contains(&name.as_str()));
        for name in names {
            sessions.entry((*name).to_owned()).or_default();
        }
    }

    /// A test ended; whether that completes an iteration: every session has ended one. `answered`
    /// tells of a test in which probes were sent, or would have been but for `refused`.
    pub(super) fn test_ended(
        &self,
        name: &str,
        answered: Option<bool>,
        refused: Option<Failure>,
        now: Monotonic,
    ) -> bool {
        let mut sessions = self.lock();
        let Some(session) = sessions.get_mut(name) else { return false };
        session.ended += 1;
        session.refused = refused;
        session.unanswered = match (answered, session.unanswered) {
            (None, unanswered) => unanswered,
            (Some(true), _) => Unanswered::default(),
            (Some(false), Unanswered { tests: 0, .. }) => Unanswered { tests: 1, since: now, now },
            (Some(false), Unanswered { tests, since, .. }) => {
                Unanswered { tests: tests + 1, since, now }
            }
        };
        let done = sessions.values().all(|session| session.ended > 0);
        if done {
            sessions.values_mut().for_each(|session| session.ended -= 1);
        }
        done
    }

    /// What was negotiated anew has yet to prove itself.
    pub(super) fn forget_silence(&self) {
        for session in self.lock().values_mut() {
            (session.unanswered, session.refused) = (Unanswered::default(), None);
        }
    }

    /// Why nothing can be sent, where that is so of every session that runs and has tests to run.
    pub(super) fn refused(&self, runs: impl Fn(&str) -> bool) -> Option<Failure> {
        let sessions = self.lock();
        let mut found = None;
        for (name, session) in sessions.iter() {
            if session.stage != Stage::Completed && runs(name) {
                found = Some(session.refused.as_ref()?);
            }
        }
        found.cloned()
    }

    /// For how long the session that is silent longest has been; 0 where all were answered.
    fn silent_ns(&self) -> u64 {
        let silent = |session: &OfSession| match session.unanswered {
            Unanswered { tests: 0..SILENT_TESTS, .. } => 0,
            Unanswered { since, now, .. } => now.since_ns(since),
        };
        self.lock().values().map(silent).max().unwrap_or(0)
    }

    fn all_answered(&self) -> bool {
        self.lock().values().all(|session| session.unanswered.tests == 0)
    }

    /// A session enters a stage.
    pub(super) fn set(&self, name: &str, stage: Stage) {
        if let Some(session) = self.lock().get_mut(name) {
            session.stage = stage;
        }
        self.bell.notify_one();
    }

    /// A session that is in no test begins the next one at this time, which may be another than it was.
    /// One that waits for its first test counts as one that tests, unless it `waits_long`.
    pub(super) fn move_due(&self, name: &str, due: Monotonic, waits_long: bool) {
        let mut sessions = self.lock();
        let Some(session) = sessions.get_mut(name) else { return };
        let moves = match session.stage {
            Stage::Testing => waits_long,
            Stage::Between(before) => before != due,
            Stage::Completed => false,
        };
        if moves {
            session.stage = Stage::Between(due);
            // It may be so far off that the connection is closed until then.
            self.bell.notify_one();
        }
    }

    /// Of these sessions, those that wait for their next test do so no longer.
    pub(super) fn wake(&self, which: impl Fn(&str) -> bool) {
        for (name, session) in self.lock().iter_mut() {
            if matches!(session.stage, Stage::Between(_)) && which(name) {
                session.stage = Stage::Testing;
            }
        }
    }

    /// All sessions begin again.
    pub(super) fn reset(&self) {
        self.lock().values_mut().for_each(|session| session.stage = Stage::Testing);
    }

    /// Waits until some session entered a stage.
    pub(super) async fn changed(&self) {
        self.bell.notified().await;
    }

    pub(super) fn all_completed(&self) -> bool {
        let sessions = self.lock();
        !sessions.is_empty() && sessions.values().all(|s| s.stage == Stage::Completed)
    }

    /// Where no session tests: when the first test is due.
    pub(super) fn idle_until(&self) -> Option<Monotonic> {
        let sessions = self.lock();
        let due = |session: &OfSession| match session.stage {
            Stage::Testing => Some(None),
            Stage::Between(due) => Some(Some(due)),
            Stage::Completed => None,
        };
        sessions.values().filter_map(due).collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, OfSession>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            if progress.all_answered() {
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
        let (progress, mut silence) = (Progress::default(), Silence::default());
        progress.follow(&["a", "b"]);
        progress.test_ended("b", Some(true), None, second(0));
        for now in 0..30 {
            progress.test_ended("a", Some(false), None, second(now));
            assert!(!silence.is_over(&progress), "{now}");
        }
        progress.test_ended("a", Some(false), None, second(30));
        assert!(silence.is_over(&progress));
        // Anew, and no better: twice as long.
        progress.forget_silence();
        for now in 40..100 {
            progress.test_ended("a", Some(false), None, second(now));
            assert!(!silence.is_over(&progress), "{now}");
        }
        progress.test_ended("a", Some(false), None, second(100));
        assert!(silence.is_over(&progress));
        // One reply, and all is forgotten.
        progress.test_ended("a", Some(true), None, second(101));
        assert!(!silence.is_over(&progress));
        assert_eq!(silence.limit_ns, FIRST_SILENCE_NS);
    }

    #[test]
    fn one_session_that_can_send_is_enough() {
        let (progress, now) = (Progress::default(), Monotonic(0));
        let failure = || Some(Failure::new(crate::proto::FailureCause::NoRoute, "no route"));
        progress.follow(&["a", "b", "c"]);
        progress.set("c", Stage::Completed);
        progress.test_ended("a", Some(false), failure(), now);
        assert_eq!(progress.refused(|_| true), None);
        progress.test_ended("b", Some(false), failure(), now);
        assert_eq!(progress.refused(|_| true), failure());
        progress.test_ended("a", Some(false), None, now);
        assert_eq!(progress.refused(|_| true), None);
        progress.test_ended("a", Some(false), failure(), now);
        progress.forget_silence();
        assert_eq!(progress.refused(|_| true), None);
    }

    #[test]
    fn an_iteration_is_a_test_of_every_session() {
        let progress = Progress::default();
        progress.follow(&["a", "b"]);
        let ended = |name| progress.test_ended(name, None, None, Monotonic(0));
        assert_eq!([ended("a"), ended("a"), ended("b"), ended("b")], [false, false, true, true]);
        progress.follow(&["b"]);
        assert!(ended("b"));
        assert!(!ended("a"), "it is gone");
    }
}
