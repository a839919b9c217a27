//! The driver of one control connection: attempts in their rhythm, sessions up and down, outages
//! as pairs of events. What happens while sessions run is in [`super::running`], while there is no
//! connection in [`super::waits`], changes of what is wanted in [`super::changes`].

use std::{collections::HashMap, sync::Arc};

use futures_util::stream::FuturesUnordered;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Senders, Tools, Wanted,
    attempt::{self, Established},
    connect::{PATIENCE, Turn},
    course::{Course, Pauses},
    failure::Failure,
    missing::Tried,
    open::{self, Declined, OpenSession},
    peer::PeerMemory,
    progress::{Progress, Silence},
    sender::Command,
    sessions::{Running, SessionTask},
    status::Status,
    waits::gets_better,
};
use crate::{
    model::{ControlConnection, ControlType, Extensions},
    net::{NetworkChanges, clock, random},
    proto::{ConnectionState, EventType, FailureCause},
    results::Results,
    session::{Derivation, plane::Exit},
    supervise::Heartbeat,
    time::Monotonic,
};

/// Runs the connection until `token` is cancelled.
pub(super) async fn run(
    mut wanted: watch::Receiver<Wanted>,
    tools: Tools,
    token: CancellationToken,
    heartbeat: Heartbeat,
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
        ports_awaited_in: u64::MAX,
        declined: HashMap::new(),
        asked_together: Monotonic::default(),
        silences: 0,
        peer: PeerMemory::default(),
        token,
        heartbeat,
        sessions: Vec::new(),
        running: HashMap::new(),
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
    pub(super) network: watch::Receiver<NetworkChanges>,
    /// What was known of the network when the latest attempt began, or the connection was lost.
    pub(super) network_seen: u64,
    /// The revision in which ports that are taken were waited for.
    ports_awaited_in: u64,
    /// Sessions that do not run though others do.
    pub(super) declined: HashMap<String, Tried>,
    /// When sessions that can only be started together were asked for anew.
    pub(super) asked_together: Monotonic,
    /// Which address of a name sessions without control are sent to: the next one after a silence.
    pub(super) silences: usize,
    /// What was learnt of the server.
    peer: PeerMemory,
    pub(super) token: CancellationToken,
    pub(super) heartbeat: Heartbeat,
    pub(super) sessions: Vec<SessionTask>,
    /// The sessions that run, by name.
    pub(super) running: HashMap<String, Running>,
    pub(super) senders: Arc<Senders>,
    /// Ends of sessions; one that panics takes the driver with it, which is started again.
    pub(super) ends: FuturesUnordered<oneshot::Receiver<Exit>>,
    pub(super) progress: Arc<Progress>,
    pub(super) silence: Silence,
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
                && (self.current.config.test_count == self.config.test_count
                    || self.current.config.manual_start);
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
            // Nothing is left that a connection would be made for.
            let next = match self.progress.all_completed() {
                true => Next::Completed,
                false => self.attempt_and_run().await,
            };
            let next = match next {
                Next::Lost(failure, started) => {
                    // What was lost here may find another way from here, and does not wait for it.
                    let at_once = started && failure.cause == FailureCause::LocalError;
                    if self.lost(failure, started).await {
                        return self.completed_by_break().await;
                    }
                    let due = if at_once { clock::monotonic() } else { self.next_attempt() };
                    self.wait_until(due).await
                }
                Next::Parked(due) => {
                    self.course.attempt_at(due);
                    self.park_until(due).await
                }
                next @ (Next::Anew
                | Next::Attempt
                | Next::Sessions
                | Next::Tuned
                | Next::Retimed
                | Next::Completed
                | Next::Again
                | Next::End) => next,
            };
            match next {
                Next::Attempt => {}
                Next::Sessions => {
                    self.change_sessions_apart().await;
                    self.course.attempt_at(clock::monotonic());
                }
                Next::Again => self.course.attempt_at(clock::monotonic()),
                Next::Completed => return self.complete().await,
                next @ (Next::Anew
                | Next::Tuned
                | Next::Retimed
                | Next::Lost(..)
                | Next::Parked(_)
                | Next::End) => return next,
            }
        }
    }

    fn pauses(&self) -> Pauses {
        Pauses {
            interval_ns: self.config.test_interval_ns,
            longest_ns: self.config.retry_backoff_max_ns,
        }
    }

    /// Of an attempt that begins now.
    pub(super) fn turn(&mut self) -> Turn {
        let limit_ns = self.config.connect_timeout_ns;
        let deadline = self.course.deadline(self.pauses(), limit_ns, clock::monotonic());
        let address = self.silences + self.course.failed() as usize;
        // Once behind each change: it may have taken a port from one session for another.
        let before = std::mem::replace(&mut self.ports_awaited_in, self.applied);
        Turn { deadline, address, waits_for_ports: before != self.applied, patience: PATIENCE }
    }

    pub(super) fn next_attempt(&mut self) -> Monotonic {
        let pauses = self.pauses();
        let random = random::number();
        self.course.next_attempt(pauses, random, clock::monotonic())
    }

    /// An attempt is made: when the one behind it is due.
    fn tell_attempt(&self) {
        let now = clock::now();
        self.status.attempt(self.course.attempt_behind(self.pauses(), now.monotonic), now);
    }

    async fn attempt_and_run(&mut self) -> Next {
        let (config, progress) = (self.config.clone(), self.progress.clone());
        let names = self.in_time();
        let (status, derivation) = (self.status.clone(), self.derivation.clone());
        let extensions = self.peer.extensions(&config, clock::monotonic());
        let established = 'attempt: loop {
            self.network_seen = self.network.borrow().better;
            let known = self.network_seen;
            let mut network = self.network.clone();
            let turn = self.turn();
            self.tell_attempt();
            let establish = establish(&config, &names, extensions, turn, &status, &derivation);
            // Thousands of octets, which a connection that is up does not need.
            let mut establish = Box::pin(establish);
            loop {
                let better = gets_better(&mut network, known);
                // One that hangs in TCP gives way to one that may find its way at once.
                tokio::select! {
                    result = &mut establish => break 'attempt result,
                    next = self.change() => {
                        let attempt = matches!(next, Next::Attempt);
                        if attempt && status.is_connecting() {
                            continue 'attempt;
                        } else if matches!(next, Next::Retimed) {
                            self.tell_attempt();
                        } else if !attempt {
                            return next;
                        }
                    }
                    () = progress.changed() => {
                        if progress.all_completed() {
                            return Next::Completed;
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
        let (mut control, sessions, declined) = established;
        if let Some(control) = control.as_ref().filter(|_| config != self.config) {
            // Changed while it was being made.
            control.tune(&self.config);
        }
        self.up(control.as_deref(), sessions).await;
        self.sessions_declined(declined).await;
        let next = self.run_sessions(&mut control).await;
        self.running.clear();
        self.network_seen = self.network.borrow().better;
        if !matches!(next, Next::Lost(_, true)) {
            if !matches!(next, Next::Parked(_) | Next::Again) {
                self.stop_sessions().await;
            }
            if let Some(control) = control {
                Box::pin(control.stop()).await;
            }
        }
        next
    }

    /// With a `test_count`, a break during the tests is their end.
    async fn completed_by_break(&mut self) -> Next {
        self.stop_sessions().await;
        self.rest(ConnectionState::Completed).await
    }

    /// All tests were run.
    async fn complete(&mut self) -> Next {
        self.abandon();
        self.event(EventType::ConnectionCompleted, |_| {});
        self.rest(ConnectionState::Completed).await
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

/// Opens what the control type asks for; which sessions are not there, where others are.
async fn establish(
    config: &ControlConnection,
    names: &[String],
    extensions: Extensions,
    turn: Turn,
    status: &Status,
    derivation: &Derivation,
) -> Result<(Option<Box<Established>>, Vec<OpenSession>, Vec<Declined>), Failure> {
    match config.control_type {
        ControlType::Managed => {
            let (mut established, declined) =
                attempt::managed(config, names, extensions, turn, status, derivation).await?;
            let sessions = std::mem::take(&mut established.sessions);
            Ok((Some(Box::new(established)), sessions, declined))
        }
        ControlType::Light | ControlType::Stamp => {
            let (sessions, mut declined) = open::without_control(config, names, turn, false).await;
            if sessions.is_empty()
                && let Some(last) = declined.pop()
            {
                return Err(last.failure);
            }
            Ok((None, sessions, declined))
        }
    }
}
