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
/// Limit of the time that the answer to a change waits for the connections to receive it.
const HANDED_LIMIT: Duration = Duration::from_secs(1);

/// Reason for which connections were not started or stopped. No connection was, except for
/// [`Self::NotStored`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ByHandError {
    /// The name is not configured.
    #[error("connection {0:?} is not configured")]
    Unknown(String),
    /// No session of the connections has the name.
    #[error("session {0:?} is not configured in the selected connections")]
    UnknownSession(String),
    /// The connection is configured as inactive.
    #[error("connection {0:?} is inactive: apply a configuration with inactive: false")]
    Inactive(String),
    /// Starts or stops are in effect and not stored; the error of the store.
    #[error("done, but not stored, so that a restart of the agent undoes it: {0}")]
    NotStored(String),
}

/// All configured connections of the client role.
#[derive(Debug)]
pub struct Clients {
    inner: Mutex<Inner>,
    /// Latest revision that was handed to the connections.
    handed: watch::Sender<u64>,
    context: ClientContext,
    /// Permits to probe a server.
    probes: Semaphore,
    /// Tasks of the connections alone, which end before others.
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Inner {
    connections: BTreeMap<String, Arc<ConnectionHandle>>,
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
        let handed = watch::Sender::new(0);
        Self { inner: Mutex::default(), handed, context, probes, tasks: Tasks::new() }
    }

    /// Returns the control that a connection has over its sessions.
    pub fn session_control(&self, name: &str) -> SessionControl {
        let handle = self.lock().connections.get(name).cloned();
        handle.map_or(SessionControl::Down, |handle| handle.session_control())
    }

    /// Returns the far end of a connection or, if its name is not empty, of a session.
    pub fn peer(&self, connection: &str, session: &str) -> Option<Peer> {
        let handle = self.lock().connections.get(connection).cloned();
        handle?.peer(session)
    }

