//! Client role. Each control connection has a state machine ([`crate::twamp::connection`]) and a
//! driver, the task that runs the machine. Each test session has an endpoint on a data-plane
//! thread, which survives reconnects. The desired state of a connection is kept in a watch channel,
//! so that a restarted driver finds it.

mod command;
mod connect;
mod driver;
mod events;
mod failure;
mod host;
mod negotiate;
mod open;
mod pacing;
mod peer;
mod persistence;
mod probe;
mod progress;
mod sender;
mod sessions;
mod status;

use std::{io, sync::Arc};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    model::{ControlConnection, SessionControl},
    net::{NetworkChanges, TcpDirectory, clock},
    proto::{Connection, FailureCause, Statistics},
    results::Results,
    session::{Derivation, PlaneSettings, plane::Plane},
    supervise::{RestartPolicy, Tasks, keep_alive},
    twamp::connection::{ConnectionEvent, Desired, Failure},
};
use command::Command;
use pacing::Pacing;
use persistence::Persistence;
use status::Status;

pub use peer::Peer;
pub use status::Changes;

pub use probe::probe_server;

/// Shared objects that a driver uses.
#[derive(Clone, Debug)]
struct Tools {
    status: Arc<Status>,
    persistence: Arc<Persistence>,
    results: Arc<Results>,
    derivation: Arc<Derivation>,
    network: watch::Receiver<NetworkChanges>,
    senders: Arc<Senders>,
}

/// The threads of the test sessions.
#[derive(Debug)]
pub struct Senders {
    plane: Plane<sender::Session>,
    pacing: Arc<Pacing>,
}

impl Senders {
    /// Starts the data-plane threads of the sender.
    pub fn start(settings: PlaneSettings) -> io::Result<Arc<Self>> {
        let plane = Plane::start("sender", settings)?;
        Ok(Arc::new(Self { pacing: Pacing::new(plane.threads()), plane }))
    }
}

/// Objects that all connections share.
#[derive(Clone, Debug)]
pub struct ClientContext {
    /// Receiver of the results of tests.
    pub results: Arc<Results>,
    /// Derivation of keys outside the event loop.
    pub derivation: Arc<Derivation>,
    /// Changes of this host's network.
    pub network: watch::Receiver<NetworkChanges>,
    /// Threads of the sessions.
    pub senders: Arc<Senders>,
    /// Counter of the changes of all connections.
    pub changes: Arc<Changes>,
}

