//! Connection with running sessions: conclusions from their progress, and changes of the sessions,
//! which interrupt as few of them as possible.

use super::{
    Action, Connection, Declined, Failure, Grace, Operation, SHORT_PAUSE_NS, SOCKET_WAIT_NS,
    SessionCommand, SessionProgress, Started, Suspect,
    retry::RetrySchedule,
    state::{Change, Running, State, Then},
};
use crate::{
    model::{limits::SILENT_CONNECTION_NS, touched_sessions},
    time::{Monotonic, NANOS_PER_SECOND, Now},
};

/// Maximum time for which sessions may finish their tests before they are negotiated again; longer
/// tests are stopped.
const MAX_PAUSE_NS: u64 = 60 * NANOS_PER_SECOND;
/// Interval of reviews of running sessions.
const REVIEW_NS: u64 = 15 * NANOS_PER_SECOND;
/// Time after which sessions are kept over pauses again, although the server had ended them in
/// pauses.
const PAUSE_RETRY_NS: u64 = 6 * 3_600 * NANOS_PER_SECOND;

impl Connection {
    /// Reviews a connection that has just started its sessions.
    pub(super) fn begin_running(&mut self, now: Now) {
        self.actions.push_back(Action::WatchDns);
        let missing = self.missing_due(now);
        // Sessions whose names resolve slowly are requested right after the others, not an interval
        // later.
        let first = self.sessions.requested_first(&self.config).len();
        let is_slow = first < self.config.sessions.len();
        if let State::Running(running) = &mut self.state {
            running.review = now.monotonic.plus_ns(REVIEW_NS);
            running.missing = if is_slow { missing.map(|_| now.monotonic) } else { missing };
        }
    }

    pub(super) fn running_timer(&mut self, now: Now) {
        let State::Running(running) = &mut self.state else { return };
        match &mut running.change {
            None => {
                let is_missing = running.missing.is_some_and(|due| due <= now.monotonic);
                running.review = now.monotonic.plus_ns(REVIEW_NS);
                if is_missing && self.is_individual() {
                    self.change_sessions(now);
                } else {
                    self.running_progress(now);
                }
            }
            Some(Change::Pausing { until, .. }) => {
                *until = None;
                self.actions.push_back(Action::Abandon);
                self.begin_operation(Operation::StopSessions { names: None, grace: Grace::Short });
            }
            Some(Change::Opening | Change::Stopping { .. } | Change::Requesting { .. }) => {}
        }
    }

    /// Draws conclusions from the progress of the sessions.
    pub(super) fn running_progress(&mut self, now: Now) {
        let State::Running(Running { change: None, .. }) = self.state else { return };
        if self.sessions.all_completed() {
            return self.leave(true, Then::Complete, now);
        }
        // With a test_count the control connection is kept, because its loss would end the tests.
        let elsewhere = self.config.sessions.iter().any(|session| session.target.is_some());
        let may_lose = !(self.is_managed() && elsewhere || self.ends_with_loss());
        match self.sessions.refused().filter(|_| may_lose) {
            // The route may have returned meanwhile.
            Some(failure) => self.actions.push_back(Action::VerifyUnreachable(failure)),
            None => self.review_pauses(now),
        }
    }

    pub(super) fn handle_verified(&mut self, failure: Option<Failure>, now: Now) {
        let State::Running(Running { change: None, .. }) = self.state else { return };
        match failure {
            Some(failure) => self.lose(failure, true, now),
            None => self.review_pauses(now),
        }
    }

    /// Negotiates silent sessions again, closes the connection for a long pause, or requests
    /// missing sessions in a short pause.
    fn review_pauses(&mut self, now: Now) {
        if self.is_managed() {
            let running = self.sessions.running_progress();
            if self.addresses.must_switch(&self.config, running, now.monotonic) {
                self.status.renegotiations += 1;
                self.status_changed = true;
                return self.leave(true, Then::Reconnect, now);
            }
        }
        let has_expired = self.config.sessions_may_expire()
            && self.sessions.progress().any(SessionProgress::may_have_expired);
        let is_silent = self.config.reconnects_when_silent()
            && self.silence.must_renegotiate(self.sessions.progress());
        if has_expired || is_silent {
            self.pauses.record_silence(self.sessions.progress());
            self.status.renegotiations += 1;
            self.status_changed = true;
            // The next attempt uses another address, unless this one answered until the pause.
            self.silences = self.silences.wrapping_add(usize::from(!has_expired));
            return self.leave(true, Then::Reconnect, now);
        }
        let Some(due) = self.sessions.idle_until() else { return };
        if self.is_managed() {
            let pause_ns = due.since_ns(now.monotonic);
            let is_long =
                self.config.test_interval_ns > SILENT_CONNECTION_NS && pause_ns > SHORT_PAUSE_NS;
            let sessions_die = self.pauses.closes_in_pause(
                self.sessions.progress(),
                PAUSE_RETRY_NS,
                now.monotonic,
            ) && self.config.sessions_may_expire();
            if is_long || sessions_die {
                self.command(SessionCommand::Park);
                return self.leave(false, Then::IdleUntil(due), now);
            }
        }
        let State::Running(running) = &self.state else { return };
        if running.missing.is_some_and(|due| due <= now.monotonic) {
            self.change_sessions(now);
        }
    }

