//! The driver of one control connection: attempts in their rhythm, sessions up and down, outages
//! as pairs of events, and changes of what is wanted while all this goes on.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    Tools, Wanted,
    attempt::{self, Established, OpenSession},
    failure::Failure,
    outage::Outage,
    peer::PeerMemory,
    progress::{Progress, Silence},
    rhythm::Rhythm,
    sender::{self, Command},
    status::Status,
};
use crate::{
    model::{
        ControlConnection, ControlType, Extensions, connection_effect, limits::SILENT_CONNECTION_NS,
    },
    net::clock,
    proto::{ChangeEffect, ConnectionState, EventType},
    results::Results,
    session::Derivation,
    time::{Monotonic, duration_to_proto},
};

/// Runs the connection until `token` is cancelled.
pub(super) async fn run(
    mut wanted: watch::Receiver<Wanted>,
    tools: Tools,
    token: CancellationToken,
) {
    let Tools { status, results, derivation } = tools;
    let current = wanted.borrow_and_update().clone();
    let outage =
        status.open_outage().map(|(failure, since, attempts)| Outage { failure, since, attempts });
    let mut driver = Driver {
        config: current.config.clone(),
        current,
        wanted,
        progress: Arc::new(Progress::new(0)),
        status,
        results,
        derivation,
        peer: PeerMemory::default(),
        token,
        sessions: Vec::new(),
        tasks: JoinSet::new(),
        silence: Silence::default(),
        outage,
    };
    driver.run().await;
}

/// Why a stage of the connection ended.
#[derive(Debug)]
enum Next {
    /// What is wanted changed in a way that needs a new beginning.
    Anew,
    /// Make an attempt now.
    Attempt,
    /// The connection was lost; whether its sessions had been started.
    Lost(Failure, bool),
    /// All sessions ran all their tests.
    Completed,
    /// No test is due for so long that the connection is closed until then.
    Parked(Monotonic),
    /// No reply comes any more: what was negotiated is taken to be forgotten.
    Silent,
    /// The agent ends or the connection was removed.
    End,
}

pub(super) struct Driver {
    /// What the sessions follow.
    pub(super) config: Arc<ControlConnection>,
    /// What was last seen of `wanted`.
    current: Wanted,
    wanted: watch::Receiver<Wanted>,
    pub(super) status: Arc<Status>,
    pub(super) results: Arc<Results>,
    derivation: Arc<Derivation>,
    /// What was learnt of the server.
    peer: PeerMemory,
    token: CancellationToken,
    pub(super) sessions: Vec<mpsc::Sender<Command>>,
    /// The sessions' tasks; one that panics takes the driver with it, which is started again.
    tasks: JoinSet<()>,
    progress: Arc<Progress>,
    silence: Silence,
    pub(super) outage: Option<Outage>,
}

