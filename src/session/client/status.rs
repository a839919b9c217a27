//! Status of a connection for the API and the exporters. Its driver and its sessions write it. The
//! lock is held only while the status is copied or converted.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::watch;

use super::command::Command;
use crate::{
    model::{ControlConnection, ControlType, SessionControl},
    net::{TcpDirectory, interface_index},
    proto::{self, ConnectionFailure, ConnectionState, Session},
    session::{lock, plane::Handle},
    time::{Now, UnixTime, duration_to_proto},
    twamp::connection::{
        ConnectionEvent, ConnectionStatus, Desired, Failure, FailureReport, Outage, Phase,
        SessionStatus,
    },
};

/// Counter of the changes of all connections. A reader that knows the number of one change finds
/// all later changes.
#[derive(Debug, Default)]
pub struct Changes {
    latest: watch::Sender<u64>,
}

impl Changes {
    /// Returns the number of the latest change.
    pub fn latest(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// Gives a number to the removal of a connection.
    pub fn number_removal(&self) {
        self.number_change(|_| {});
    }

    /// Gives a change its number. `publish` makes the change visible before readers see the number.
    fn number_change(&self, publish: impl FnOnce(u64)) {
        self.latest.send_modify(|latest| {
            *latest += 1;
            publish(*latest);
        });
    }
}

/// Shared status of one connection.
#[derive(Debug)]
pub(super) struct Status {
    inner: Mutex<Inner>,
    changes: Arc<Changes>,
}

#[derive(Debug)]
struct Inner {
    connection: ConnectionStatus,
    tests_finished: HashMap<String, u64>,
    sessions: Vec<Handle<Command>>,
    /// Number of the latest change.
    latest_change: u64,
}

impl Status {
    pub(super) fn new(config: &ControlConnection, changes: Arc<Changes>, now: Now) -> Self {
        let connection = ConnectionStatus::new(config, now);
        let (tests_finished, sessions) = (HashMap::new(), Vec::new());
        let inner = Mutex::new(Inner { connection, tests_finished, sessions, latest_change: 0 });
        let status = Self { inner, changes };
        status.mark_changed();
        status
    }

    /// Returns the number of the latest change.
    pub(super) fn latest_change(&self) -> u64 {
        self.lock().latest_change
    }

    /// Gives a number to a change of the visible status.
    pub(super) fn mark_changed(&self) {
        self.changes.number_change(|number| self.lock().latest_change = number);
    }

    /// Publishes the status of the machine.
    pub(super) fn publish(&self, connection: ConnectionStatus) {
        let mut inner = self.lock();
        let names = connection.sessions.iter().map(|session| &session.name);
        if !names.eq(inner.connection.sessions.iter().map(|session| &session.name)) {
            let is_present = |name: &String| connection.sessions.iter().any(|s| s.name == *name);
            inner.tests_finished.retain(|name, _| is_present(name));
        }
        inner.connection = connection;
        drop(inner);
        self.mark_changed();
    }

    /// Returns the status with which the machine continues after a failure of its task.
    pub(super) fn connection(&self) -> ConnectionStatus {
        self.lock().connection.clone()
    }

    /// Records that the task failed; returns the outage that begins with it.
    pub(super) fn task_failed(&self, failure: Failure, last: bool, now: Now) -> Option<Outage> {
        let begun = self.lock().connection.task_failed(failure, last, now).cloned();
        self.mark_changed();
        begun
    }

    /// Ends the outage of a connection that is removed while no driver runs; returns the event.
    pub(super) fn abandon_outage(&self, now: Now) -> Option<ConnectionEvent> {
        self.lock().connection.abandon_outage(now)
    }

    /// Sets the handles of the sessions, through which the figures of running tests are requested.
    pub(super) fn set_session_handles(&self, sessions: Vec<Handle<Command>>) {
        self.lock().sessions = sessions;
    }

    pub(super) fn session_handles(&self) -> Vec<Handle<Command>> {
        self.lock().sessions.clone()
    }

    /// Counts a finished test of a session.
    pub(super) fn count_finished_test(&self, name: &str) {
        let mut inner = self.lock();
        match inner.tests_finished.get_mut(name) {
            Some(tests) => *tests += 1,
            None => drop(inner.tests_finished.insert(name.to_owned(), 1)),
        }
    }

    pub(super) fn session_control(&self) -> SessionControl {
        self.lock().connection.session_control
    }

    pub(super) fn has_applied(&self, revision: u64) -> bool {
        self.lock().connection.applied_revision >= revision
    }

