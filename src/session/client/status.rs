//! What a connection tells of itself. Written by its driver, read by the API; the lock is held for
//! a copy.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{course::Outage, failure::Failure, open::Declined, sender::Command};
use crate::{
    model::{ControlConnection, ControlType, SessionControl},
    proto::{self, ConnectionFailure, ConnectionState, Session},
    session::plane::Handle,
    time::{Monotonic, Now, duration_to_proto},
};

/// Numbers the changes of all connections, so that whoever saw one number finds what changed since.
#[derive(Debug, Default)]
pub struct Changes {
    latest: watch::Sender<u64>,
}

impl Changes {
    /// The number of the latest change.
    pub fn latest(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// A connection is gone.
    pub fn removed(&self) {
        self.next(|_| {});
    }

    /// Numbers a change; call `told` when it can be seen.
    fn next(&self, told: impl FnOnce(u64)) {
        self.latest.send_modify(|latest| {
            *latest += 1;
            told(*latest);
        });
    }
}

/// Of so many sessions that are not started it is told why.
const DETAILS: usize = 3;

/// Status of one connection.
#[derive(Debug)]
pub(super) struct Status {
    inner: Mutex<Inner>,
    changes: Arc<Changes>,
}

#[derive(Debug, Default)]
struct Inner {
    /// As it is told, but for what depends on the time of the question.
    connection: proto::Connection,
    outage_since: Option<Now>,
    past_outages_ns: u64,
    applied_revision: u64,
    sessions: Vec<Handle<Command>>,
    /// Number of its latest change.
    changed: u64,
    session_control: SessionControl,
    /// While an attempt is made: when the next one is due should it fail.
    next_attempt: Option<prost_types::Timestamp>,
}

impl Status {
    pub(super) fn new(config: &ControlConnection, changes: Arc<Changes>, now: Now) -> Self {
        let status = Self { inner: Mutex::default(), changes };
        status.configured(config, 0);
        status.state(ConnectionState::Inactive, now);
        status
    }

    /// Number of its latest change.
    pub(super) fn changed(&self) -> u64 {
        self.lock().changed
    }

    /// What was written can be seen by others.
    fn tell(&self) {
        self.changes.next(|number| self.lock().changed = number);
    }

    /// How its sessions can be changed while they run.
    pub(super) fn session_control(&self) -> SessionControl {
        self.lock().session_control
    }

    pub(super) fn set_session_control(&self, session_control: SessionControl) {
        self.lock().session_control = session_control;
    }

    /// The driver follows this configuration now.
    pub(super) fn configured(&self, config: &ControlConnection, revision: u64) {
        let mut inner = self.lock();
        inner.applied_revision = revision;
        let connection = &mut inner.connection;
        connection.name.clone_from(&config.name);
        let control_type = match config.control_type {
            ControlType::Managed => proto::ControlType::Managed,
            ControlType::Light => proto::ControlType::Light,
            ControlType::Stamp => proto::ControlType::Stamp,
        };
        connection.control_type = control_type.into();
        connection.sessions = config
            .sessions
            .iter()
            .map(|session| {
                let known = connection.sessions.iter().find(|known| known.name == session.name);
                let unknown = || Session { name: session.name.clone(), ..Session::default() };
                known.cloned().unwrap_or_else(unknown)
            })
            .collect();
        drop(inner);
        self.tell();
    }

    /// The sessions, for questions about the tests that run.
    pub(super) fn set_session_handles(&self, sessions: Vec<Handle<Command>>) {
        self.lock().sessions = sessions;
    }

    pub(super) fn session_handles(&self) -> Vec<Handle<Command>> {
        self.lock().sessions.clone()
    }

    pub(super) fn has_applied(&self, revision: u64) -> bool {
        self.lock().applied_revision >= revision
    }

    pub(super) fn is_running(&self) -> bool {
        self.lock().connection.state() == ConnectionState::Running
    }

    /// Sessions are negotiated anew because they are silent.
    pub(super) fn renegotiates(&self) {
        self.lock().connection.renegotiations += 1;
    }

