//! Simulated server, and the operations of the driver.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    world::{MS, SECOND, Session, TEST, World},
    *,
};
use crate::model::{Extensions, FailureCause, touched_sessions};

/// Simulated server and network.
#[expect(clippy::struct_excessive_bools, reason = "each is a property of some server")]
pub(super) struct Server {
    pub(super) up: bool,
    /// Failure of an attempt while the server is down, and the duration of the attempt in
    /// nanoseconds.
    pub(super) failure: (FailureCause, u64),
    /// Duration of name resolution; `None` without an answer.
    pub(super) resolves_in: Option<u64>,
    pub(super) handshake: u64,
    pub(super) is_individual: bool,
    /// Maximum number of sessions; the server closes the connection if more are requested.
    pub(super) max_sessions: usize,
    /// Sessions that the server rejects.
    pub(super) rejects: BTreeSet<String>,
    /// Sessions whose sockets cannot be opened, with the cause.
    pub(super) unopened: BTreeMap<String, FailureCause>,
    /// Silence after which the server ends a session.
    pub(super) refwait: u64,
    /// Sessions whose probes are not answered.
    pub(super) silent: BTreeSet<String>,
    /// True if the server closes the connection when sessions are stopped.
    pub(super) closes_on_stop: bool,
    /// True if the server accepts a request for extensions.
    pub(super) knows_extensions: bool,
    /// True if the server accepts sessions whose requests have zero addresses, and if it reflects
    /// for them.
    pub(super) accepts_zeros: bool,
    pub(super) reflects_zeros: bool,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            up: true,
            failure: (FailureCause::Refused, MS),
            resolves_in: Some(2 * MS),
            handshake: 3 * MS,
            is_individual: true,
            max_sessions: usize::MAX,
            rejects: BTreeSet::new(),
            unopened: BTreeMap::new(),
            refwait: u64::MAX,
            closes_on_stop: false,
            silent: BTreeSet::new(),
            knows_extensions: true,
            accepts_zeros: true,
            reflects_zeros: true,
        }
    }
}

impl World {
    pub(super) fn begin(&mut self, operation: Operation) {
        assert!(self.operation.is_none(), "{operation:?} beside {:?}", self.operation);
        let server = &self.server;
        let (word, names, takes) = match &operation {
            Operation::Resolve(_) => {
                self.attempts.push(self.now);
                ("resolve", Vec::new(), server.resolves_in.unwrap_or(5 * SECOND))
            }
            Operation::Connect { limit_ns, .. } => match server.up {
                true => ("connect", Vec::new(), MS),
                false => ("connect", Vec::new(), server.failure.1.min(*limit_ns)),
            },
            Operation::Negotiate { names, .. } => ("negotiate", names.clone(), server.handshake),
            Operation::OpenUnnegotiated { names, .. } => {
                if !self.machine.is_running() {
                    self.attempts.push(self.now);
                }
                ("open unnegotiated", names.clone(), MS)
            }
            Operation::OpenSockets { names, .. } => ("open", names.clone(), MS),
            Operation::PauseSessions => {
                let takes = self.pause();
                self.pauses_for_long = takes > 60 * SECOND;
                ("pause", Vec::new(), takes)
            }
            Operation::StopSessions { names, .. } => {
                let all = self.sessions.keys().cloned().collect();
                let chosen = names.clone().unwrap_or(all);
                self.check_stop(names.is_none(), &chosen);
                for name in &chosen {
                    let Some(session) = self.sessions.get_mut(name) else { continue };
                    session.is_started = false;
                    session.next_end = 0;
                    session.progress.wake();
                }
                (if names.is_some() { "stop" } else { "stop all" }, chosen, 10 * MS)
            }
            Operation::Request { names, .. } => ("request", names.clone(), server.handshake),
            Operation::Close => {
                self.has_control = false;
                ("close", Vec::new(), 5 * MS)
            }
        };
        self.operations.push((word, names));
        self.operation = Some((self.now + takes, operation));
    }

    /// Finishes the tests of all sessions; returns the duration.
    fn pause(&mut self) -> u64 {
        let now = self.now;
        let in_test = |session: &&mut Session| {
            session.is_started && session.next_end > 0 && session.next_end - TEST < now
        };
        let ends = self.sessions.values_mut().filter(in_test).map(|session| session.next_end);
        let last = ends.max().map_or(MS, |end| end + MS - now);
        let last = if self.has_long_tests { 200 * SECOND } else { last };
        for session in self.sessions.values_mut().filter(|session| session.is_started) {
            session.is_parked = true;
        }
        last
    }