impl Driver {
    async fn run(&mut self) {
        loop {
            if !self.config.inactive && self.sessions.is_empty() {
                self.make_sessions();
            }
            let next = if self.config.inactive {
                self.status.configured(&self.config, self.current.revision);
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
        self.status.state(state, clock::now());
        loop {
            let next = self.change().await;
            if !matches!(next, Next::Attempt) || state != ConnectionState::Inactive {
                return next;
            }
        }
    }

    /// Attempts and tests, until something else is wanted or all tests are done.
    async fn measure(&mut self) -> Next {
        let mut rhythm = Rhythm::new(clock::monotonic());
        loop {
            let next = self.attempt_and_run(&mut rhythm).await;
            let due = match next {
                Next::Lost(failure, started) => {
                    if self.lost(failure, started).await {
                        return self.completed_by_break().await;
                    }
                    rhythm.next(self.config.test_interval_ns, clock::monotonic())
                }
                Next::Parked(due) => {
                    rhythm = Rhythm::new(due);
                    due
                }
                Next::Silent => {
                    rhythm = Rhythm::new(clock::monotonic());
                    continue;
                }
                Next::Completed => {
                    self.event(EventType::ConnectionCompleted, |_| {});
                    return self.rest(ConnectionState::Completed).await;
                }
                next @ (Next::Anew | Next::Attempt | Next::End) => return next,
            };
            self.status.waiting(due, clock::now());
            let next = self.wait_until(due).await;
            if !matches!(next, Next::Attempt) {
                return next;
            }
        }
    }

    async fn attempt_and_run(&mut self, rhythm: &mut Rhythm) -> Next {
        let config = self.config.clone();
        let (status, derivation) = (self.status.clone(), self.derivation.clone());
        let extensions = self.peer.extensions(&config);
        let establish = establish(&config, extensions, &status, &derivation);
        let established = tokio::select! {
            result = establish => match result {
                Ok(established) => {
                    self.peer.succeeded();
                    established
                }
                Err(failure) => {
                    self.peer.failed(failure.blame);
                    return Next::Lost(failure, false);
                }
            },
            // An attempt is under way: one by hand has nothing to add.
            next = self.change_but_attempts() => return next,
        };
        let (mut control, sessions) = established;
        self.up(sessions).await;
        let progress = self.progress.clone();
        let next = loop {
            let watch = async {
                match &mut control {
                    Some(control) => control.watch().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                failure = watch => break Next::Lost(failure, true),
                next = self.change_but_attempts() => break next,
                () = progress.changed() => if let Some(next) = self.after_tests().await {
                    break next;
                },
            }
        };
        if let Next::Lost(..) = next {
            *rhythm = Rhythm::new(clock::monotonic());
        } else {
            if !matches!(next, Next::Parked(_)) {
                self.stop_sessions().await;
            }
            if let Some(control) = control {
                control.stop().await;
            }
        }
        next
    }

    /// All sessions are started.
    async fn up(&mut self, sessions: Vec<OpenSession>) {
        let now = clock::now();
        self.progress.reset();
        self.progress.forget_silence();
        self.status.state(ConnectionState::Running, now);
        if let Some(outage) = self.outage.take() {
            let length_ns = now.monotonic.since_ns(outage.since);
            self.event(EventType::ConnectionRestored, |event| {
                event.cause = outage.failure.cause.into();
                event.accept_code = outage.failure.accept_code.into();
                event.attempts = outage.attempts + 1;
                event.duration = Some(duration_to_proto(length_ns));
            });
        }
        self.status.outage_ends(now);
        for (index, session) in sessions.into_iter().enumerate() {
            let sid = session.sid.map(|sid| sid.to_string()).unwrap_or_default();
            self.status.session_started(index, sid, session.socket.local(), session.remote);
            self.tell(index, Command::Up(Box::new(session))).await;
        }
    }

    /// With a `test_count`, a break during the tests is their end.
    async fn completed_by_break(&mut self) -> Next {
        self.stop_sessions().await;
        self.rest(ConnectionState::Completed).await
    }

    /// Waits for the time of the next attempt.
    async fn wait_until(&mut self, due: Monotonic) -> Next {
        let wait = Duration::from_nanos(due.since_ns(clock::monotonic()));
        tokio::select! {
            () = sleep(wait) => Next::Attempt,
            next = self.change() => next,
        }
    }

    /// Waits until something is wanted that the present stage cannot give. What changes without a
    /// word on the wire is passed on meanwhile.
    async fn change(&mut self) -> Next {
        loop {
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() {
                    return Next::End;
                },
                () = self.token.cancelled() => return Next::End,
                Some(Err(error)) = self.tasks.join_next() => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
            }
            let wanted = self.wanted.borrow_and_update().clone();
            let before = std::mem::replace(&mut self.current, wanted);
            let live = self.current.config.inactive == self.config.inactive
                && connection_effect(&self.config, &self.current.config) == ChangeEffect::Live;
            if !live || self.current.stopped {
                return Next::Anew;
            }
            if self.current.config != self.config {
                self.configure().await;
                if before.stopped {
                    return Next::Anew;
                }
            }
            if self.current.starts != before.starts {
                return Next::Attempt;
            }
        }
    }

    async fn change_but_attempts(&mut self) -> Next {
        loop {
            let next = self.change().await;
            if !matches!(next, Next::Attempt) {
                return next;
            }
        }
    }

    /// A session ended a test: what follows from it for the connection.
    async fn after_tests(&mut self) -> Option<Next> {
        if self.progress.all_completed() {
            return Some(Next::Completed);
        }
        if self.config.control_type == ControlType::Managed && self.silence.is_over(&self.progress)
        {
            tracing::info!(connection = self.config.name, "no reply comes: negotiating anew");
            self.status.renegotiates();
            return Some(Next::Silent);
        }
        let silent = self.config.test_interval_ns > SILENT_CONNECTION_NS
            && self.config.control_type == ControlType::Managed;
        let due = self.progress.idle_until().filter(|_| silent)?;
        for index in 0..self.sessions.len() {
            self.tell(index, Command::Park).await;
        }
        Some(Next::Parked(due))
    }

    /// Passes a change on that needs nothing on the wire.
    async fn configure(&mut self) {
        self.config = self.current.config.clone();
        for index in 0..self.sessions.len() {
            self.tell(index, Command::Configure(self.config.clone(), index)).await;
        }
        self.status.configured(&self.config, self.current.revision);
    }

    /// Takes up what is wanted now, from the beginning.
    async fn begin_anew(&mut self) {
        self.stop_sessions().await;
        let names = |config: &ControlConnection| -> Vec<String> {
            config.sessions.iter().map(|session| session.name.clone()).collect()
        };
        let same = names(&self.config) == names(&self.current.config);
        if same && !self.current.config.inactive {
            self.configure().await;
            for index in 0..self.sessions.len() {
                self.tell(index, Command::Restart).await;
            }
            self.progress.reset();
        } else {
            // The sessions of what is inactive cost nothing; `run` makes those that are needed.
            self.end_sessions().await;
            self.config = self.current.config.clone();
        }
        self.peer = PeerMemory::default();
    }

    /// Sessions end when nobody is left to command them.
    async fn end_sessions(&mut self) {
        self.sessions.clear();
        self.status.set_session_commands(Vec::new());
        while self.tasks.join_next().await.is_some() {}
    }

    fn make_sessions(&mut self) {
        self.progress = Arc::new(Progress::new(self.config.sessions.len()));
        for index in 0..self.config.sessions.len() {
            let (commands, receiver) = mpsc::channel(sender::COMMANDS);
            let tools = sender::Tools {
                results: self.results.clone(),
                status: self.status.clone(),
                progress: self.progress.clone(),
            };
            self.tasks.spawn(sender::run(self.config.clone(), index, tools, receiver));
            self.sessions.push(commands);
        }
        self.status.configured(&self.config, self.current.revision);
        self.status.set_session_commands(self.sessions.clone());
    }

    /// Ends running tests as STOPPED, once what is under way is answered or lost; returns when
    /// their results are reported.
    async fn stop_sessions(&mut self) {
        let mut all = Vec::with_capacity(self.sessions.len());
        for index in 0..self.sessions.len() {
            let (done, stopped) = oneshot::channel();
            self.tell(index, Command::Stop(done)).await;
            all.push(stopped);
        }
        for stopped in all {
            let _ = stopped.await;
        }
    }

    pub(super) async fn tell(&self, index: usize, command: Command) {
        // A session whose task is gone is found by `change`.
        let _ = self.sessions[index].send(command).await;
    }
}

/// Opens what the control type asks for.
async fn establish(
    config: &ControlConnection,
    extensions: Extensions,
    status: &Status,
    derivation: &Derivation,
) -> Result<(Option<Established>, Vec<OpenSession>), Failure> {
    match config.control_type {
        ControlType::Managed => {
            let mut established = attempt::managed(config, extensions, status, derivation).await?;
            let sessions = std::mem::take(&mut established.sessions);
            Ok((Some(established), sessions))
        }
        ControlType::Light | ControlType::Stamp => {
            Ok((None, attempt::without_control(config).await?))
        }
    }
}
