//! The configured connections of the client role, by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use crate::{
    model::{AgentConfig, ControlConnection, SessionControl},
    net::{NetworkChanges, TcpDirectory},
    proto::{Connection, ProbeServerResponse, Statistics},
    results::Results,
    session::{
        Derivation,
        client::{ClientContext, ConnectionHandle, Peer, Senders, probe_server},
    },
    supervise::Tasks,
};

/// Limit of servers probed at the same time.
const MAXIMUM_PROBES: usize = 16;
/// Maximum time that the answer to a configuration change is delayed until the connections have
/// received the change.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection and its name.
type NamedHandle = (String, Arc<ConnectionHandle>);

/// Error of a request that names connections or sessions. The request changed nothing, except for
/// [`Self::NotStored`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ClientsError {
    /// The name is not configured.
    #[error("connection {0:?} is not configured")]
    Unknown(String),
    /// No session of the connections has the name.
    #[error("session {0:?} is not configured in the selected connections")]
    UnknownSession(String),
    /// The connection is configured as inactive.
    #[error("connection {0:?} is inactive: apply a configuration with inactive: false")]
    Inactive(String),
    /// The connections were started or stopped, but the store failed with this error.
    #[error(
        "the connections were started or stopped, but this could not be stored, and a restart of the \
         agent will undo it: {0}"
    )]
    NotStored(String),
}

/// All configured connections of the client role.
#[derive(Debug)]
pub struct Clients {
    connections: Mutex<BTreeMap<String, Arc<ConnectionHandle>>>,
    /// Latest revision that was handed to the connections.
    handed_revision: watch::Sender<u64>,
    context: ClientContext,
    /// Permits to probe a server.
    probes: Semaphore,
    /// Tasks of the connections. A separate group, because it ends before the other tasks of the
    /// agent.
    tasks: Tasks,
}

/// Progress of the connections towards the committed configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handover {
    /// Latest revision that was handed to the connections.
    pub(super) handed: u64,
    /// Earliest revision that some connection was handed and has yet to apply.
    pub(super) earliest_unapplied: Option<u64>,
}

impl Clients {
    pub(super) fn new(
        results: Arc<Results>,
        network: watch::Receiver<NetworkChanges>,
        senders: Arc<Senders>,
    ) -> Self {
        let derivation = Arc::new(Derivation::for_clients());
        let changes = Arc::default();
        let context = ClientContext { results, derivation, network, senders, changes };
        let probes = Semaphore::new(MAXIMUM_PROBES);
        let (connections, handed_revision) = (Mutex::default(), watch::Sender::new(0));
        Self { connections, handed_revision, context, probes, tasks: Tasks::new() }
    }

    /// Returns the control that a connection has over its sessions.
    pub fn session_control(&self, name: &str) -> SessionControl {
        let handle = self.lock().get(name).cloned();
        handle.map_or(SessionControl::Down, |handle| handle.session_control())
    }

    /// Returns the peer of a session, or of the connection itself if `session` is empty.
    pub fn peer(&self, connection: &str, session: &str) -> Option<Peer> {
        let handle = self.lock().get(connection).cloned();
        handle?.peer(session)
    }