/// Control of a configured connection and its task.
#[derive(Debug)]
pub struct ConnectionHandle {
    desired: watch::Sender<Desired>,
    status: Arc<Status>,
    persistence: Arc<Persistence>,
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
        let persistence = Arc::new(Persistence::new(&config.name, context.results.clone()));
        let persisted = persistence.read();
        let completed = persisted.completed.map(|completed| completed.test_count);
        // A completed connection with a manual start stays completed across a restart of the agent.
        let waits_for_start = config.manual_start && completed != Some(config.test_count);
        let stopped = persisted.stopped.is_some() || waits_for_start;
        let (desired, receiver) = watch::channel(Desired { config, stopped, starts: 0, revision });
        let token = tasks.token().child_token();
        let tools = Tools {
            status: status.clone(),
            persistence: persistence.clone(),
            results: context.results.clone(),
            derivation: context.derivation.clone(),
            network: context.network.clone(),
            senders: context.senders.clone(),
        };
        tasks.spawn("connection", supervise(receiver, tools, token.clone()));
        Self { desired, status, persistence, token }
    }

    /// Sets the desired configuration.
    pub fn configure(&self, config: Arc<ControlConnection>, revision: u64) {
        self.desired.send_if_modified(|desired| {
            if desired.config == config {
                return false;
            }
            let activated = desired.config.inactive && !config.inactive;
            // A change restarts a stopped connection, unless it has a manual start.
            desired.stopped = config.manual_start && (desired.stopped || activated);
            if !desired.stopped {
                self.persistence.end_stop();
            }
            desired.config = config;
            desired.revision = revision;
            true
        });
        // The API shows the connection as reconciling until the driver has applied the
        // configuration.
        self.status.mark_changed();
    }

    /// Returns the desired configuration.
    pub fn config(&self) -> Arc<ControlConnection> {
        self.desired.borrow().config.clone()
    }

    /// Makes one attempt at once, and starts the connection if it is stopped or has completed.
    /// Returns true if this changed the persisted state.
    pub fn start_by_hand(&self) -> bool {
        let mut is_changed = false;
        self.desired.send_modify(|desired| {
            is_changed = self.persistence.start();
            desired.stopped = false;
            desired.starts += 1;
        });
        is_changed
    }

    /// Stops the connection until it is started by hand or its configuration changes. The stop also
    /// survives a restart of the agent, once the results are flushed. `identity` names the caller.
    pub fn stop_by_hand(&self, identity: &str) {
        self.desired.send_modify(|desired| {
            self.persistence.stop(identity);
            desired.stopped = true;
        });
    }

    /// Ends the driver and the sessions of a connection that is no longer configured. Nothing is
    /// persisted for it from now on.
    pub fn remove(&self) {
        self.persistence.remove();
        self.token.cancel();
    }

    /// Returns the way in which its sessions can be controlled, which decides the effect of a
    /// change of the configuration.
    pub fn session_control(&self) -> SessionControl {
        self.status.session_control()
    }

    /// Returns the number of the latest change of its state.
    pub fn latest_change(&self) -> u64 {
        self.status.latest_change()
    }

    /// Returns true if its sessions run.
    pub fn is_running(&self) -> bool {
        self.status.is_running()
    }

    /// Returns its status; `directory` provides the kernel's view of TCP connections.
    pub fn snapshot(&self, directory: Option<&TcpDirectory>) -> Connection {
        let desired = self.desired.borrow().clone();
        self.status.to_proto(&desired, directory, clock::now())
    }

    /// Returns the far end of the named session or, with an empty name, of the connection.
    pub fn peer(&self, session: &str) -> Option<Peer> {
        let address = self.status.remote_address(session);
        peer::find(&self.desired.borrow().config, session, address)
    }

    /// Returns the revision of the configuration if it is not yet in effect.
    pub fn unapplied_revision(&self) -> Option<u64> {
        let revision = self.desired.borrow().revision;
        (!self.status.has_applied(revision)).then_some(revision)
    }

    /// Returns the statistics of the tests that run now.
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

/// Runs the driver and restarts it when it fails. After too many failures it is restarted only when
/// the desired state changes.
async fn supervise(mut desired: watch::Receiver<Desired>, tools: Tools, token: CancellationToken) {
    loop {
        let start =
            |heartbeat| driver::run(desired.clone(), tools.clone(), token.clone(), heartbeat);
        let failed = |text: &str, last| task_failed(&desired.borrow().config, &tools, text, last);
        keep_alive(token.clone(), RestartPolicy::default(), start, failed).await;
        // The drivers have received earlier changes through clones of this receiver.
        desired.mark_unchanged();
        tokio::select! {
            () = token.cancelled() => break,
            changed = desired.changed() => if changed.is_err() {
                break;
            }
        }
    }
    let now = clock::now();
    if tools.persistence.is_removed()
        && let Some(event) = tools.status.abandon_outage(now)
    {
        events::record(&tools.results, &desired.borrow().config, &event, now.unix);
    }
}

/// Records the failure of a connection's task as an outage of this connection.
fn task_failed(config: &ControlConnection, tools: &Tools, text: &str, last: bool) {
    let failure = Failure::new(FailureCause::Panic, format!("the task failed: {text}"));
    tracing::error!(connection = config.name, error = text, last, "connection task failed");
    let now = clock::now();
    if let Some(outage) = tools.status.task_failed(failure.clone(), last, now) {
        events::record(&tools.results, config, &ConnectionEvent::Lost(failure), now.unix);
        tools.persistence.set_outage(&outage);
    }
}
