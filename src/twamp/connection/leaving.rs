//! Stopping of sessions and connections, and the states without measurements.

use std::collections::VecDeque;

use super::{
    Action, Connection, ConnectionEvent, Desired, ExtensionProbe, Grace, Operation, Phase,
    Remembered, SessionCommand,
    attempt::to_unix,
    request_limit::RequestLimit,
    retry::RetrySchedule,
    state::{Leaving, State, Then},
};
use crate::time::{Monotonic, Now};

impl Connection {
    /// Stops all sessions if `stops`, closes the control connection, and continues with `then`.
    pub(super) fn leave(&mut self, stops: bool, then: Then, now: Now) {
        let mut operations = VecDeque::new();
        if stops {
            let grace = Grace::Short;
            operations.push_back(Operation::StopSessions { names: None, grace });
        }
        if self.has_control {
            operations.push_back(Operation::Close);
        }
        if self.is_running() {
            self.network_seen = self.network;
        }
        self.sessions.mark_all_stopped();
        self.state = State::Leaving(Leaving { operations, then });
        self.continue_leaving(now);
    }

    /// Stops the sessions that changed while the connection is not open.
    pub(super) fn change_unconnected_sessions(
        &mut self,
        touched: Vec<String>,
        is_idle: bool,
        now: Now,
    ) {
        let names = Some(touched.clone());
        let stop = Operation::StopSessions { names, grace: Grace::Short };
        let then = Then::SessionsChanged { touched, is_idle };
        self.state = State::Leaving(Leaving { operations: [stop].into(), then });
        self.continue_leaving(now);
    }

    /// Begins the next operation, or continues after the last.
    pub(super) fn continue_leaving(&mut self, now: Now) {
        let State::Leaving(leaving) = &mut self.state else { return };
        if let Some(operation) = leaving.operations.pop_front() {
            if matches!(operation, Operation::Close) {
                self.has_control = false;
            }
            return self.begin_operation(operation);
        }
        let then = std::mem::replace(&mut leaving.then, Then::Reconnect);
        match then {
            Then::Restart => self.restarted(now),
            Then::Reconnect => {
                self.retry = RetrySchedule::starting_at(now.monotonic);
                self.begin_attempt(now);
            }
            Then::IdleUntil(due) => self.idle_until(due, now),
            Then::AttemptFailed(failure) => self.lose(failure, false, now),
            Then::Complete => self.complete(now),
            Then::CompleteByLoss => self.stop_measuring(State::Completed, Phase::Completed, now),
            Then::SessionsChanged { touched, is_idle } => {
                self.applied = self.desired.revision;
                self.apply_desired_config();
                self.sessions.wake(|name| touched.iter().any(|touched| touched == name));
                if is_idle {
                    self.idle(now);
                } else {
                    self.retry = RetrySchedule::starting_at(now.monotonic);
                    self.begin_attempt(now);
                }
            }
            Then::End => {
                self.actions.push_back(Action::EndSessions);
                self.actions.push_back(Action::Finish);
                self.state = State::Ended;
            }
        }
    }

    /// Continues with the state that was persisted before the start.
    pub(super) fn resume(&mut self, now: Now) {
        let Remembered { outage, completed: _, past_outages, past_outages_ns } =
            self.remembered.clone();
        self.status.resume_outage_counters(past_outages, past_outages_ns);
        if let Some(outage) = outage {
            self.status.resume_outage(outage);
        }
        self.begin_unless_completed(now);
    }

    /// Enters the state that the desired state requires, which is Completed if all tests have
    /// already run.
    fn begin_unless_completed(&mut self, now: Now) {
        let Desired { config, stopped, revision, .. } = &self.desired;
        // Without a count, only a start by hand may have been waited for.
        let may_complete = config.test_count != 0 || config.manual_start;
        let is_completed = may_complete && self.completed == Some(config.test_count);
        if is_completed && !stopped && !config.inactive {
            self.applied = *revision;
            self.apply_desired_config();
            return self.stop_measuring(State::Completed, Phase::Completed, now);
        }
        self.begin(now);
    }

    /// Starts over with the desired state.
    pub(super) fn restart(&mut self, now: Now) {
        self.abandon_attempt();
        let stops = self.desired.stopped || self.desired.config.inactive;
        // Sessions that continue have no running test that must end; a due test stays due.
        self.leave(stops || self.is_running(), Then::Restart, now);
    }

