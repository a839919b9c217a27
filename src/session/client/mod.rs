//! The client role. Every control connection has a driver ([`connection`]), and each of its test
//! sessions a place on a thread of the data plane ([`sender`]) that it keeps over reconnects. What is wanted of a connection is a
//! value on a watch, so a driver that is started again finds it there.

mod attempt;
mod changes;
mod connect;
mod connection;
mod course;
mod failure;
mod missing;
mod open;
mod outage;
mod pace;
mod peer;
mod probe;
mod progress;
mod rhythm;
mod running;
mod sender;
mod sessions;
mod status;
mod waits;

use std::{io, sync::Arc};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    model::{ControlConnection, SessionControl},
    net::{NetworkChanges, clock},
    proto::{Connection, Statistics},
    results::Results,
    session::{Derivation, PlaneSettings, plane::Plane},
    supervise::{RestartPolicy, Tasks, keep_alive},
};
use pace::Pace;
use sender::Command;
use status::Status;

pub use status::Changes;

pub use probe::probe_server;

/// What is wanted of a connection.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    config: Arc<ControlConnection>,
    /// Stopped by hand, or not yet started by hand.
    stopped: bool,
    /// Rises with every StartConnections.
    starts: u64,
    /// Revision in which `config` came.
    revision: u64,
}

/// What a driver works with.
#[derive(Clone, Debug)]
struct Tools {
    status: Arc<Status>,
    results: Arc<Results>,
    derivation: Arc<Derivation>,
    network: watch::Receiver<NetworkChanges>,
    senders: Arc<Senders>,
}

/// The threads of the test sessions.
#[derive(Debug)]
pub struct Senders {
    plane: Plane<sender::Session>,
    pace: Arc<Pace>,
}

impl Senders {
    /// Starts them.
    pub fn start(settings: PlaneSettings) -> io::Result<Arc<Self>> {
        let plane = Plane::start("sender", settings)?;
        Ok(Arc::new(Self { pace: Pace::new(plane.threads()), plane }))
    }
}

/// What all connections share.
#[derive(Clone, Debug)]
pub struct ClientContext {
    /// Where results go.
    pub results: Arc<Results>,
    /// Where keys are derived.
    pub derivation: Arc<Derivation>,
    /// Changes of this host's network.
    pub network: watch::Receiver<NetworkChanges>,
    /// Where sessions run.
    pub senders: Arc<Senders>,
    /// Numbers what changes in the state of connections.
    pub changes: Arc<Changes>,
}

/// A configured connection.
#[derive(Debug)]
pub struct ConnectionHandle {
    wanted: watch::Sender<Wanted>,
    status: Arc<Status>,
    token: CancellationToken,
}

impl ConnectionHandle {
    /// Starts the driver of a connection.
    pub fn start(
        config: Arc<ControlConnection>,
        revision: u64,
        context: &ClientContext,
        tasks: &Tasks,
    ) -> Self {
        let status = Arc::new(Status::new(&config, context.changes.clone(), clock::now()));
        let stopped = config.manual_start;
        let (wanted, receiver) = watch::channel(Wanted { config, stopped, starts: 0, revision });
        let token = tasks.token().child_token();
        let tools = Tools {
            status: status.clone(),
            results: context.results.clone(),
            derivation: context.derivation.clone(),
            network: context.network.clone(),
            senders: context.senders.clone(),
        };
        tasks.spawn("connection", supervise(receiver, tools, token.clone()));
        Self { wanted, status, token }
    }

    /// Wants another configuration from now on.
    pub fn configure(&self, config: Arc<ControlConnection>, revision: u64) {
        self.wanted.send_if_modified(|wanted| {
            if wanted.config == config {
                return false;
            }
            let activated = wanted.config.inactive && !config.inactive;
            // A change starts again what was stopped by hand, but not what waits for a hand.
            wanted.stopped = config.manual_start && (wanted.stopped || activated);
            wanted.config = config;
            wanted.revision = revision;
            true
        });
        // Seen as what is yet to be taken up, if the driver was not faster.
        self.status.wanted();
    }

    /// What is configured.
    pub fn config(&self) -> Arc<ControlConnection> {
        self.wanted.borrow().config.clone()
    }

    /// Makes one attempt at once; starts again what was stopped or completed.
    pub fn start_by_hand(&self) {
        self.wanted.send_modify(|wanted| {
            wanted.stopped = false;
            wanted.starts += 1;
        });
    }

    /// Stops until it is started by hand or changed.
    pub fn stop_by_hand(&self) {
        self.wanted.send_modify(|wanted| wanted.stopped = true);
    }

    /// Ends the driver and its sessions.
    pub fn remove(&self) {
        self.token.cancel();
    }

    /// How its sessions can be changed now.
    pub fn session_control(&self) -> SessionControl {
        self.status.session_control()
    }

    /// Number of the latest change of its state.
    pub fn changed(&self) -> u64 {
        self.status.changed()
    }

    /// Whether its sessions are started.
    pub fn is_running(&self) -> bool {
        self.status.is_running()
    }

    /// What the connection does.
    pub fn snapshot(&self) -> Connection {
        let (revision, stopped) = {
            let wanted = self.wanted.borrow();
            (wanted.revision, wanted.stopped)
        };
        self.status.to_proto(revision, stopped, clock::now())
    }

    /// The revision in which the configuration came that the driver has not yet taken up.
    pub fn unapplied_revision(&self) -> Option<u64> {
        let revision = self.wanted.borrow().revision;
        (!self.status.has_applied(revision)).then_some(revision)
    }

    /// Statistics of the tests that run now.
    pub async fn current_tests(&self) -> Vec<Statistics> {
        let mut statistics = Vec::new();
        for session in self.status.session_handles() {
            let (answer, answered) = oneshot::channel();
            if session.send(Command::Snapshot(answer)).await.is_ok()
                && let Ok(Some(current)) = answered.await
            {
                statistics.push(current);
            }
        }
        statistics
    }
}

/// Runs the driver, again when it fails. When it failed too often, not before something else is
/// wanted.
async fn supervise(mut wanted: watch::Receiver<Wanted>, tools: Tools, token: CancellationToken) {
    loop {
        let start =
            |heartbeat| connection::run(wanted.clone(), tools.clone(), token.clone(), heartbeat);
        let failed = |text: &str, last| {
            outage::failed(&wanted.borrow().config, &tools, text, last);
        };
        keep_alive(token.clone(), RestartPolicy::default(), start, failed).await;
        // The drivers saw changes by receivers of their own.
        wanted.mark_unchanged();
        tokio::select! {
            () = token.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() {
                return;
            }
        }
    }
}