    /// Requests sessions that do not run at the next opportunity.
    pub(super) fn request_missing_now(&mut self, now: Now) {
        let is_missing = !self.missing_sessions().is_empty();
        if let State::Running(running) = &mut self.state {
            running.missing = is_missing.then_some(now.monotonic);
        }
    }

    pub(super) fn dns_changed(&mut self, now: Now) {
        if let State::Running(Running { change: None, .. }) = self.state {
            self.leave(true, Then::Reconnect, now);
        }
    }

    pub(super) fn control_lost(&mut self, failure: Failure, now: Now) {
        let State::Running(running) = &mut self.state else { return };
        if running.change.take().is_some() {
            self.actions.push_back(Action::Abandon);
            self.apply_desired_config();
            self.mark_applied();
        }
        self.lose(failure, true, now);
    }

    /// Returns the time at which missing sessions are requested while others run.
    pub(super) fn missing_due(&self, now: Now) -> Option<Monotonic> {
        let missing = self.missing_sessions();
        let is_local = |name: &String| {
            !self.sessions.is_declined(name) || self.sessions.is_declined_locally(name)
        };
        // A request to the server would interrupt all sessions.
        let interrupts = self.is_all_or_nothing() && !missing.iter().any(is_local);
        let least_ns = if interrupts { SHORT_PAUSE_NS } else { 0 };
        let due = now.monotonic.plus_ns(self.config.test_interval_ns.max(least_ns));
        (!missing.is_empty()).then_some(due)
    }

    /// Returns the sessions that do not run and can be requested from the server.
    pub(super) fn missing_sessions(&self) -> Vec<String> {
        let missing = self.sessions.missing(&self.config);
        self.requests.split(missing, self.sessions.running_count()).0
    }

    /// Begins to change the sessions to the desired ones, or to request missing ones.
    pub(super) fn change_sessions(&mut self, now: Now) {
        let touched = touched_sessions(&self.config, &self.desired.config);
        self.sessions.forget_declined(&touched);
        if !touched.is_empty() {
            self.requests.sessions_changed();
        }
        if self.has_control && touched.is_empty() {
            return self.open_missing(now);
        }
        if self.is_all_or_nothing() {
            return self.pause(touched, Vec::new(), now);
        }
        if touched.is_empty() {
            return self.request(&touched, &[], Vec::new(), SOCKET_WAIT_NS, now);
        }
        let names = Some(touched.clone());
        self.set_change(Some(Change::Stopping { touched }));
        self.begin_operation(Operation::StopSessions { names, grace: Grace::LossTimeout });
    }

    /// Opens the sockets of missing sessions. This interrupts no session.
    fn open_missing(&mut self, now: Now) {
        let mut names = self.missing_sessions();
        let since_ns = now.monotonic.since_ns(self.all_interrupted_at);
        if self.is_all_or_nothing() && since_ns < SHORT_PAUSE_NS {
            names.retain(|name| self.sessions.is_declined_locally(name));
        }
        if names.is_empty() {
            return self.change_done(now);
        }
        let context = self.attempt_context(self.sessions.socket_wait_ns(), now);
        let config = self.config.clone();
        self.set_change(Some(Change::Opening));
        self.begin_operation(Operation::OpenSockets { config, names, context });
    }

    pub(super) fn sockets_opened(
        &mut self,
        opened: Vec<String>,
        declined: Vec<Declined>,
        now: Now,
    ) {
        let State::Running(Running { change: Some(Change::Opening), .. }) = self.state else {
            return;
        };
        self.decline_sessions(declined, now);
        if opened.is_empty() {
            self.change_done(now);
        } else if self.is_all_or_nothing() {
            self.pause(Vec::new(), opened, now);
        } else {
            self.request(&[], &opened, Vec::new(), SOCKET_WAIT_NS, now);
        }
    }