    /// Returns true if a fault explains a new negotiation.
    pub(super) fn is_disturbed(&self) -> bool {
        let server = &self.server;
        !server.up
            || !server.rejects.is_empty()
            || server.max_sessions < usize::MAX
            || server.refwait < u64::MAX
            || !server.silent.is_empty()
            || self.no_route
            || self.machine.config().test_count != 0
            || self.sessions.values().any(|session| session.is_forgotten)
    }

    /// Checks that only changed sessions are stopped, and all of them only for a reason.
    fn check_stop(&self, all: bool, names: &[String]) {
        let running = |name: &String| self.sessions.get(name).is_some_and(|s| s.is_started);
        if all {
            assert!(self.may_stop_all || !names.iter().any(running), "all stopped for no reason");
        } else {
            let machine = &self.machine;
            let touched = touched_sessions(&machine.config, &machine.desired.config);
            assert!(names.iter().all(|name| touched.contains(name)), "{names:?} do not change");
        }
    }

    pub(super) fn end_operation(&mut self) {
        let Some((_, operation)) = self.operation.take() else { return };
        let is_pause = matches!(operation, Operation::PauseSessions);
        assert!(!is_pause || !self.pauses_for_long, "the end of a long test was waited for");
        let down = Failure::new(self.server.failure.0, "down");
        let input = match operation {
            Operation::Resolve(_) => Input::Resolved(match self.server.resolves_in {
                Some(_) => Ok(vec!["192.0.2.1:862".parse().unwrap()]),
                None => Err(Failure::new(FailureCause::Dns, "no answer")),
            }),
            Operation::Connect { .. } => Input::Connected(if self.server.up {
                self.has_control = true;
                Ok(("192.0.2.2:1".parse().unwrap(), "192.0.2.1:862".parse().unwrap()))
            } else {
                Err(down)
            }),
            Operation::Negotiate { names, extensions, context, .. } => {
                let some = extensions != Extensions::NONE;
                let are_zeros = !context.sends_addresses;
                if !self.server.reflects_zeros {
                    self.server.silent = names.iter().filter(|_| are_zeros).cloned().collect();
                }
                let result = if !self.server.up {
                    Err(down)
                } else if are_zeros && !self.server.accepts_zeros {
                    let refused = Failure::new(FailureCause::Rejected, "refused");
                    Err(Failure { accept_code: 3, ..refused }.suspecting_extensions(false))
                } else if some && !self.server.knows_extensions {
                    let refused = Failure::new(FailureCause::Rejected, "refused");
                    let suspect = Suspect::ExtensionsLikely;
                    Err(Failure { accept_code: 1, suspect, ..refused })
                } else {
                    self.negotiate(names, 0)
                };
                self.has_control &= result.is_ok();
                Input::Started(result)
            }
            Operation::OpenUnnegotiated { names, .. } => Input::Started(Ok(self.open(names))),
            Operation::OpenSockets { names, .. } => {
                let Started { sessions, declined, .. } = self.open(names);
                Input::Opened(sessions.into_iter().map(|s| s.name).collect(), declined)
            }
            Operation::Request { names, .. } => {
                let result = if self.server.closes_on_stop && !self.server.is_individual {
                    Err(Failure::closed_by_server())
                } else if self.server.up {
                    let is_running = |s: &&Session| s.is_started;
                    let running = self.sessions.values().filter(is_running).count();
                    self.negotiate(names, running)
                } else {
                    Err(down)
                };
                self.has_control &= result.is_ok();
                Input::Started(result)
            }
            Operation::PauseSessions => {
                for session in self.sessions.values_mut().filter(|session| session.is_started) {
                    session.is_started = false;
                }
                Input::Done
            }
            Operation::StopSessions { .. } | Operation::Close => Input::Done,
        };
        self.input(input);
    }

    fn open(&self, names: Vec<String>) -> Started {
        let mut started = Started::default();
        for name in names {
            match self.server.unopened.get(&name) {
                Some(cause) => {
                    let failure = Failure::new(*cause, "not opened");
                    started.declined.push(Declined { name, failure });
                }
                None => started.sessions.push(super::started(&name)),
            }
        }
        started
    }

    fn negotiate(&self, names: Vec<String>, running: usize) -> Result<Started, Failure> {
        let mut started = self.open(names);
        let room = self.server.max_sessions.saturating_sub(running);
        if let Some(session) = started.sessions.get(room) {
            let suspect = Suspect::Session { name: session.name.clone(), accepted: room };
            let suspect = if room + running > 0 { suspect } else { Suspect::None };
            return Err(Failure { suspect, ..Failure::closed_by_server() });
        }
        started.sessions.retain(|session| {
            let is_rejected = self.server.rejects.contains(&session.name);
            if is_rejected {
                let failure = Failure::new(FailureCause::Rejected, "rejected");
                started.declined.push(Declined { name: session.name.clone(), failure });
            }
            !is_rejected
        });
        started.is_individual = self.server.is_individual;
        Ok(started)
    }
}