    /// Returns the present remote address of a session or, with an empty name, of the control
    /// connection.
    pub(super) fn remote_address(&self, session: &str) -> Option<IpAddr> {
        let inner = self.lock();
        let status = &inner.connection;
        let started = status.sessions.iter().find(|status| status.name == session);
        let reflector = started.and_then(|status| status.started.as_ref()).map(|s| s.remote);
        reflector.or_else(|| status.ends.map(|(_, server)| server)).map(|address| address.ip())
    }

    pub(super) fn is_running(&self) -> bool {
        self.lock().connection.phase == Phase::Running
    }

    /// Converts the status for the API. `directory` has the kernel's state of TCP connections.
    pub(super) fn to_proto(
        &self,
        desired: &Desired,
        directory: Option<&TcpDirectory>,
        now: Now,
    ) -> proto::Connection {
        let (revision, is_stopped) = (desired.revision, desired.stopped);
        let inner = self.lock();
        let status = &inner.connection;
        let present_ns = status.outage.as_ref().map_or(0, |outage| outage.length_ns(now));
        let shows_stopped = match status.phase {
            Phase::Stopped => true,
            // A stop does not change the phase of such a connection.
            Phase::Inactive | Phase::Failed => is_stopped,
            Phase::Resolving
            | Phase::Connecting
            | Phase::Negotiating
            | Phase::Running
            | Phase::WaitingRetry
            | Phase::Completed => false,
        };
        let address = |address: SocketAddr| address.to_string();
        let (local, server) = status.ends.unzip();
        let tests = |name: &str| inner.tests_finished.get(name).copied().unwrap_or(0);
        let sessions = status.sessions.iter().map(|s| session_to_proto(s, tests(&s.name)));
        proto::Connection {
            name: status.name.clone(),
            control_type: control_type_to_proto(status.control_type).into(),
            state: state_to_proto(status.phase).into(),
            state_start_time: Some(status.phase_since.to_proto()),
            local_address: local.map(address).unwrap_or_default(),
            server_address: server.map(address).unwrap_or_default(),
            mode: status.mode,
            last_loss: status.last_loss.as_ref().map(failure_to_proto),
            last_failure: status.last_failure.as_ref().map(failure_to_proto),
            attempts_since_success: status.attempts_since_success,
            next_attempt_time: status.next_attempt.map(UnixTime::to_proto),
            outages: status.outages,
            outage_duration: Some(duration_to_proto(status.past_outages_ns + present_ns)),
            task_restarts: status.task_restarts,
            renegotiations: status.renegotiations,
            reconciling: status.applied_revision < revision || is_stopped != shows_stopped,
            sessions: sessions.collect(),
            tcp: directory.zip(status.ends).and_then(|(directory, ends)| {
                let interface = status.interface.as_deref().and_then(interface_index);
                directory.facts(ends.0, ends.1, interface)
            }),
            sends_addresses: status.sends_addresses,
            outage_start_time: status.outage.as_ref().map(|outage| outage.began.to_proto()),
            labels: desired.config.labels.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

fn control_type_to_proto(control_type: ControlType) -> proto::ControlType {
    match control_type {
        ControlType::Managed => proto::ControlType::Managed,
        ControlType::Light => proto::ControlType::Light,
        ControlType::Stamp => proto::ControlType::Stamp,
    }
}

fn state_to_proto(phase: Phase) -> ConnectionState {
    match phase {
        Phase::Inactive => ConnectionState::Inactive,
        Phase::Resolving => ConnectionState::Resolving,
        Phase::Connecting => ConnectionState::Connecting,
        Phase::Negotiating => ConnectionState::Negotiating,
        Phase::Running => ConnectionState::Running,
        Phase::WaitingRetry => ConnectionState::WaitingRetry,
        Phase::Stopped => ConnectionState::Stopped,
        Phase::Completed => ConnectionState::Completed,
        Phase::Failed => ConnectionState::Failed,
    }
}

fn failure_to_proto(FailureReport { failure, time }: &FailureReport) -> ConnectionFailure {
    ConnectionFailure {
        cause: failure.cause.into(),
        accept_code: failure.accept_code.into(),
        detail: failure.detail.clone(),
        time: Some(time.to_proto()),
    }
}

fn session_to_proto(session: &SessionStatus, tests_finished: u64) -> Session {
    let (name, starts) = (session.name.clone(), session.starts);
    let idle = Session { name, starts, tests_finished, ..Session::default() };
    let Some(started) = &session.started else { return idle };
    Session {
        sid: started.sid.map(|sid| sid.to_string()).unwrap_or_default(),
        sender_address: started.local.to_string(),
        reflector_address: started.remote.to_string(),
        started: true,
        ..idle
    }
}
