//! State of the test sessions of a connection: configured, running or declined, and the times of
//! their requests.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use super::{
    failure::Failure,
    progress::{SessionProgress, SessionStage},
};
use crate::{
    model::{ControlConnection, Endpoint, FailureCause, TestSession},
    time::{Monotonic, NANOS_PER_SECOND},
    wire::codes::Sid,
};

/// Time for which sessions with open sockets wait for the sockets of others. The time for a session
/// whose name was not resolved in time grows with each attempt for which no other session must
/// wait.
pub(crate) const SOCKET_WAIT_NS: u64 = 2_600_000_000;
/// Limit of that growth.
const MAX_WAIT_FACTOR: u64 = 4;
/// Minimum time between two requests that interrupt the sessions of a connection without individual
/// control; also the pause below which a connection is not closed until the next test.
pub(crate) const SHORT_PAUSE_NS: u64 = 60 * NANOS_PER_SECOND;

/// Session that is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartedSession {
    pub(crate) name: String,
    /// SID; `None` without negotiation.
    pub(crate) sid: Option<Sid>,
    pub(crate) local: SocketAddr,
    /// Address of the reflector.
    pub(crate) remote: SocketAddr,
}

/// Session that is not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declined {
    pub(crate) name: String,
    pub(crate) failure: Failure,
}

/// Failed requests for a session that does not run while others do.
#[derive(Debug, Default)]
struct Refusal {
    tries: u64,
    /// Reason of the latest failure.
    failure: Failure,
}

impl Refusal {
    /// Returns true if the server was not asked. Repeating the request then interrupts no session.
    fn is_local(&self) -> bool {
        self.failure.cause != FailureCause::Rejected
    }

    fn is_slow_name(&self) -> bool {
        self.failure.cause == FailureCause::Dns
    }
}

#[derive(Clone, Copy, Debug)]
struct RunningSession {
    sid: Option<Sid>,
    remote: IpAddr,
}

/// State of a configured session.
#[derive(Debug)]
struct SessionState {
    name: String,
    progress: SessionProgress,
    running: Option<RunningSession>,
}

/// State of all sessions of a connection.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// Configured sessions, sorted by name; a vector, because most connections have a single one.
    sessions: Vec<SessionState>,
    refusals: HashMap<String, Refusal>,
}