    /// A new state; what only holds in another one is taken away.
    pub(super) fn state(&self, state: ConnectionState, now: Now) {
        let mut inner = self.lock();
        match state {
            ConnectionState::Running => {}
            ConnectionState::Stopped => inner.session_control = SessionControl::Stopped,
            ConnectionState::Completed => inner.session_control = SessionControl::Completed,
            ConnectionState::Unspecified
            | ConnectionState::Inactive
            | ConnectionState::Resolving
            | ConnectionState::Connecting
            | ConnectionState::Negotiating
            | ConnectionState::WaitingRetry
            | ConnectionState::Failed => inner.session_control = SessionControl::Down,
        }
        let next_attempt = inner.next_attempt.filter(|_| attempts(state));
        let connection = &mut inner.connection;
        if connection.state() != state || connection.state_start_time.is_none() {
            connection.state = state.into();
            connection.state_start_time = Some(now.unix.to_proto());
        }
        connection.next_attempt_time = next_attempt;
        if !matches!(state, ConnectionState::Negotiating | ConnectionState::Running) {
            not_connected(connection);
        }
        drop(inner);
        self.tell();
    }

    /// An attempt is made; when the next one is due should it fail.
    pub(super) fn attempt(&self, next: Option<Monotonic>, now: Now) {
        let next = next.map(|due| now.unix.plus_ns(due.since_ns(now.monotonic) as i64).to_proto());
        let mut inner = self.lock();
        inner.next_attempt = next;
        if attempts(inner.connection.state()) {
            inner.connection.next_attempt_time = next;
            drop(inner);
            self.tell();
        }
    }

    /// Ends of the control connection.
    pub(super) fn ends(&self, local: SocketAddr, server: SocketAddr) {
        let mut inner = self.lock();
        inner.connection.local_address = local.to_string();
        inner.connection.server_address = server.to_string();
    }

    pub(super) fn mode(&self, mode: u32) {
        self.lock().connection.mode = mode;
    }

    /// A session is started.
    pub(super) fn session_started(
        &self,
        name: &str,
        sid: String,
        sender: SocketAddr,
        reflector: SocketAddr,
    ) {
        self.session(name, |session| {
            session.sid = sid;
            session.sender_address = sender.to_string();
            session.reflector_address = reflector.to_string();
            session.started = true;
            session.starts += 1;
        });
        self.tell();
    }

    pub(super) fn test_finished(&self, name: &str) {
        self.session(name, |session| session.tests_finished += 1);
    }

    fn session(&self, name: &str, change: impl FnOnce(&mut Session)) {
        let mut inner = self.lock();
        let mut sessions = inner.connection.sessions.iter_mut();
        if let Some(session) = sessions.find(|session| session.name == name) {
            change(session);
        }
    }

    /// The first failure of an outage.
    pub(super) fn outage_begins(&self, failure: &Failure, now: Now) {
        let mut inner = self.lock();
        if inner.outage_since.is_none() {
            inner.outage_since = Some(now);
            inner.connection.outages += 1;
        }
        inner.connection.last_loss = Some(loss(failure, now));
        drop(inner);
        self.tell();
    }

    /// An outage that a driver left that failed: its cause, its beginning, and its attempts.
    pub(super) fn open_outage(&self) -> Option<Outage> {
        let inner = self.lock();
        let loss = inner.connection.last_loss.as_ref()?;
        let failure = Failure {
            cause: loss.cause(),
            accept_code: loss.accept_code as u8,
            detail: loss.detail.clone(),
            ..Failure::default()
        };
        let Now { monotonic: since, unix: began } = inner.outage_since?;
        let attempts = inner.connection.attempts_since_success;
        Some(Outage { failure, since, began, attempts })
    }

    /// An attempt failed; how the outage began stays.
    pub(super) fn attempt_failed(&self, failure: &Failure, attempts: u64, now: Now) {
        let mut inner = self.lock();
        inner.connection.attempts_since_success = attempts;
        inner.connection.last_failure = Some(loss(failure, now));
    }

