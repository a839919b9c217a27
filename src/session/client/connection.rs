//! The driver of one control connection: attempts in their rhythm, sessions up and down, outages
//! as pairs of events. Changes of what is wanted while all this goes on are in
//! [`super::changes`].

use std::{
    collections::BTreeMap,
    future::pending,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::{future::OptionFuture, stream::FuturesUnordered};
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    Senders, Tools, Wanted,
    attempt::{self, Established, OpenSession},
    changes::Changed,
    connect::names_move,
    course::{Course, Pauses},
    failure::Failure,
    peer::PeerMemory,
    progress::{Progress, Silence},
    sender::Command,
    sessions::{Running, SessionTask},
    status::Status,
};
use crate::{
    model::{ControlConnection, ControlType, Extensions, limits::SILENT_CONNECTION_NS},
    net::{NetworkChanges, clock, interface_index, random},
    proto::{ConnectionState, EventType, LossCause},
    results::Results,
    session::{Derivation, plane::Ended},
    supervise::Pulse,
    time::{Monotonic, duration_to_proto},
};

/// Runs the connection until `token` is cancelled.
pub(super) async fn run(
    mut wanted: watch::Receiver<Wanted>,
    tools: Tools,
    token: CancellationToken,
    pulse: Pulse,
) {
    let Tools { status, results, derivation, network, senders } = tools;
    let current = wanted.borrow_and_update().clone();
    let course = Course::new(status.open_outage(), clock::monotonic());
    let mut driver = Driver {
        config: current.config.clone(),
        applied: current.revision,
        current,
        wanted,
        progress: Arc::default(),
        status,
        results,
        derivation,
        network_seen: 0,
        network,
        turn: 0,
        peer: PeerMemory::default(),
        token,
        pulse,
        sessions: Vec::new(),
        running: BTreeMap::new(),
        senders,
        ends: FuturesUnordered::new(),
        silence: Silence::default(),
        course,
    };
    driver.run().await;
}

/// Why a stage of the connection ended.
#[derive(Debug)]
pub(super) enum Next {
    /// What is wanted changed in a way that needs a new beginning.
    Anew,
    /// Make an attempt now.
    Attempt,
    /// Other sessions are wanted of a connection that runs.
    Sessions,
    /// Other options are wanted of a control connection that is open.
    Tuned,
    /// Another pace is wanted of attempts and tests, and there is no connection.
    Retimed,
    /// The connection was lost; whether its sessions had been started.
    Lost(Failure, bool),
    /// All sessions ran all their tests.
    Completed,
    /// No test is due for so long that the connection is closed until then.
    Parked(Monotonic),
    /// Another connection is to be made at once, and nothing is wrong.
    Again,
    /// The agent ends or the connection was removed.
    End,
}

pub(super) struct Driver {
    /// What the sessions follow.
    pub(super) config: Arc<ControlConnection>,
    /// What was last seen of `wanted`.
    pub(super) current: Wanted,
    /// The revision that the sessions follow.
    pub(super) applied: u64,
    pub(super) wanted: watch::Receiver<Wanted>,
    pub(super) status: Arc<Status>,
    pub(super) results: Arc<Results>,
    pub(super) derivation: Arc<Derivation>,
    network: watch::Receiver<NetworkChanges>,
    /// What was known of the network when the latest attempt began, or the connection was lost.
    network_seen: u64,
    /// Which address of a name sessions without control are sent to: the next one after a silence.
    pub(super) turn: usize,
    /// What was learnt of the server.
    peer: PeerMemory,
    pub(super) token: CancellationToken,
    pub(super) pulse: Pulse,
    pub(super) sessions: Vec<SessionTask>,
    /// The sessions that run, by name.
    pub(super) running: BTreeMap<String, Running>,
    pub(super) senders: Arc<Senders>,
    /// Ends of sessions; one that panics takes the driver with it, which is started again.
    pub(super) ends: FuturesUnordered<oneshot::Receiver<Ended>>,
    pub(super) progress: Arc<Progress>,
    silence: Silence,
    pub(super) course: Course,
}

