//! Progress of the sessions of a connection. Their threads write it, the driver reads it. It
//! consists of values and a notification instead of a queue, so that no thread waits for the driver
//! and nothing accumulates.

use std::{collections::HashMap, sync::Mutex};

use tokio::sync::Notify;

use crate::{
    session::lock,
    time::Monotonic,
    twamp::connection::{Failure, SessionProgress, SessionStage},
};

#[derive(Debug, Default)]
struct Entry {
    progress: SessionProgress,
    has_changed: bool,
    /// Number of ended tests that do not yet belong to a complete iteration.
    ended: u64,
}

/// Conclusions from the end of a test.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TestEnd {
    /// True if every session has now ended a test of the iteration.
    pub(super) completes_iteration: bool,
    /// See [`SessionProgress::may_have_expired`].
    pub(super) may_have_expired: bool,
}

/// Progress of all sessions of a connection, by name.
#[derive(Debug, Default)]
pub(super) struct Progress {
    sessions: Mutex<HashMap<String, Entry>>,
    notify: Notify,
}

impl Progress {
    /// Sets the names of the sessions. The progress of sessions that remain is kept.
    pub(super) fn set_sessions(&self, names: &[&str]) {
        let mut sessions = lock(&self.sessions);
        sessions.retain(|name, _| names.contains(&name.as_str()));
        for name in names {
            sessions.entry((*name).to_owned()).or_default();
        }
    }

    /// Records the end of a test. For `answered`, `probes` and `refused` see
    /// [`SessionProgress::test_ended`].
    pub(super) fn test_ended(
        &self,
        name: &str,
        answered: Option<bool>,
        probes: u64,
        refused: Option<Failure>,
        now: Monotonic,
    ) -> TestEnd {
        let mut sessions = lock(&self.sessions);
        let Some(session) = sessions.get_mut(name) else { return TestEnd::default() };
        session.ended += 1;
        session.has_changed = true;
        session.progress.test_ended(answered, probes, refused, now);
        let may_have_expired = session.progress.may_have_expired();
        let completes_iteration = sessions.values().all(|session| session.ended > 0);
        if completes_iteration {
            sessions.values_mut().for_each(|session| session.ended -= 1);
        }
        TestEnd { completes_iteration, may_have_expired }
    }

    /// Changes the progress of a session and notifies the driver.
    pub(super) fn update(&self, name: &str, change: impl FnOnce(&mut SessionProgress)) {
        if let Some(session) = lock(&self.sessions).get_mut(name) {
            change(&mut session.progress);
            session.has_changed = true;
        }
        self.notify.notify_one();
    }

    /// Sets the stage of the named session.
    pub(super) fn set_stage(&self, name: &str, stage: SessionStage) {
        self.update(name, |progress| progress.stage = stage);
    }

    /// Moves the due time of the next test of a session that is between tests; see
    /// [`SessionProgress::move_due`].
    pub(super) fn move_due(&self, name: &str, due: Monotonic, waits_long: bool) {
        let mut sessions = lock(&self.sessions);
        let Some(session) = sessions.get_mut(name) else { return };
        if session.progress.move_due(due, waits_long) {
            session.has_changed = true;
            // The test may be so late that the connection is closed until then.
            self.notify.notify_one();
        }
    }

    /// Waits for progress of any session.
    pub(super) async fn changed(&self) {
        self.notify.notified().await;
    }

    /// Returns the progress that changed since the last call.
    pub(super) fn drain(&self) -> Vec<(String, SessionProgress)> {
        let mut sessions = lock(&self.sessions);
        let changed = sessions.iter_mut().filter(|(_, session)| session.has_changed);
        let drained = changed.map(|(name, session)| {
            session.has_changed = false;
            (name.clone(), session.progress.clone())
        });
        drained.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iteration_is_one_test_of_every_session() {
        let progress = Progress::default();
        progress.set_sessions(&["a", "b"]);
        let ended =
            |name| progress.test_ended(name, None, 0, None, Monotonic(0)).completes_iteration;
        assert_eq!([ended("a"), ended("a"), ended("b"), ended("b")], [false, false, true, true]);
        progress.set_sessions(&["b"]);
        assert!(ended("b"));
        assert!(!ended("a"), "the session is gone");
    }

    #[test]
    fn each_change_is_drained_once() {
        let progress = Progress::default();
        progress.set_sessions(&["a", "b"]);
        progress.set_stage("a", SessionStage::Completed);
        let drained = progress.drain();
        assert_eq!(drained.len(), 1);
        assert_eq!((drained[0].0.as_str(), drained[0].1.stage), ("a", SessionStage::Completed));
        assert!(progress.drain().is_empty());
    }
}