    /// Returns the number of the latest change, to wait for the next.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.context.changes.latest()
    }

    /// Ends all connections, before the rest of the agent: one that measures to its own agent needs
    /// the server role until its end. Returns whether all ended in time.
    pub async fn end(&self, grace: Duration) -> bool {
        self.tasks.end(grace).await
    }

    /// Probes a server once; returns `None` where too many are being probed.
    pub async fn probe(&self, config: &ControlConnection) -> Option<ProbeServerResponse> {
        let _permit = self.probes.try_acquire().ok()?;
        Some(probe_server(config, &self.context.derivation).await)
    }

    /// Returns for each connection whether its sessions run.
    pub fn running(&self) -> BTreeMap<String, bool> {
        let inner = self.lock();
        let connections = inner.connections.iter();
        connections.map(|(name, handle)| (name.clone(), handle.is_running())).collect()
    }

    /// Starts connections that are new, changes those that differ, removes those that are gone with
    /// their persisted state.
    pub(super) fn follow(&self, config: &AgentConfig, revision: u64) {
        let mut inner = self.lock();
        let count = inner.connections.len();
        inner.connections.retain(|name, handle| {
            let stays = config.connections.contains_key(name);
            if !stays {
                handle.remove();
            }
            stays
        });
        if inner.connections.len() < count {
            self.context.changes.number_removal();
        }
        self.context.results.retain_persisted(|name| config.connections.contains_key(name));
        for (name, wanted) in &config.connections {
            match inner.connections.get(name) {
                Some(handle) => handle.configure(wanted.clone(), revision),
                None => {
                    let handle = ConnectionHandle::start(
                        wanted.clone(),
                        revision,
                        &self.context,
                        &self.tasks,
                    );
                    inner.connections.insert(name.clone(), Arc::new(handle));
                }
            }
        }
        drop(inner);
        self.handed.send_replace(revision);
    }

    /// Waits for a limited time until a revision is handed to the connections, so that the answer to a
    /// change is followed by states that include it.
    pub(super) async fn handed(&self, revision: u64) {
        let mut handed = self.handed.subscribe();
        let _ = timeout(HANDED_LIMIT, handed.wait_for(|handed| *handed >= revision)).await;
    }

    /// Returns the revision that was handed to the connections, and the earliest revision that one of
    /// them has yet to apply.
    pub(super) fn applied(&self) -> (u64, Option<u64>) {
        let inner = self.lock();
        let waiting =
            inner.connections.values().filter_map(|handle| handle.unapplied_revision()).min();
        (*self.handed.borrow(), waiting)
    }

    /// Returns the connections of these names, or all, sorted by name.
    pub fn list(&self, names: &[String]) -> Result<Vec<Connection>, ByHandError> {
        let directory = TcpDirectory::open().ok();
        let handles = self.named(names)?;
        Ok(handles.iter().map(|(_, handle)| handle.snapshot(directory.as_ref())).collect())
    }

    /// Returns those of these connections, or of all, that changed after a number, and the names of all
    /// that exist.
    pub fn changed_since(
        &self,
        names: &[String],
        number: u64,
    ) -> (Vec<Connection>, BTreeSet<String>) {
        let handles: Vec<Named> = {
            let inner = self.lock();
            let wanted = |name: &String| names.is_empty() || names.contains(name);
            let connections = inner.connections.iter().filter(|(name, _)| wanted(name));
            connections.map(|(name, handle)| (name.clone(), handle.clone())).collect()
        };
        let directory = TcpDirectory::open().ok();
        let changed = handles.iter().filter(|(_, handle)| handle.latest_change() > number);
        let changed = changed.map(|(_, handle)| handle.snapshot(directory.as_ref())).collect();
        (changed, handles.into_iter().map(|(name, _)| name).collect())
    }

    /// Makes one attempt at once for each of these, or of all that are active. The start of one that
    /// was stopped or completed survives a kill once this returns.
    pub async fn start(&self, names: &[String]) -> Result<Vec<String>, ByHandError> {
        let chosen = self.active(names)?;
        let restarted = chosen.iter().filter(|(_, handle)| handle.start_by_hand()).count();
        self.flush(restarted).await?;
        Ok(chosen.into_iter().map(|(name, _)| name).collect())
    }

    /// Stops these, or all that are active, for `identity`. The stop survives a kill once this
    /// returns.
    pub async fn stop(&self, names: &[String], identity: &str) -> Result<Vec<String>, ByHandError> {
        let chosen = match names {
            [] => self.active(names)?,
            _ => self.named(names)?,
        };
        chosen.iter().for_each(|(_, handle)| handle.stop_by_hand(identity));
        self.flush(chosen.len()).await?;
        Ok(chosen.into_iter().map(|(name, _)| name).collect())
    }

    /// Waits until starts and stops are stored. They are in effect also where the store fails.
    async fn flush(&self, changed: usize) -> Result<(), ByHandError> {
        if changed > 0
            && let Err(error) = self.context.results.flush().await
        {
            tracing::warn!(%error, connections = changed, "failed to store starts and stops by hand");
            return Err(ByHandError::NotStored(error.to_string()));
        }
        Ok(())
    }

    /// Returns statistics of the tests that run, of these connections or of all.
    pub async fn current_tests(&self, names: &[String]) -> Vec<Statistics> {
        let chosen: Vec<_> = {
            let inner = self.lock();
            let wanted = |name: &String| names.is_empty() || names.contains(name);
            inner
                .connections
                .iter()
                .filter(|(name, _)| wanted(name))
                .map(|(_, h)| h.clone())
                .collect()
        };
        let mut statistics = Vec::new();
        for handle in chosen {
            statistics.extend(handle.current_tests().await);
        }
        statistics
    }

    fn active(&self, names: &[String]) -> Result<Vec<Named>, ByHandError> {
        let chosen = self.named(names)?;
        if names.is_empty() {
            return Ok(chosen.into_iter().filter(|(_, h)| !h.config().inactive).collect());
        }
        match chosen.iter().find(|(_, handle)| handle.config().inactive) {
            Some((name, _)) => Err(ByHandError::Inactive(name.clone())),
            None => Ok(chosen),
        }
    }

    fn named(&self, names: &[String]) -> Result<Vec<Named>, ByHandError> {
        let inner = self.lock();
        if names.is_empty() {
            return Ok(inner.connections.iter().map(|(n, h)| (n.clone(), h.clone())).collect());
        }
        let mut chosen = BTreeMap::new();
        for name in names {
            match inner.connections.get(name) {
                Some(handle) => chosen.insert(name.clone(), handle.clone()),
                None => return Err(ByHandError::Unknown(name.clone())),
            };
        }
        Ok(chosen.into_iter().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Named = (String, Arc<ConnectionHandle>);