    fn pause(&mut self, touched: Vec<String>, opened: Vec<String>, now: Now) {
        let until = Some(now.monotonic.plus_ns(MAX_PAUSE_NS));
        self.set_change(Some(Change::Pausing { touched, opened, until }));
        self.begin_operation(Operation::PauseSessions);
    }

    /// Continues after the changed sessions are stopped, or all sessions are between two tests.
    pub(super) fn sessions_stopped(&mut self, now: Now) {
        let State::Running(running) = &mut self.state else { return };
        match running.change.take() {
            Some(Change::Pausing { touched, opened, .. }) => {
                self.apply_desired_config();
                let wait_ns = self.sessions.socket_wait_for_all_ns(&self.config, &touched);
                self.sessions.mark_all_stopped();
                self.all_interrupted_at = now.monotonic;
                self.request(&touched, &opened, Vec::new(), wait_ns, now);
            }
            Some(Change::Stopping { touched }) => {
                let stop = self.sessions.mark_stopped(&touched);
                self.apply_desired_config();
                self.request(&touched, &[], stop, SOCKET_WAIT_NS, now);
            }
            change @ (None | Some(Change::Opening | Change::Requesting { .. })) => {
                self.set_change(change);
            }
        }
    }

    /// Requests the missing sessions. If sessions have changed or have open sockets, sessions that
    /// were declined before are left out, so that a change does not wait for them.
    fn request(
        &mut self,
        touched: &[String],
        opened: &[String],
        stop: Vec<crate::wire::codes::Sid>,
        wait_ns: u64,
        now: Now,
    ) {
        let together = self.is_all_or_nothing();
        let (mut names, left_out) =
            self.requests.split(self.sessions.missing(&self.config), self.sessions.running_count());
        self.record_left_out(left_out, now);
        if !touched.is_empty() || !opened.is_empty() {
            let first = |name: &String| opened.contains(name) || !self.sessions.is_declined(name);
            if !together || names.iter().any(first) {
                names.retain(first);
            }
        }
        if names.is_empty() && stop.is_empty() {
            return self.change_done(now);
        }
        let config = self.config.clone();
        let optional = !self.has_control && touched.is_empty();
        let wait_ns = if optional { self.sessions.socket_wait_ns() } else { wait_ns };
        let context = self.attempt_context(wait_ns, now);
        self.set_change(Some(Change::Requesting { together, optional }));
        self.begin_operation(if self.has_control {
            Operation::Request { config, names, stop, context }
        } else {
            Operation::OpenUnnegotiated { config, names, context, others_wait: optional }
        });
    }

    /// Handles the end of a request for sessions.
    pub(super) fn handle_requested(&mut self, result: Result<Started, Failure>, now: Now) {
        let State::Running(running) = &mut self.state else { return };
        let Some(Change::Requesting { together, .. }) = running.change.take() else { return };
        let Started { sessions, mut declined, .. } = match result {
            Ok(started) => started,
            Err(mut failure) => {
                self.mark_applied();
                if let Suspect::Session { accepted, .. } = &mut failure.suspect {
                    *accepted += self.sessions.running_count();
                }
                if together && failure.is_end_by_server() {
                    // Some servers close the connection when sessions are stopped. Nothing is lost,
                    // because no probe was in flight.
                    self.requests.record_failure(&failure.suspect, now.monotonic);
                    return self.reconnect(now);
                }
                return self.lose(failure, true, now);
            }
        };
        self.start_sessions(sessions);
        match declined.pop() {
            Some(last) if self.sessions.running_count() == 0 => {
                self.mark_applied();
                self.leave(true, Then::AttemptFailed(last.failure), now);
            }
            last => {
                declined.extend(last);
                self.decline_sessions(declined, now);
                self.change_done(now);
            }
        }
    }

    /// Connects again at once, without a failure.
    fn reconnect(&mut self, now: Now) {
        self.drop_control();
        self.sessions.mark_all_stopped();
        self.retry = RetrySchedule::starting_at(now.monotonic);
        self.begin_attempt(now);
    }

    /// Ends a change of sessions.
    pub(super) fn change_done(&mut self, now: Now) {
        self.set_change(None);
        self.mark_applied();
        if self.has_control {
            self.actions.push_back(Action::SetSocketOptions(self.config.clone()));
        }
        self.actions.push_back(Action::WatchDns);
        let missing = self.missing_due(now);
        if let State::Running(running) = &mut self.state {
            running.missing = missing;
        }
        // The removed sessions may have been the last with tests left.
        self.running_progress(now);
    }

    fn set_change(&mut self, change: Option<Change>) {
        if let State::Running(running) = &mut self.state {
            running.change = change;
        }
    }
}