impl Driver {
    async fn run(&mut self) {
        loop {
            if !self.config.inactive && self.sessions.is_empty() {
                self.follow_sessions().await;
            }
            let next = if self.config.inactive {
                self.status.configured(&self.config, self.applied);
                self.rest(ConnectionState::Inactive).await
            } else if self.current.stopped {
                self.rest(ConnectionState::Stopped).await
            } else {
                self.measure().await
            };
            if matches!(next, Next::End) {
                break;
            }
            self.begin_anew().await;
        }
        self.abandon();
        self.stop_sessions().await;
        self.end_sessions().await;
    }

    /// Does nothing until something else is wanted.
    async fn rest(&mut self, state: ConnectionState) -> Next {
        self.abandon();
        for index in 0..self.sessions.len() {
            self.tell(index, Command::Rest).await;
        }
        self.status.state(state, clock::now());
        loop {
            let next = self.change().await;
            let idle = matches!(next, Next::Attempt) && state == ConnectionState::Inactive;
            // What has run all its tests runs no more of them because it is changed.
            let completed = matches!(next, Next::Anew)
                && state == ConnectionState::Completed
                && !self.current.stopped
                && !self.current.config.inactive
                && self.current.config.test_count == self.config.test_count;
            if completed {
                self.applied = self.current.revision;
                self.follow_sessions().await;
            } else if !idle && !matches!(next, Next::Retimed) {
                return next;
            }
        }
    }

    /// Attempts and tests, until something else is wanted or all tests are done.
    async fn measure(&mut self) -> Next {
        self.course.attempt_at(clock::monotonic());
        loop {
            let next = self.attempt_and_run().await;
            let due = match next {
                Next::Lost(failure, started) => {
                    if self.lost(failure, started).await {
                        return self.completed_by_break().await;
                    }
                    self.next_attempt()
                }
                Next::Parked(due) => {
                    self.course.attempt_at(due);
                    let next = self.park_until(due).await;
                    if !matches!(next, Next::Attempt) {
                        return next;
                    }
                    continue;
                }
                Next::Again => {
                    self.course.attempt_at(clock::monotonic());
                    continue;
                }
                Next::Completed => {
                    self.event(EventType::ConnectionCompleted, |_| {});
                    return self.rest(ConnectionState::Completed).await;
                }
                next @ (Next::Anew
                | Next::Attempt
                | Next::Sessions
                | Next::Tuned
                | Next::Retimed
                | Next::End) => return next,
            };
            let next = self.wait_until(due).await;
            if !matches!(next, Next::Attempt) {
                return next;
            }
        }
    }

    fn next_attempt(&mut self) -> Monotonic {
        let pauses = Pauses {
            interval_ns: self.config.test_interval_ns,
            longest_ns: self.config.retry_backoff_max_ns,
        };
        let random = u64::from_ne_bytes(random::octets());
        self.course.next_attempt(pauses, random, clock::monotonic())
    }

