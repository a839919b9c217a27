//! Attempts of a connection, from the resolution of the server's name to the started sessions, and
//! the outages between them.

use std::net::SocketAddr;

use super::{
    Action, AttemptContext, Connection, ConnectionEvent, Declined, Failure, Operation, Phase,
    SOCKET_WAIT_NS, SessionCommand, Started, StartedSession,
    retry::RetrySchedule,
    state::{Connecting, Running, State, Step, Then},
    status::FailureReport,
};
use crate::{
    model::{Endpoint, FailureCause, SessionControl},
    time::{Monotonic, Now, UnixTime},
};

impl Connection {
    /// Begins an attempt, unless no session has a test left.
    pub(super) fn begin_attempt(&mut self, now: Now) {
        if self.sessions.all_completed() {
            return self.complete(now);
        }
        self.network_seen = self.network;
        // From here on, a change of the configuration has the effect that it has on a connection
        // that is down.
        self.status.session_control = SessionControl::Down;
        self.requests.begin_attempt(now.monotonic);
        let first = self.sessions.requested_first(&self.config);
        let (names, left_out) = self.requests.split(first, 0);
        let context = self.attempt_context(SOCKET_WAIT_NS, now);
        self.show_following_attempt(now);
        let config = self.config.clone();
        let step = if self.is_managed() {
            self.set_attempt_phase(Phase::Resolving, now);
            self.begin_operation(Operation::Resolve(config));
            Step::Resolving
        } else {
            let (names, others_wait) = (names.clone(), false);
            self.begin_operation(Operation::OpenUnnegotiated {
                config,
                names,
                context,
                others_wait,
            });
            Step::Negotiating
        };
        self.state = State::Connecting(Connecting { step, names, context });
        self.record_left_out(left_out, now);
    }

    /// Drops the attempt in progress.
    pub(super) fn abandon_attempt(&mut self) {
        if matches!(self.state, State::Connecting(_)) {
            self.actions.push_back(Action::Abandon);
            self.drop_control();
        }
    }

    pub(super) fn drop_control(&mut self) {
        if std::mem::take(&mut self.has_control) {
            self.actions.push_back(Action::Drop);
        }
    }

    pub(super) fn handle_resolved(&mut self, result: Result<Vec<SocketAddr>, Failure>, now: Now) {
        let State::Connecting(Connecting { step, context, .. }) = &mut self.state else { return };
        let mut addresses = match result {
            Ok(addresses) if !addresses.is_empty() => addresses,
            Ok(_) => {
                return self.attempt_failed(Failure::new(FailureCause::Dns, "no address"), now);
            }
            Err(failure) => return self.attempt_failed(failure, now),
        };
        *step = Step::Tcp;
        let first = context.address % addresses.len();
        addresses.rotate_left(first);
        // The TCP connect gets a quarter of the timeout even after slow name resolution.
        let least_ns = self.config.connect_timeout_ns / 4;
        let limit_ns = context.deadline.since_ns(now.monotonic).max(least_ns);
        let config = self.config.clone();
        self.set_attempt_phase(Phase::Connecting, now);
        self.begin_operation(Operation::Connect { config, addresses, limit_ns });
    }

    pub(super) fn handle_connected(
        &mut self,
        result: Result<(SocketAddr, SocketAddr), Failure>,
        now: Now,
    ) {
        let State::Connecting(Connecting { step, names, context }) = &mut self.state else {
            return;
        };
        let ends = match result {
            Ok(ends) => ends,
            Err(failure) => return self.attempt_failed(failure, now),
        };
        *step = Step::Negotiating;
        let (names, context) = (names.clone(), *context);
        self.has_control = true;
        self.set_attempt_phase(Phase::Negotiating, now);
        self.status.ends = Some(ends);
        self.status.sends_addresses = context.sends_addresses;
        let extensions = self.extensions.extensions(&self.config, now.monotonic);
        let config = self.config.clone();
        self.begin_operation(Operation::Negotiate { config, names, extensions, context });
    }

