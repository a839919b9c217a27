//! State machine of a control connection: attempts and their schedule, sessions, outages, and
//! changes of the desired state. It has no I/O, clock or randomness. A driver passes inputs to
//! [`Connection::handle`], carries out all actions of [`Connection::poll_action`], and waits for
//! the next input or for [`Connection::next_deadline`].

mod action;
mod address_probe;
mod attempt;
mod changes;
mod extension_probe;
mod failure;
mod leaving;
mod outage;
mod progress;
mod request_limit;
mod retry;
mod running;
mod sessions;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use crate::{
    model::{ControlConnection, ControlType, SessionControl},
    time::{Monotonic, Now},
};
use address_probe::AddressProbe;
use progress::{PauseProbe, SilenceDetector};
use request_limit::RequestLimit;
use retry::RetrySchedule;
use sessions::Sessions;
use state::{Change, Leaving, State, Step, Then};

pub(crate) use action::{
    Action, AttemptContext, Desired, Grace, Input, Operation, SessionCommand, Started,
};
pub(crate) use extension_probe::ExtensionProbe;
pub(crate) use failure::{Failure, Suspect};
pub(crate) use outage::{ConnectionEvent, Outage, Remembered};
pub(crate) use progress::{SessionProgress, SessionStage};
pub(crate) use sessions::{Declined, SHORT_PAUSE_NS, SOCKET_WAIT_NS, StartedSession};
pub(crate) use status::{ConnectionStatus, FailureReport, Phase, SessionStatus};

/// Machine of one control connection.
#[derive(Debug)]
pub(crate) struct Connection {
    config: Arc<ControlConnection>,
    applied: u64,
    /// Latest desired state that was handled.
    desired: Desired,
    /// Desired state that is handled as soon as the current state allows.
    pending: Option<Desired>,
    state: State,
    status: ConnectionStatus,
    status_changed: bool,
    sessions: Sessions,
    retry: RetrySchedule,
    silence: SilenceDetector,
    pauses: PauseProbe,
    extensions: ExtensionProbe,
    addresses: AddressProbe,
    requests: RequestLimit,
    /// True if the driver has a control connection.
    has_control: bool,
    /// Latest counter of network changes, and its value when the latest attempt began or the
    /// connection was lost.
    network: u64,
    network_seen: u64,
    /// Number of renegotiations after silence; each begins with another address.
    silences: usize,
    /// Revision for which ports in use were awaited.
    ports_awaited_in: Option<u64>,
    /// Time of the latest request that interrupted all sessions.
    all_interrupted_at: Monotonic,
    /// State of the random number generator.
    random: u64,
    remembered: Remembered,
    /// `test_count` with which the connection was completed. It is kept while the connection is
    /// inactive.
    completed: Option<u64>,
    actions: VecDeque<Action>,
}

impl Connection {
    /// Creates the machine of a connection. `status` has the counters and the outage from before a
    /// restart of the task, `remembered` those from before a restart of the process; `seed` is
    /// random.
    pub(crate) fn start(
        desired: Desired,
        status: ConnectionStatus,
        remembered: Remembered,
        seed: u64,
        now: Now,
    ) -> Self {
        let mut connection = Self {
            config: desired.config.clone(),
            applied: desired.revision,
            desired,
            pending: None,
            state: State::Inactive,
            status,
            status_changed: true,
            sessions: Sessions::default(),
            retry: RetrySchedule::starting_at(now.monotonic),
            silence: SilenceDetector::default(),
            pauses: PauseProbe::default(),
            extensions: ExtensionProbe::default(),
            addresses: AddressProbe::default(),
            requests: RequestLimit::default(),
            has_control: false,
            network: 0,
            network_seen: 0,
            silences: 0,
            ports_awaited_in: None,
            all_interrupted_at: Monotonic::default(),
            random: seed,
            completed: remembered.completed,
            remembered,
            actions: VecDeque::new(),
        };
        connection.resume(now);
        connection.finish_step(now);
        connection
    }