impl Sessions {
    /// Applies a configuration; the state of sessions that remain is kept.
    pub(super) fn configure(&mut self, config: &ControlConnection) {
        let mut known = std::mem::take(&mut self.sessions);
        let state = |session: &TestSession| {
            let index = known.iter().position(|known| known.name == session.name);
            match index {
                Some(index) => known.swap_remove(index),
                None => SessionState {
                    name: session.name.clone(),
                    progress: SessionProgress::default(),
                    running: None,
                },
            }
        };
        self.sessions = config.sessions.iter().map(state).collect();
        self.sessions.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let is_configured = |name: &String| config.sessions.iter().any(|s| s.name == *name);
        self.refusals.retain(|name, _| is_configured(name));
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn get(&self, name: &str) -> Option<&SessionState> {
        let index = self.sessions.binary_search_by(|session| session.name.as_str().cmp(name));
        index.ok().and_then(|index| self.sessions.get(index))
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut SessionState> {
        let index = self.sessions.binary_search_by(|session| session.name.as_str().cmp(name));
        index.ok().and_then(|index| self.sessions.get_mut(index))
    }

    pub(super) fn update(&mut self, changed: Vec<(String, SessionProgress)>) {
        for (name, progress) in changed {
            if let Some(known) = self.get_mut(&name) {
                known.progress = progress;
            }
        }
    }

    pub(super) fn progress(&self) -> impl Iterator<Item = &SessionProgress> + Clone {
        self.sessions.iter().map(|session| &session.progress)
    }

    /// Returns the progress of the sessions that run.
    pub(super) fn running_progress(&self) -> impl Iterator<Item = &SessionProgress> + Clone {
        let running = self.sessions.iter().filter(|session| session.running.is_some());
        running.map(|session| &session.progress)
    }

    fn progress_mut(&mut self) -> impl Iterator<Item = &mut SessionProgress> {
        self.sessions.iter_mut().map(|session| &mut session.progress)
    }

    /// Ends the wait of the chosen sessions for their next test.
    pub(super) fn wake(&mut self, is_chosen: impl Fn(&str) -> bool) {
        let chosen = self.sessions.iter_mut().filter(|session| is_chosen(&session.name));
        chosen.for_each(|session| session.progress.wake());
    }

    /// Starts all sessions over with their tests; declined sessions are requested or declined
    /// again.
    pub(super) fn restart(&mut self) {
        self.refusals.clear();
        self.progress_mut().for_each(|progress| progress.stage = SessionStage::Testing);
    }

    /// Marks completed sessions as testing, because they have further tests.
    pub(super) fn continue_completed(&mut self) {
        let completed = self.progress_mut().filter(|progress| progress.is_completed());
        completed.for_each(|progress| progress.stage = SessionStage::Testing);
    }

    pub(super) fn connection_started(&mut self) {
        self.progress_mut().for_each(SessionProgress::session_started);
    }

    pub(super) fn session_started(&mut self, session: &StartedSession) {
        let running = RunningSession { sid: session.sid, remote: session.remote.ip() };
        if let Some(state) = self.get_mut(&session.name) {
            state.running = Some(running);
        }
        self.refusals.remove(&session.name);
    }

    /// Marks sessions as stopped; returns the SIDs of negotiated ones.
    pub(super) fn mark_stopped(&mut self, names: &[String]) -> Vec<Sid> {
        let stop = |name: &String| self.get_mut(name)?.running.take()?.sid;
        names.iter().filter_map(stop).collect()
    }

    pub(super) fn mark_all_stopped(&mut self) {
        self.sessions.iter_mut().for_each(|session| session.running = None);
    }

    pub(super) fn is_running(&self, name: &str) -> bool {
        self.get(name).is_some_and(|session| session.running.is_some())
    }

    pub(super) fn running_count(&self) -> usize {
        self.sessions.iter().filter(|session| session.running.is_some()).count()
    }

    /// Returns the address of the reflector of each session that runs.
    pub(super) fn remotes(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        let running = |session: &SessionState| session.running.map(|running| running.remote);
        self.sessions.iter().filter_map(move |s| Some((s.name.as_str(), running(s)?)))
    }

    pub(super) fn all_completed(&self) -> bool {
        let mut stages = self.progress().map(|progress| progress.stage);
        !self.sessions.is_empty() && stages.all(|stage| stage == SessionStage::Completed)
    }

    /// Returns the time of the first due test; `None` if a session is testing.
    pub(super) fn idle_until(&self) -> Option<Monotonic> {
        let mut first: Option<Monotonic> = None;
        for progress in self.progress() {
            match progress.stage {
                SessionStage::Testing => return None,
                SessionStage::Between(due) => {
                    first = Some(first.map_or(due, |first| first.min(due)));
                }
                SessionStage::Completed => {}
            }
        }
        first
    }

    /// Returns the reason why nothing can be sent, if there is one for each running session with
    /// tests left.
    pub(super) fn refused(&self) -> Option<Failure> {
        let mut found = None;
        for SessionState { progress, running, .. } in &self.sessions {
            if progress.stage != SessionStage::Completed && running.is_some() {
                found = Some(progress.refused.as_deref()?);
            }
        }
        found.cloned()
    }

    /// Returns the configured sessions that do not run, in the order of the configuration.
    pub(super) fn missing(&self, config: &ControlConnection) -> Vec<String> {
        names(config).filter(|name| !self.is_running(name)).collect()
    }

    /// Returns the sessions that an attempt requests first. Sessions whose names were not resolved
    /// in time are requested after them.
    pub(super) fn requested_first(&self, config: &ControlConnection) -> Vec<String> {
        let is_slow = |name: &String| self.refusals.get(name).is_some_and(Refusal::is_slow_name);
        let first: Vec<String> = names(config).filter(|name| !is_slow(name)).collect();
        if first.is_empty() { names(config).collect() } else { first }
    }

    pub(super) fn is_declined(&self, name: &str) -> bool {
        self.refusals.contains_key(name)
    }

    /// Returns true if a session that does not run was declined without asking the server.
    pub(super) fn is_declined_locally(&self, name: &str) -> bool {
        self.refusals.get(name).is_some_and(Refusal::is_local)
    }

    /// Clears the failures of declined sessions.
    pub(super) fn forget_declined(&mut self, names: &[String]) {
        self.refusals.retain(|name, _| !names.contains(name));
    }

    /// Records that a session was declined; returns the number of times, and true if the reason is
    /// new.
    pub(super) fn record_declined(&mut self, declined: &Declined) -> (u64, bool) {
        let refusal = self.refusals.entry(declined.name.clone()).or_default();
        refusal.tries += 1;
        let is_new = refusal.failure != declined.failure;
        refusal.failure.clone_from(&declined.failure);
        (refusal.tries, is_new)
    }

    /// Returns all sessions that were declined, in the order of the configuration.
    pub(super) fn all_declined(&self, config: &ControlConnection) -> Vec<Declined> {
        let declined = |name: String| {
            let failure = self.refusals.get(&name)?.failure.clone();
            Some(Declined { name, failure })
        };
        names(config).filter_map(declined).collect()
    }

    /// Returns the time to wait for the sockets of missing sessions.
    pub(super) fn socket_wait_ns(&self) -> u64 {
        let slow = self.refusals.values().filter(|refusal| refusal.is_slow_name());
        let tries = slow.map(|refusal| refusal.tries).max().unwrap_or(0);
        SOCKET_WAIT_NS * tries.saturating_add(1).min(MAX_WAIT_FACTOR)
    }

    /// Returns the time to wait for sockets when all sessions are requested again: longer if a
    /// session that ran before has a name, because its resolution worked.
    pub(super) fn socket_wait_for_all_ns(
        &self,
        config: &ControlConnection,
        touched: &[String],
    ) -> u64 {
        let is_named = |session: &TestSession| matches!(session.target, Some(Endpoint::Name(_)));
        let ran = |session: &TestSession| {
            self.is_running(&session.name) && !touched.contains(&session.name)
        };
        let some = config.sessions.iter().any(|session| ran(session) && is_named(session));
        if some { SOCKET_WAIT_NS * MAX_WAIT_FACTOR } else { SOCKET_WAIT_NS }
    }
}

fn names(config: &ControlConnection) -> impl Iterator<Item = String> {
    config.sessions.iter().map(|session| session.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_session_that_can_send_prevents_an_outage() {
        let failure = || Some(Failure::new(FailureCause::NoRoute, "no route"));
        let config = super::super::tests::config(|c| {
            c.test_sessions = ["a", "b", "c"].map(super::super::tests::session).into();
        });
        let mut sessions = Sessions::default();
        sessions.configure(&config);
        for name in ["a", "b", "c"] {
            sessions.session_started(&super::super::tests::started(name));
        }
        let refused = |refused: Option<Failure>| {
            let mut progress = SessionProgress::default();
            progress.refused = refused.map(Box::new);
            progress
        };
        let update = |sessions: &mut Sessions, name: &str, progress| {
            sessions.update(vec![(name.to_owned(), progress)]);
        };
        let mut completed = SessionProgress::default();
        completed.stage = SessionStage::Completed;
        update(&mut sessions, "c", completed);
        update(&mut sessions, "a", refused(failure()));
        assert_eq!(sessions.refused(), None);
        update(&mut sessions, "b", refused(failure()));
        assert_eq!(sessions.refused(), failure());
        update(&mut sessions, "a", refused(None));
        assert_eq!(sessions.refused(), None);
        update(&mut sessions, "a", refused(failure()));
        sessions.connection_started();
        assert_eq!(sessions.refused(), None);
    }
}