    /// Handles the result of a negotiation, or of an attempt that needs none.
    pub(super) fn handle_attempted(&mut self, result: Result<Started, Failure>, now: Now) {
        if !matches!(self.state, State::Connecting(_)) {
            return;
        }
        match result {
            Ok(Started { sessions, mut declined, .. })
                if sessions.is_empty() && !declined.is_empty() =>
            {
                let last = declined.pop().map(|last| last.failure).unwrap_or_default();
                self.attempt_failed(last, now);
            }
            Ok(started) => {
                self.extensions.record_success(now.monotonic);
                self.requests.record_success();
                self.enter_running(started, now);
            }
            Err(failure) => self.attempt_failed(failure, now),
        }
    }

    fn attempt_failed(&mut self, failure: Failure, now: Now) {
        self.extensions.record_failure(&failure.suspect, now.monotonic);
        // Only one suspicion is tested at a time; otherwise none could be confirmed.
        if !self.extensions.tries_without() {
            self.addresses.record_failure(&failure);
        }
        self.lose(failure, false, now);
    }

    /// Enters the running state with the sessions that were started.
    fn enter_running(&mut self, started: Started, now: Now) {
        let Started { sessions, declined, mode, is_individual } = started;
        self.sessions.connection_started();
        self.status.set_phase(Phase::Running, now);
        self.status.mode = mode;
        self.status.session_control = match self.has_control && !is_individual {
            true => SessionControl::AllOrNothing,
            false => SessionControl::Individual,
        };
        self.status_changed = true;
        if let Some((mut outage, length_ns)) = self.status.end_outage(now) {
            outage.attempts += 1;
            let restored = ConnectionEvent::Restored { outage, length_ns };
            self.actions.push_back(Action::Event(restored));
        }
        if self.has_control {
            // The configuration may have changed during the attempt.
            self.actions.push_back(Action::SetSocketOptions(self.config.clone()));
        }
        self.state = State::Running(Running { missing: None, review: now.monotonic, change: None });
        self.start_sessions(sessions);
        self.decline_sessions(declined, now);
        self.begin_running(now);
    }

    /// Passes sessions with their sockets to their threads.
    pub(super) fn start_sessions(&mut self, sessions: Vec<StartedSession>) {
        let names = sessions.iter().map(|session| session.name.clone()).collect();
        for session in sessions {
            if self.config.sessions.iter().any(|configured| configured.name == session.name) {
                self.sessions.session_started(&session);
                self.status.session_started(session);
            }
        }
        self.status_changed = true;
        self.actions.push_back(Action::Start(names));
    }

    /// Records sessions that do not run although their connection does.
    pub(super) fn decline_sessions(&mut self, declined: Vec<Declined>, now: Now) {
        if declined.is_empty() {
            return;
        }
        for declined in declined {
            let (tries, is_new) = self.sessions.record_declined(&declined);
            let Declined { name, failure } = declined;
            self.actions.push_back(Action::Decline { name, failure, tries, is_new });
        }
        let all = self.sessions.all_declined(&self.config);
        self.status.sessions_declined(&all, now);
        self.status_changed = true;
    }

    /// Declines sessions whose request would make the server end the connection.
    pub(super) fn record_left_out(&mut self, names: Vec<String>, now: Now) {
        let declined = names.into_iter().filter(|name| !self.sessions.is_declined(name));
        let declined = declined.map(|name| {
            let detail =
                "not requested: the server closes the connection on a request for this session";
            let failure = Failure::new(FailureCause::ClosedByServer, detail).for_session(&name);
            Declined { name, failure }
        });
        let declined: Vec<Declined> = declined.collect();
        self.decline_sessions(declined, now);
    }