    fn restarted(&mut self, now: Now) {
        if !self.config.has_same_server(&self.desired.config) {
            self.extensions = ExtensionProbe::default();
            self.addresses = super::AddressProbe::default();
            self.requests = RequestLimit::default();
            self.pauses = super::PauseProbe::default();
        }
        if self.config.inactive {
            return self.begin_unless_completed(now);
        }
        self.begin(now);
    }

    /// Enters the state that the desired state requires.
    fn begin(&mut self, now: Now) {
        self.applied = self.desired.revision;
        if self.desired.config.inactive {
            self.config = self.desired.config.clone();
            self.sessions.clear();
            self.actions.push_back(Action::EndSessions);
            self.status.set_config(&self.config, self.applied);
            return self.stop_measuring(State::Inactive, Phase::Inactive, now);
        }
        self.apply_desired_config();
        self.command(SessionCommand::Restart);
        self.sessions.restart();
        if self.desired.stopped {
            return self.stop_measuring(State::Stopped, Phase::Stopped, now);
        }
        self.retry = RetrySchedule::starting_at(now.monotonic);
        self.begin_attempt(now);
    }

    /// Applies the desired configuration to the sessions.
    pub(super) fn apply_desired_config(&mut self) {
        let before = std::mem::replace(&mut self.config, self.desired.config.clone());
        self.sessions.configure(&self.config);
        if self.config.test_count == 0 || self.config.test_count > before.test_count {
            // The threads of the sessions report this as well, but an attempt may begin before.
            self.sessions.continue_completed();
        }
        self.actions.push_back(Action::ConfigureSessions(self.config.clone()));
        self.status.set_config(&self.config, self.applied);
        self.status_changed = true;
    }

    /// Sets the desired revision as the applied one in the status.
    pub(super) fn mark_applied(&mut self) {
        self.applied = self.desired.revision;
        self.status.set_config(&self.config, self.applied);
        self.status_changed = true;
    }

    /// Enters a state without measurements until the desired state changes.
    pub(super) fn stop_measuring(&mut self, state: State, phase: Phase, now: Now) {
        self.abandon_outage(now);
        self.command(SessionCommand::Idle);
        self.status.set_phase(phase, now);
        self.status_changed = true;
        self.state = state;
    }

    /// Ends a connection whose sessions have run all their tests.
    pub(super) fn complete(&mut self, now: Now) {
        self.abandon_outage(now);
        self.actions.push_back(Action::Event(ConnectionEvent::Completed));
        self.stop_measuring(State::Completed, Phase::Completed, now);
    }

    /// Waits for the first test that is due.
    pub(super) fn idle(&mut self, now: Now) {
        if self.sessions.all_completed() {
            return self.complete(now);
        }
        self.idle_until(self.sessions.idle_until().unwrap_or(now.monotonic), now);
    }

    fn idle_until(&mut self, due: Monotonic, now: Now) {
        self.retry = RetrySchedule::starting_at(due);
        self.status.set_idle(to_unix(due, now));
        self.status_changed = true;
        self.state = State::Idle(due);
    }

    /// Ends the outage of a connection that is no longer desired.
    fn abandon_outage(&mut self, now: Now) {
        let abandoned = self.status.abandon_outage(now);
        self.actions.extend(abandoned.map(Action::Event));
        self.status_changed = true;
    }

    /// Ends the connection, for its removal or with the agent.
    pub(super) fn end(&mut self, is_resumed: bool, now: Now) {
        if self.is_ending() {
            return;
        }
        let completes = matches!(self.state, State::Leaving(Leaving { then: Then::Complete, .. }));
        if completes {
            self.actions.push_back(Action::Event(ConnectionEvent::Completed));
        }
        if is_resumed {
            if completes {
                self.completed = Some(self.config.test_count);
            }
            self.actions.push_back(Action::Persist(self.state_to_persist()));
        } else {
            self.abandon_outage(now);
        }
        let is_busy = matches!(self.state, State::Connecting(_))
            || matches!(&self.state, State::Running(running) if running.change.is_some());
        if is_busy {
            self.actions.push_back(Action::Abandon);
        }
        if let State::Leaving(leaving) = &mut self.state {
            // The operation in progress ends without another command.
            leaving.then = Then::End;
            return;
        }
        self.leave(true, Then::End, now);
    }
}