    /// Returns a watch on the number of the latest change of the state of any connection.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.context.changes.latest()
    }

    /// Ends all connections. Must run before the server role ends, because a connection may measure to
    /// the server of the same agent. Returns true if all ended within `grace`.
    pub async fn end(&self, grace: Duration) -> bool {
        self.tasks.end(grace).await
    }

    /// Probes a server once. Returns `None` if [`MAXIMUM_PROBES`] servers are being probed already.
    pub async fn probe(&self, config: &ControlConnection) -> Option<ProbeServerResponse> {
        let _permit = self.probes.try_acquire().ok()?;
        Some(probe_server(config, &self.context.derivation).await)
    }

    /// Returns for each connection whether its sessions run.
    pub fn running(&self) -> BTreeMap<String, bool> {
        let connections = self.lock();
        connections.iter().map(|(name, handle)| (name.clone(), handle.is_running())).collect()
    }

    /// Starts new connections, reconfigures changed ones, and removes those that are no longer
    /// configured, together with their persisted state.
    pub(super) fn apply_config(&self, config: &AgentConfig, revision: u64) {
        let mut connections = self.lock();
        let count = connections.len();
        connections.retain(|name, handle| {
            let is_configured = config.connections.contains_key(name);
            if !is_configured {
                handle.remove();
            }
            is_configured
        });
        if connections.len() < count {
            self.context.changes.number_removal();
        }
        self.context.results.retain_persisted(|name| config.connections.contains_key(name));
        for (name, desired) in &config.connections {
            match connections.get(name) {
                Some(handle) => handle.configure(desired.clone(), revision),
                None => {
                    let handle = ConnectionHandle::start(
                        desired.clone(),
                        revision,
                        &self.context,
                        &self.tasks,
                    );
                    connections.insert(name.clone(), Arc::new(handle));
                }
            }
        }
        drop(connections);
        self.handed_revision.send_replace(revision);
    }

    /// Waits until a revision was handed to the connections, but at most [`HANDOVER_TIMEOUT`], so that
    /// a client that reads states after the answer to its change sees the change.
    pub(super) async fn wait_for_handover(&self, revision: u64) {
        let mut handed_revision = self.handed_revision.subscribe();
        let handover = handed_revision.wait_for(|handed| *handed >= revision);
        let _ = timeout(HANDOVER_TIMEOUT, handover).await;
    }

    /// Returns the progress of the connections towards the committed configuration.
    pub(super) fn handover(&self) -> Handover {
        let connections = self.lock();
        let unapplied = connections.values().filter_map(|handle| handle.unapplied_revision());
        Handover { handed: *self.handed_revision.borrow(), earliest_unapplied: unapplied.min() }
    }

    /// Returns the named connections, sorted by name. An empty `names` selects all.
    pub fn list(&self, names: &[String]) -> Result<Vec<Connection>, ClientsError> {
        let directory = TcpDirectory::open().ok();
        let handles = self.select(names)?;
        Ok(handles.iter().map(|(_, handle)| handle.snapshot(directory.as_ref())).collect())
    }

    /// Returns the selected connections that changed after the change with this number, and the names
    /// of all selected connections. An empty `names` selects all; unknown names are ignored.
    pub fn changed_since(
        &self,
        names: &[String],
        number: u64,
    ) -> (Vec<Connection>, BTreeSet<String>) {
        let handles = self.select_known(names);
        let directory = TcpDirectory::open().ok();
        let changed = handles.iter().filter(|(_, handle)| handle.latest_change() > number);
        let changed = changed.map(|(_, handle)| handle.snapshot(directory.as_ref())).collect();
        (changed, handles.into_iter().map(|(name, _)| name).collect())
    }

    /// Makes each named connection, or each active one if `names` is empty, try to connect
    /// immediately. A connection that was stopped or completed starts again; a restart of the agent
    /// does not undo this once the function has returned.
    pub async fn start(&self, names: &[String]) -> Result<Vec<String>, ClientsError> {
        let selected = self.select_active(names)?;
        let restarted = selected.iter().filter(|(_, handle)| handle.start_by_hand()).count();
        self.flush(restarted).await?;
        Ok(selected.into_iter().map(|(name, _)| name).collect())
    }

    /// Stops the named connections, or all active ones if `names` is empty, on behalf of `identity`.
    /// A restart of the agent does not undo this once the function has returned.
    pub async fn stop(
        &self,
        names: &[String],
        identity: &str,
    ) -> Result<Vec<String>, ClientsError> {
        let selected = match names {
            [] => self.select_active(names)?,
            _ => self.select(names)?,
        };
        selected.iter().for_each(|(_, handle)| handle.stop_by_hand(identity));
        self.flush(selected.len()).await?;
        Ok(selected.into_iter().map(|(name, _)| name).collect())
    }

    /// Waits until starts and stops are stored. They take effect even if the store fails.
    async fn flush(&self, changed: usize) -> Result<(), ClientsError> {
        if changed > 0
            && let Err(error) = self.context.results.flush().await
        {
            tracing::warn!(%error, connections = changed, "failed to store starts and stops by hand");
            return Err(ClientsError::NotStored(error.to_string()));
        }
        Ok(())
    }

    /// Returns statistics of the running tests of the named connections. An empty `names` selects all
    /// connections; unknown names are ignored.
    pub async fn current_tests(&self, names: &[String]) -> Vec<Statistics> {
        let mut statistics = Vec::new();
        for (_, handle) in self.select_known(names) {
            statistics.extend(handle.current_tests().await);
        }
        statistics
    }

    fn select_active(&self, names: &[String]) -> Result<Vec<NamedHandle>, ClientsError> {
        let selected = self.select(names)?;
        if names.is_empty() {
            return Ok(selected.into_iter().filter(|(_, h)| !h.config().inactive).collect());
        }
        match selected.iter().find(|(_, handle)| handle.config().inactive) {
            Some((name, _)) => Err(ClientsError::Inactive(name.clone())),
            None => Ok(selected),
        }
    }

    fn select(&self, names: &[String]) -> Result<Vec<NamedHandle>, ClientsError> {
        let selected = self.select_known(names);
        let is_known =
            |name: &String| selected.binary_search_by(|(known, _)| known.cmp(name)).is_ok();
        match names.iter().find(|name| !is_known(name)) {
            Some(unknown) => Err(ClientsError::Unknown(unknown.clone())),
            None => Ok(selected),
        }
    }

    /// Returns the named connections, or all if `names` is empty, sorted by name.
    fn select_known(&self, names: &[String]) -> Vec<NamedHandle> {
        let connections = self.lock();
        if names.is_empty() {
            return connections.iter().map(|(n, h)| (n.clone(), h.clone())).collect();
        }
        let names: BTreeSet<&String> = names.iter().collect();
        let named = |name: &String| Some((name.clone(), connections.get(name)?.clone()));
        names.into_iter().filter_map(named).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<ConnectionHandle>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
