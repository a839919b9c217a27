//! Test sessions of a connection: which of them are configured, run, or were declined, and which are to
//! be requested when.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use super::{
    failure::Failure,
    progress::{SessionProgress, SessionStage},
};
use crate::{
    model::{ControlConnection, Endpoint, TestSession},
    proto::FailureCause,
    time::{Monotonic, NANOS_PER_SECOND},
    wire::codes::Sid,
};

/// Time that sessions whose sockets are open wait for the sockets of others. A session whose name was
/// not resolved in time is waited for longer each time that no other has to wait with it.
pub(crate) const SOCKET_WAIT_NS: u64 = 2_600_000_000;
/// Limit of that growth.
const MAX_WAIT_FACTOR: u64 = 4;
/// Shortest time between two requests that interrupt the sessions of a connection that can only be
/// started together; also the pause below which a connection is not closed until the next test.
pub(crate) const SHORT_PAUSE_NS: u64 = 60 * NANOS_PER_SECOND;

/// A session that is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartedSession {
    pub(crate) name: String,
    /// SID; `None` where nothing was negotiated.
    pub(crate) sid: Option<Sid>,
    pub(crate) local: SocketAddr,
    /// Address of the reflector.
    pub(crate) remote: SocketAddr,
}

/// A session that is not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declined {
    pub(crate) name: String,
    pub(crate) failure: Failure,
}

/// Failed requests of a session that does not run though others do.
#[derive(Debug, Default)]
struct Refusal {
    tries: u64,
    /// Reason of the latest.
    failure: Failure,
}

impl Refusal {
    /// Returns whether the server was not asked: repeating the request interrupts no session.
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

/// State of all sessions of a connection.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    progress: BTreeMap<String, SessionProgress>,
    running: HashMap<String, RunningSession>,
    refusals: HashMap<String, Refusal>,
}

impl Sessions {
    /// Follows the configuration; the state of sessions that stay is kept.
    pub(super) fn follow(&mut self, config: &ControlConnection) {
        let is_configured = |name: &String| config.sessions.iter().any(|s| s.name == *name);
        self.progress.retain(|name, _| is_configured(name));
        self.running.retain(|name, _| is_configured(name));
        self.refusals.retain(|name, _| is_configured(name));
        for session in &config.sessions {
            self.progress.entry(session.name.clone()).or_default();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn update(&mut self, changed: Vec<(String, SessionProgress)>) {
        for (name, progress) in changed {
            if let Some(known) = self.progress.get_mut(&name) {
                *known = progress;
            }
        }
    }

    pub(super) fn progress(&self) -> impl Iterator<Item = &SessionProgress> + Clone {
        self.progress.values()
    }

    /// Lets the sessions that are chosen wait for their next test no longer.
    pub(super) fn wake(&mut self, is_chosen: impl Fn(&str) -> bool) {
        let chosen = self.progress.iter_mut().filter(|(name, _)| is_chosen(name));
        chosen.for_each(|(_, progress)| progress.wake());
    }

    /// Lets all sessions start over with their tests.
    pub(super) fn restart(&mut self) {
        self.progress.values_mut().for_each(|progress| progress.stage = SessionStage::Testing);
    }

    pub(super) fn connection_started(&mut self) {
        self.progress.values_mut().for_each(SessionProgress::session_started);
    }

    pub(super) fn session_started(&mut self, session: &StartedSession) {
        let running = RunningSession { sid: session.sid, remote: session.remote.ip() };
        self.running.insert(session.name.clone(), running);
        self.refusals.remove(&session.name);
    }

    /// Forgets that sessions run; returns the SIDs of those that were negotiated.
    pub(super) fn stopped(&mut self, names: &[String]) -> Vec<Sid> {
        names.iter().filter_map(|name| self.running.remove(name)?.sid).collect()
    }

    pub(super) fn all_stopped(&mut self) {
        self.running.clear();
    }

    pub(super) fn is_running(&self, name: &str) -> bool {
        self.running.contains_key(name)
    }

    pub(super) fn running_count(&self) -> usize {
        self.running.len()
    }

    /// Returns the address of the reflector of each session that runs.
    pub(super) fn remotes(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.running.iter().map(|(name, running)| (name.as_str(), running.remote))
    }

    pub(super) fn all_completed(&self) -> bool {
        let mut stages = self.progress.values().map(|progress| progress.stage);
        !self.progress.is_empty() && stages.all(|stage| stage == SessionStage::Completed)
    }

    /// Returns the time of the first test that is due, where no session tests.
    pub(super) fn idle_until(&self) -> Option<Monotonic> {
        let mut first: Option<Monotonic> = None;
        for progress in self.progress.values() {
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

    /// Returns why nothing can be sent, where that is so of every session that runs and has tests left.
    pub(super) fn refused(&self) -> Option<Failure> {
        let mut found = None;
        for (name, progress) in &self.progress {
            if progress.stage != SessionStage::Completed && self.is_running(name) {
                found = Some(progress.refused.as_ref()?);
            }
        }
        found.cloned()
    }

    /// Returns the sessions that are configured and do not run, in the order of the configuration.
    pub(super) fn missing(&self, config: &ControlConnection) -> Vec<String> {
        names(config).filter(|name| !self.is_running(name)).collect()
    }

    /// Returns the sessions that an attempt requests: those whose names were not resolved in time are
    /// requested after the others.
    pub(super) fn requested_first(&self, config: &ControlConnection) -> Vec<String> {
        let is_slow = |name: &String| self.refusals.get(name).is_some_and(Refusal::is_slow_name);
        let first: Vec<String> = names(config).filter(|name| !is_slow(name)).collect();
        if first.is_empty() { names(config).collect() } else { first }
    }

    pub(super) fn is_declined(&self, name: &str) -> bool {
        self.refusals.contains_key(name)
    }

    /// Returns whether a session that does not run was declined without asking the server.
    pub(super) fn is_declined_locally(&self, name: &str) -> bool {
        self.refusals.get(name).is_some_and(Refusal::is_local)
    }

    /// Forgets why these sessions were declined.
    pub(super) fn forget_declined(&mut self, names: &[String]) {
        self.refusals.retain(|name, _| !names.contains(name));
    }

    /// Records that a session was declined; returns how often that was, and whether the reason is new.
    pub(super) fn declined(&mut self, declined: &Declined) -> (u64, bool) {
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

    /// Returns the time that the sockets of sessions that do not run are waited for.
    pub(super) fn socket_wait_ns(&self) -> u64 {
        let slow = self.refusals.values().filter(|refusal| refusal.is_slow_name());
        let tries = slow.map(|refusal| refusal.tries).max().unwrap_or(0);
        SOCKET_WAIT_NS * tries.saturating_add(1).min(MAX_WAIT_FACTOR)
    }

    /// Returns the time that sockets are waited for when all sessions are requested again: longer where
    /// one that ran has a name, for nothing was wrong with it.
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
    fn one_session_that_can_send_is_enough() {
        let failure = || Some(Failure::new(FailureCause::NoRoute, "no route"));
        let config = super::super::tests::config(|c| {
            c.test_sessions = ["a", "b", "c"].map(super::super::tests::session).into();
        });
        let mut sessions = Sessions::default();
        sessions.follow(&config);
        for name in ["a", "b", "c"] {
            sessions.session_started(&super::super::tests::started(name));
        }
        let refused = |refused: Option<Failure>| {
            let mut progress = SessionProgress::default();
            progress.refused = refused;
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