    /// Begins an outage or counts a failed attempt of it, and waits for the next attempt. `started`
    /// is true if the sessions of the lost connection were started.
    pub(super) fn lose(&mut self, failure: Failure, started: bool, now: Now) {
        self.drop_control();
        let requests_fewer = self.requests.record_failure(&failure.suspect, now.monotonic);
        let at_once = requests_fewer || started && failure.cause == FailureCause::LocalError;
        if started {
            self.retry = RetrySchedule::starting_at(now.monotonic);
            self.network_seen = self.network;
        }
        let attempts = self.record_outage(&failure, started, now);
        self.command(SessionCommand::Down(failure.cause, attempts));
        self.sessions.mark_all_stopped();
        if started && self.ends_with_loss() {
            return self.leave(true, Then::CompleteByLoss, now);
        }
        let due = if at_once { now.monotonic } else { self.next_attempt(now) };
        self.wait_until(due, now);
        if self.network != self.network_seen {
            self.begin_attempt(now);
        }
    }

    /// Begins an outage, or counts a failed attempt of the current one. Returns the number of
    /// failed attempts.
    fn record_outage(&mut self, failure: &Failure, started: bool, now: Now) -> u64 {
        // The loss of a running connection does not count as an attempt; a failed first attempt
        // does.
        let failed = u64::from(!started);
        self.status_changed = true;
        let attempts = match &mut self.status.outage {
            Some(outage) => {
                outage.attempts += 1;
                outage.attempts
            }
            None => {
                self.status.begin_outage(failure.clone(), failed, now);
                let lost = ConnectionEvent::Lost(failure.clone());
                self.actions.push_back(Action::Event(lost));
                failed
            }
        };
        if attempts > 0 {
            self.status.attempts_since_success = attempts;
            let failure = failure.clone();
            self.status.last_failure = Some(FailureReport { failure, time: now.unix });
        }
        attempts
    }

    pub(super) fn wait_until(&mut self, due: Monotonic, now: Now) {
        self.status.set_phase(Phase::WaitingRetry, now);
        self.status.next_attempt = Some(to_unix(due, now));
        self.status_changed = true;
        self.state = State::WaitingRetry(due);
    }

    pub(super) fn next_attempt(&mut self, now: Now) -> Monotonic {
        let random = if self.config.retry_backoff_max_ns == 0 { 0 } else { self.random() };
        self.retry.next_attempt(&self.config, random, now.monotonic)
    }

    /// Returns the context of a request or attempt that begins now.
    pub(super) fn attempt_context(&mut self, socket_wait_ns: u64, now: Now) -> AttemptContext {
        let attempts = self.status.outage.as_ref().map_or(0, |outage| outage.attempts);
        // Ports are awaited once after each change, which may have moved a port from one session to
        // another.
        let before = self.ports_awaited_in.replace(self.applied);
        AttemptContext {
            deadline: self.retry.connect_deadline(&self.config, now.monotonic),
            address: self.silences.wrapping_add(attempts as usize),
            waits_for_ports: before != Some(self.applied),
            socket_wait_ns,
            sends_addresses: self.addresses.sends_addresses(&self.config),
        }
    }

    /// Sets the time of the attempt after the current one in the status.
    pub(super) fn show_following_attempt(&mut self, now: Now) {
        let following = self.retry.following_attempt(&self.config, now.monotonic);
        self.status.set_following_attempt(following.map(|due| to_unix(due, now)));
        self.status_changed = true;
    }

    fn set_attempt_phase(&mut self, phase: Phase, now: Now) {
        let is_named = matches!(self.config.target, Some(Endpoint::Name(_)));
        if phase != Phase::Resolving || is_named {
            self.status.set_phase(phase, now);
            self.status_changed = true;
        }
    }
}

/// Returns a due time in UTC.
pub(super) fn to_unix(due: Monotonic, now: Now) -> UnixTime {
    now.unix.plus_ns(i64::try_from(due.since_ns(now.monotonic)).unwrap_or(i64::MAX))
}