    /// Handles an input at `now`.
    pub(crate) fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Desired(desired) => {
                self.pending = Some(desired);
                self.yield_to_pending(now);
            }
            Input::Network(counter) => self.network_changed(counter, now),
            Input::Progress(changed) => {
                self.sessions.update(changed);
                self.handle_progress(now);
            }
            Input::Resolved(result) => self.handle_resolved(result, now),
            Input::Connected(result) => self.handle_connected(result, now),
            Input::Started(result) => {
                if self.is_running() {
                    self.handle_requested(result, now);
                } else {
                    self.handle_attempted(result, now);
                }
            }
            Input::Opened(opened, declined) => self.sockets_opened(opened, declined, now),
            Input::Done => {
                if self.is_running() {
                    self.sessions_stopped(now);
                } else {
                    self.continue_leaving(now);
                }
            }
            Input::Verified(failure) => self.handle_verified(failure, now),
            Input::Lost(failure) => self.control_lost(failure, now),
            Input::DnsChanged => self.dns_changed(now),
            Input::Timer => self.handle_timer(now),
            Input::End { is_resumed } => self.end(is_resumed, now),
        }
        self.finish_step(now);
    }

    /// Returns the next action.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if action.is_none() {
            // Actions are large, so their memory is freed while the connection is idle.
            self.actions = VecDeque::new();
        }
        action
    }

    /// Returns the status if it changed since the last call.
    pub(crate) fn poll_status(&mut self) -> Option<&ConnectionStatus> {
        std::mem::take(&mut self.status_changed).then_some(&self.status)
    }

    /// Returns the time at which [`Input::Timer`] is due. `None` while nothing is desired, or while
    /// an operation is in progress that ends without a timer.
    pub(crate) fn next_deadline(&self) -> Option<Monotonic> {
        match &self.state {
            State::Idle(due) | State::WaitingRetry(due) => Some(*due),
            State::Running(running) => match &running.change {
                None => {
                    let missing = running.missing.filter(|_| self.is_individual());
                    Some(missing.map_or(running.review, |due| due.min(running.review)))
                }
                Some(Change::Pausing { until, .. }) => *until,
                Some(Change::Opening | Change::Stopping { .. } | Change::Requesting { .. }) => None,
            },
            State::Inactive
            | State::Stopped
            | State::Completed
            | State::Connecting(_)
            | State::Leaving(_)
            | State::Ended => None,
        }
    }

    /// Returns the configuration in effect.
    pub(crate) fn config(&self) -> &Arc<ControlConnection> {
        &self.config
    }

    /// Returns the reflector addresses of the sessions that run.
    pub(crate) fn remotes(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.sessions.remotes()
    }

    /// Returns true if sessions run.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// Returns true if the loss of the control connection ends its tests.
    pub(crate) fn ends_with_loss(&self) -> bool {
        self.is_managed() && self.config.test_count != 0
    }

    fn is_managed(&self) -> bool {
        self.config.control_type == ControlType::Managed
    }

    fn is_individual(&self) -> bool {
        self.status.session_control == SessionControl::Individual
    }

    fn is_all_or_nothing(&self) -> bool {
        self.status.session_control == SessionControl::AllOrNothing
    }

    /// Handles a pending desired state, and persists the state that survives the process.
    fn finish_step(&mut self, now: Now) {
        while self.accepts_changes()
            && let Some(desired) = self.pending.take()
        {
            self.apply_desired(desired, now);
        }
        self.completed = self.completed_count();
        let remembered = self.state_to_persist();
        if !self.is_ending() && !self.remembered.is_equivalent(&remembered) {
            self.actions.push_back(Action::Persist(remembered.clone()));
            self.remembered = remembered;
        }
    }

    /// Returns the `test_count` that is completed. A connection that becomes inactive keeps it,
    /// because its later activation is not a start by hand.
    fn completed_count(&self) -> Option<u64> {
        if self.is_completed() {
            return Some(self.config.test_count);
        }
        let becomes_inactive =
            matches!(self.state, State::Leaving(Leaving { then: Then::Restart, .. }))
                && self.desired.config.inactive;
        let is_kept = becomes_inactive || matches!(self.state, State::Inactive);
        self.completed.filter(|_| is_kept)
    }

    fn state_to_persist(&self) -> Remembered {
        let outage = self.status.outage.clone();
        Remembered {
            past_outages: self.status.outages - u64::from(outage.is_some()),
            past_outages_ns: self.status.past_outages_ns,
            outage,
            completed: self.completed,
        }
    }

    /// Returns true if no test follows, even if sessions or connections are still being closed.
    fn is_completed(&self) -> bool {
        matches!(
            self.state,
            State::Completed | State::Leaving(Leaving { then: Then::CompleteByLoss, .. })
        )
    }

    fn is_ending(&self) -> bool {
        matches!(self.state, State::Ended | State::Leaving(Leaving { then: Then::End, .. }))
    }

    fn accepts_changes(&self) -> bool {
        match &self.state {
            State::Leaving(_) | State::Ended => false,
            State::Running(running) => running.change.is_none(),
            State::Inactive
            | State::Stopped
            | State::Completed
            | State::Connecting(_)
            | State::Idle(_)
            | State::WaitingRetry(_) => true,
        }
    }

    fn handle_timer(&mut self, now: Now) {
        if self.next_deadline().is_none_or(|due| due > now.monotonic) {
            return;
        }
        if self.is_running() {
            self.running_timer(now);
        } else {
            self.begin_attempt(now);
        }
    }

    fn network_changed(&mut self, counter: u64, now: Now) {
        self.network = counter;
        if self.is_running() {
            self.request_missing_now(now);
        } else if counter != self.network_seen {
            if self.is_connecting() {
                // An attempt that hangs is replaced by one that may succeed at once.
                self.abandon_attempt();
                self.begin_attempt(now);
            } else if matches!(self.state, State::WaitingRetry(_)) {
                self.begin_attempt(now);
            }
        }
    }

    fn handle_progress(&mut self, now: Now) {
        if self.is_running() {
            self.running_progress(now);
        } else if matches!(self.state, State::Idle(_)) {
            self.idle(now);
        } else if matches!(self.state, State::Connecting(_) | State::WaitingRetry(_))
            && self.sessions.all_completed()
        {
            self.abandon_attempt();
            self.complete(now);
        }
    }

    /// Returns true during an attempt before its TCP connection is open.
    fn is_connecting(&self) -> bool {
        let State::Connecting(connecting) = &self.state else { return false };
        matches!(connecting.step, Step::Resolving | Step::Tcp)
    }

    fn begin_operation(&mut self, operation: Operation) {
        self.actions.push_back(Action::Begin(operation));
    }

    fn command(&mut self, command: SessionCommand) {
        self.actions.push_back(Action::Command(command));
    }

    /// Returns the next number of SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