    async fn attempt_and_run(&mut self) -> Next {
        let config = self.config.clone();
        let (status, derivation) = (self.status.clone(), self.derivation.clone());
        let extensions = self.peer.extensions(&config, clock::monotonic());
        let established = 'attempt: loop {
            self.network_seen = self.network.borrow().better;
            let known = self.network_seen;
            let mut network = self.network.clone();
            let establish = establish(&config, extensions, self.turn, &status, &derivation);
            let mut establish = pin!(establish);
            loop {
                let better = async {
                    if network.wait_for(|changes| changes.better != known).await.is_err() {
                        pending::<()>().await;
                    }
                };
                // One that hangs in TCP gives way to one that may find its way at once.
                tokio::select! {
                    result = &mut establish => break 'attempt result,
                    next = self.change() => {
                        let attempt = matches!(next, Next::Attempt);
                        if attempt && status.is_connecting() {
                            continue 'attempt;
                        } else if !attempt && !matches!(next, Next::Retimed) {
                            return next;
                        }
                    }
                    () = better, if status.is_connecting() => continue 'attempt,
                }
            }
        };
        let established = match established {
            Ok(established) => {
                self.peer.succeeded(clock::monotonic());
                established
            }
            Err(failure) => {
                self.peer.failed(failure.blame, clock::monotonic());
                return Next::Lost(failure, false);
            }
        };
        let (mut control, sessions, failed) = established;
        if let Some(control) = control.as_ref().filter(|_| config != self.config) {
            // Changed while it was being made.
            control.tune(&self.config);
        }
        self.up(control.as_ref(), sessions).await;
        if let Some(failure) = failed {
            self.session_failed(&failure).await;
        }
        let next = self.run_sessions(&mut control).await;
        self.running.clear();
        if let Next::Lost(..) = next {
            self.network_seen = self.network.borrow().better;
        } else {
            if !matches!(next, Next::Parked(_) | Next::Again) {
                self.stop_sessions().await;
            }
            if let Some(control) = control {
                control.stop().await;
            }
        }
        next
    }

    /// Sessions run, until they no longer can or shall.
    async fn run_sessions(&mut self, control: &mut Option<Established>) -> Next {
        let progress = self.progress.clone();
        let mut network = self.network.clone();
        network.mark_unchanged();
        let interface = self.bound_interface();
        let mut moved = self.names_move(control.is_none());
        let mut missing = self.missing_due();
        loop {
            let watch = async {
                match control {
                    Some(control) => control.watch().await,
                    None => pending().await,
                }
            };
            let next = tokio::select! {
                failure = watch => return Next::Lost(failure, true),
                next = self.change_but_attempts() => next,
                () = progress.changed() => match self.after_tests().await {
                    Some(next) => return next,
                    None => continue,
                },
                Some(()) = &mut moved => {
                    tracing::info!(connection = self.config.name, "a name has another address");
                    self.stop_sessions().await;
                    return Next::Again;
                }
                () = sleep(until(missing)), if missing.is_some() => {
                    let changed = self.request_missing(control.as_mut(), Vec::new()).await;
                    if let Changed::Lost(failure) = changed {
                        return Next::Lost(failure, true);
                    }
                    missing = self.missing_due();
                    continue;
                }
                Ok(()) = network.changed() => {
                    if interface != self.bound_interface() {
                        return Next::Lost(self.interface_gone(), true);
                    }
                    continue;
                }
            };
            match next {
                Next::Sessions => {
                    let changed = self.change_sessions(control.as_mut()).await;
                    self.took_up();
                    match changed {
                        Changed::Done => {}
                        Changed::Closed => return Next::Again,
                        Changed::Lost(failure) => return Next::Lost(failure, true),
                    }
                    if let Some(control) = control {
                        control.tune(&self.config);
                    }
                    moved = self.names_move(control.is_none());
                    missing = self.missing_due();
                    // Those that are gone may have been the last that had something to do.
                    if let Some(next) = self.after_tests().await {
                        return next;
                    }
                }
                Next::Tuned => {
                    if let Some(control) = control {
                        control.tune(&self.config);
                    }
                }
                next @ (Next::Anew
                | Next::Attempt
                | Next::Retimed
                | Next::Lost(..)
                | Next::Completed
                | Next::Parked(_)
                | Next::Again
                | Next::End) => return next,
            }
        }
    }

    /// Ends when a name has another address than sessions without control are sent to.
    fn names_move(
        &self,
        without_control: bool,
    ) -> OptionFuture<Pin<Box<impl Future<Output = ()> + use<>>>> {
        let remotes = self.running.iter().map(|(name, running)| (name.clone(), running.remote));
        let (config, remotes) = (self.config.clone(), remotes.collect());
        OptionFuture::from(without_control.then(|| Box::pin(names_move(config, remotes))))
    }

    /// When sessions are tried again that do not run though the others do.
    fn missing_due(&self) -> Option<Monotonic> {
        let due = clock::monotonic().plus_ns(self.config.test_interval_ns);
        (!self.missing().is_empty()).then_some(due)
    }

    /// The kernel's number of the interface that sockets are bound to; another one is another
    /// interface, whatever its name.
    fn bound_interface(&self) -> Option<u32> {
        self.config.interface.as_deref().and_then(interface_index)
    }

    fn interface_gone(&self) -> Failure {
        let name = self.config.interface.as_deref().unwrap_or_default();
        Failure::new(LossCause::Local, format!("interface {name} is gone or was replaced"))
    }

    /// All sessions are started.
    async fn up(&mut self, control: Option<&Established>, sessions: Vec<OpenSession>) {
        let now = clock::now();
        self.progress.reset();
        self.progress.forget_silence();
        self.status.state(ConnectionState::Running, now);
        self.status.stands(self.standing(control));
        if let Some(outage) = self.course.ended() {
            let length_ns = now.monotonic.since_ns(outage.since);
            self.event(EventType::ConnectionRestored, |event| {
                event.cause = outage.failure.cause.into();
                event.accept_code = outage.failure.accept_code.into();
                event.attempts = outage.attempts + 1;
                event.duration = Some(duration_to_proto(length_ns));
                event.since = Some(outage.began.to_proto());
            });
        }
        self.status.outage_ends(now);
        self.start_sessions(sessions).await;
    }

    /// With a `test_count`, a break during the tests is their end.
    async fn completed_by_break(&mut self) -> Next {
        self.stop_sessions().await;
        self.rest(ConnectionState::Completed).await
    }

    /// Waits for the time of the next test. Nothing is wrong: the network has no part in it.
    async fn park_until(&mut self, due: Monotonic) -> Next {
        self.status.parked(due, clock::now());
        tokio::select! {
            () = sleep(until(Some(due))) => Next::Attempt,
            // Another pace counts from now on.
            next = self.change() => if matches!(next, Next::Retimed) { Next::Anew } else { next },
        }
    }

    /// Waits for the time of the next attempt, or for a change of the network that may make one
    /// succeed before.
    async fn wait_until(&mut self, mut due: Monotonic) -> Next {
        let known = self.network_seen;
        loop {
            self.status.waiting(due, clock::now());
            let mut network = self.network.clone();
            let better = async {
                if network.wait_for(|changes| changes.better != known).await.is_err() {
                    pending::<()>().await;
                }
            };
            tokio::select! {
                () = sleep(until(Some(due))) => return Next::Attempt,
                () = better => return Next::Attempt,
                next = self.change() => if !matches!(next, Next::Retimed) {
                    return next;
                }
            }
            // Counted from now on, where that is sooner.
            self.course.attempt_at(clock::monotonic());
            due = due.min(self.next_attempt());
            self.course.attempt_at(due);
        }
    }

    /// A session ended a test: what follows from it for the connection.
    async fn after_tests(&mut self) -> Option<Next> {
        if self.progress.all_completed() {
            return Some(Next::Completed);
        }
        if self.config.is_resolved_anew() && self.silence.is_over(&self.progress) {
            tracing::info!(connection = self.config.name, "no reply comes: negotiating anew");
            self.status.renegotiates();
            self.stop_sessions().await;
            self.turn += 1;
            return Some(Next::Again);
        }
        let silent = self.config.test_interval_ns > SILENT_CONNECTION_NS
            && self.config.control_type == ControlType::Managed;
        let due = self.progress.idle_until().filter(|_| silent)?;
        for index in 0..self.sessions.len() {
            self.tell(index, Command::Park).await;
        }
        Some(Next::Parked(due))
    }

    /// Takes up what is wanted now, from the beginning.
    async fn begin_anew(&mut self) {
        // What has no session has no test that would have to end; what is due there stays due.
        if self.current.stopped || self.current.config.inactive {
            self.stop_sessions().await;
        }
        self.applied = self.current.revision;
        if !self.config.has_same_server(&self.current.config) {
            self.peer = PeerMemory::default();
        }
        if self.current.config.inactive {
            // The sessions of what is inactive cost nothing; `run` makes those that are needed.
            self.end_sessions().await;
            self.config = self.current.config.clone();
        } else {
            self.follow_sessions().await;
            for index in 0..self.sessions.len() {
                self.tell(index, Command::Restart).await;
            }
            self.progress.reset();
        }
    }
}

fn until(due: Option<Monotonic>) -> Duration {
    due.map_or(Duration::MAX, |due| Duration::from_nanos(due.since_ns(clock::monotonic())))
}

/// Opens what the control type asks for; why a session is not there that is one of several.
async fn establish(
    config: &ControlConnection,
    extensions: Extensions,
    turn: usize,
    status: &Status,
    derivation: &Derivation,
) -> Result<(Option<Established>, Vec<OpenSession>, Option<Failure>), Failure> {
    match config.control_type {
        ControlType::Managed => {
            let mut established = attempt::managed(config, extensions, status, derivation).await?;
            let sessions = std::mem::take(&mut established.sessions);
            Ok((Some(established), sessions, None))
        }
        ControlType::Light | ControlType::Stamp => {
            let all: Vec<String> =
                config.sessions.iter().map(|session| session.name.clone()).collect();
            match attempt::without_control(config, &all, turn).await {
                (sessions, Some(failure)) if sessions.is_empty() => Err(failure),
                (sessions, failed) => Ok((None, sessions, failed)),
            }
        }
    }
}