    /// Sessions could not be started while others run. The cause is that of the first.
    pub(super) fn sessions_failed(&self, declined: &[Declined], now: Now) {
        let Some(first) = declined.first() else { return };
        for Declined { name, .. } in declined {
            self.session(name, not_started);
        }
        let details = declined.iter().map(|declined| declined.failure.detail.as_str());
        let mut detail = details.take(DETAILS).collect::<Vec<_>>().join("; ");
        if declined.len() > DETAILS {
            detail = format!("{detail}; and {} more", declined.len() - DETAILS);
        }
        let failure = Failure { detail, ..first.failure.clone() };
        self.lock().connection.last_failure = Some(loss(&failure, now));
        self.tell();
    }

    /// Up again, or given up: no longer an outage.
    pub(super) fn outage_ends(&self, now: Now) {
        let mut inner = self.lock();
        if let Some(since) = inner.outage_since.take() {
            inner.past_outages_ns += now.monotonic.since_ns(since.monotonic);
        }
        inner.connection.attempts_since_success = 0;
    }

    /// Waits for the next attempt.
    pub(super) fn waiting(&self, due: Monotonic, now: Now) {
        self.state(ConnectionState::WaitingRetry, now);
        let wait_ns = due.since_ns(now.monotonic);
        self.lock().connection.next_attempt_time =
            Some(now.unix.plus_ns(wait_ns as i64).to_proto());
        self.tell();
    }

    /// All is well, and nothing is open until the next test is due.
    pub(super) fn parked(&self, due: Monotonic, now: Now) {
        let mut inner = self.lock();
        inner.session_control = SessionControl::Down;
        let wait_ns = due.since_ns(now.monotonic);
        let connection = &mut inner.connection;
        not_connected(connection);
        connection.next_attempt_time = Some(now.unix.plus_ns(wait_ns as i64).to_proto());
        drop(inner);
        self.tell();
    }

    /// Whether an attempt has not got as far as a TCP connection.
    pub(super) fn is_connecting(&self) -> bool {
        let state = self.lock().connection.state();
        matches!(state, ConnectionState::Resolving | ConnectionState::Connecting)
    }

    /// Something is wanted that the driver has yet to take up.
    pub(super) fn wanted(&self) {
        self.tell();
    }

    /// The task of the connection failed.
    pub(super) fn task_failed(&self, last: bool, now: Now) {
        self.state(if last { ConnectionState::Failed } else { ConnectionState::WaitingRetry }, now);
        self.lock().connection.task_restarts += u64::from(!last);
    }

    /// The status, for the API. `revision` is the one wanted, and whether it is to be stopped.
    pub(super) fn to_proto(&self, revision: u64, stopped: bool, now: Now) -> proto::Connection {
        let inner = self.lock();
        let since = inner.outage_since.map(|since| since.monotonic);
        let present_ns = since.map_or(0, |since| now.monotonic.since_ns(since));
        let is_stopped = match inner.connection.state() {
            ConnectionState::Stopped => true,
            // Neither can be stopped.
            ConnectionState::Inactive | ConnectionState::Failed => stopped,
            ConnectionState::Unspecified
            | ConnectionState::Resolving
            | ConnectionState::Connecting
            | ConnectionState::Negotiating
            | ConnectionState::Running
            | ConnectionState::WaitingRetry
            | ConnectionState::Completed => false,
        };
        proto::Connection {
            outage_duration: Some(duration_to_proto(inner.past_outages_ns + present_ns)),
            reconciling: inner.applied_revision < revision || stopped != is_stopped,
            ..inner.connection.clone()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an attempt is being made.
fn attempts(state: ConnectionState) -> bool {
    matches!(
        state,
        ConnectionState::Resolving | ConnectionState::Connecting | ConnectionState::Negotiating
    )
}

fn loss(failure: &Failure, now: Now) -> ConnectionFailure {
    ConnectionFailure {
        cause: failure.cause.into(),
        accept_code: failure.accept_code.into(),
        detail: failure.detail.clone(),
        time: Some(now.unix.to_proto()),
    }
}

fn not_connected(connection: &mut proto::Connection) {
    connection.local_address.clear();
    connection.server_address.clear();
    connection.mode = 0;
    connection.sessions.iter_mut().for_each(not_started);
}

fn not_started(session: &mut Session) {
    session.sid.clear();
    session.sender_address.clear();
    session.reflector_address.clear();
    session.started = false;
}
