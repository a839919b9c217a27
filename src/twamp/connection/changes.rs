//! Changes of the desired state, each with the least possible effect.

use super::{
    Action, Connection, Desired,
    retry::RetrySchedule,
    state::{State, Step},
};
use crate::{
    model::{ConnectionEffect, SessionControl, connection_effect, has_completed, touched_sessions},
    time::Now,
};

/// Consequence of a change for the current state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transition {
    /// No further consequence: the change has taken effect.
    None,
    Restart,
    Sessions,
    /// An attempt at once, because of a start by hand.
    Attempt,
    /// Other options of an open control connection.
    SocketOptionsChanged,
    /// Other intervals between attempts and tests.
    IntervalsChanged,
}

impl Connection {
    /// Abandons the change of sessions in progress if the pending desired state has priority over
    /// it.
    pub(super) fn yield_to_pending(&mut self, now: Now) {
        let (State::Running(running), Some(pending)) = (&mut self.state, &self.pending) else {
            return;
        };
        let Some(change) = &running.change else { return };
        let is_optional = change.is_optional();
        let effect =
            connection_effect(&self.desired.config, &pending.config, SessionControl::Individual);
        let ends = pending.stopped
            || matches!(effect, ConnectionEffect::Stop | ConnectionEffect::Reconnect);
        if !is_optional && !ends {
            return;
        }
        let uses_control = self.has_control && change.uses_control();
        running.change = None;
        self.actions.push_back(Action::Abandon);
        if uses_control {
            self.drop_control();
        }
        if is_optional {
            self.change_done(now);
        }
    }

    /// Applies a desired state with the least possible effect.
    pub(super) fn apply_desired(&mut self, desired: Desired, now: Now) {
        let transition = self.transition(desired);
        match transition {
            Transition::None => {}
            Transition::Restart => self.restart_unless_completed(now),
            Transition::Sessions => self.sessions_desired(now),
            Transition::Attempt => self.attempt_by_hand(now),
            Transition::SocketOptionsChanged => {
                self.actions.push_back(Action::SetSocketOptions(self.config.clone()));
                self.retime(now);
            }
            Transition::IntervalsChanged => self.retime(now),
        }
    }

    /// Applies the part of the desired state that needs no message; returns the further transition.
    fn transition(&mut self, desired: Desired) -> Transition {
        let before = std::mem::replace(&mut self.desired, desired);
        if self.desired.stopped || self.desired.config.inactive != self.config.inactive {
            return Transition::Restart;
        }
        let control = self.status.session_control;
        match connection_effect(&self.config, &self.desired.config, control) {
            ConnectionEffect::Live => {}
            ConnectionEffect::SessionRestart | ConnectionEffect::Renegotiate => {
                return Transition::Sessions;
            }
            ConnectionEffect::Reconnect | ConnectionEffect::Start | ConnectionEffect::Stop => {
                return Transition::Restart;
            }
        }
        if self.desired.config != self.config {
            let other_options = !self.config.has_same_socket_options(&self.desired.config);
            let other_intervals = !self.config.has_same_intervals(&self.desired.config);
            self.applied = self.desired.revision;
            if self.config.inactive {
                self.config = self.desired.config.clone();
                self.status.set_config(&self.config, self.applied);
                self.status_changed = true;
                return Transition::None;
            }
            self.apply_desired_config();
            if before.stopped {
                return Transition::Restart;
            }
            if other_options && self.is_running() && self.has_control {
                return Transition::SocketOptionsChanged;
            }
            if other_intervals {
                return Transition::IntervalsChanged;
            }
        } else if self.applied != self.desired.revision {
            // The change in progress was reverted.
            self.mark_applied();
        }
        match self.desired.starts == before.starts {
            true => Transition::None,
            false => Transition::Attempt,
        }
    }

    /// Starts over unless the connection is completed, because a change alone must not run further
    /// tests.
    fn restart_unless_completed(&mut self, now: Now) {
        let stays_completed = matches!(self.state, State::Completed)
            && !self.desired.stopped
            && !self.desired.config.inactive
            && has_completed(&self.config, &self.desired.config);
        if stays_completed {
            self.applied = self.desired.revision;
            self.apply_desired_config();
        } else {
            self.restart(now);
        }
    }

    fn sessions_desired(&mut self, now: Now) {
        if self.is_running() {
            return self.change_sessions(now);
        }
        let is_idle = matches!(self.state, State::Idle(_));
        self.abandon_attempt();
        let touched = touched_sessions(&self.config, &self.desired.config);
        self.sessions.forget_declined(&touched);
        self.requests.sessions_changed();
        self.change_unconnected_sessions(touched, is_idle, now);
    }

    fn attempt_by_hand(&mut self, now: Now) {
        match &self.state {
            State::Stopped | State::Completed => self.restart(now),
            State::Connecting(connecting) if connecting.step != Step::Negotiating => {
                self.abandon_attempt();
                self.begin_attempt(now);
            }
            State::Idle(_) => {
                // If the attempt fails, the next one is due an interval later, not at the time of
                // the next test.
                self.retry = RetrySchedule::starting_at(now.monotonic);
                self.begin_attempt(now);
            }
            State::WaitingRetry(_) => self.begin_attempt(now),
            // An attempt by hand is for the sessions that do not run.
            State::Running(_) => self.request_missing_now(now),
            // The start by hand counts, although nothing runs before the activation.
            State::Inactive => self.completed = None,
            State::Connecting(_) | State::Leaving(_) | State::Ended => {}
        }
    }

    /// Adapts the schedule to other intervals.
    fn retime(&mut self, now: Now) {
        match &self.state {
            State::Connecting(_) => {
                self.retry = RetrySchedule::starting_at(now.monotonic);
                self.show_following_attempt(now);
            }
            State::WaitingRetry(due) => {
                // The interval counts from now if that is sooner.
                let due = *due;
                self.retry = RetrySchedule::starting_at(now.monotonic);
                let due = due.min(self.next_attempt(now));
                self.retry = RetrySchedule::starting_at(due);
                self.wait_until(due, now);
            }
            State::Running(_) => {
                let due = self.missing_due(now);
                if let State::Running(running) = &mut self.state {
                    running.missing = due;
                }
            }
            State::Inactive
            | State::Stopped
            | State::Completed
            | State::Idle(_)
            | State::Leaving(_)
            | State::Ended => {}
        }
    }
}
