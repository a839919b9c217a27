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
        client::{ClientContext, ConnectionHandle, Senders, probe_server},
    },
    supervise::Tasks,
};

/// Servers that may be tried by hand at the same time.
const MAXIMUM_PROBES: usize = 16;
/// Limit of the time that the answer to a change waits until the connections have it.
const HANDED_LIMIT: Duration = Duration::from_secs(1);

/// Why connections were not started or stopped. None was, then.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ByHandError {
    /// A name that is not configured.
    #[error("no connection is named {0:?}")]
    Unknown(String),
    /// A name that no session of the connections has.
    #[error("no session of the connections asked for is named {0:?}")]
    UnknownSession(String),
    /// The connection is configured as inactive.
    #[error("connection {0:?} is inactive: apply a configuration in which it is not")]
    Inactive(String),
}

/// All configured connections of the client role.
#[derive(Debug)]
pub struct Clients {
    inner: Mutex<Inner>,
    /// The latest revision that was handed to the connections.
    handed: watch::Sender<u64>,
    context: ClientContext,
    /// Servers that may be tried by hand at the same time.
    probes: Semaphore,
    /// Of the connections alone.
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

    /// Numbers of changes, for whoever waits for one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.context.changes.latest()
    }

    /// Ends all connections, before the rest of the agent: one that measures to itself finds its
    /// server there until the end. `false` where some did not end in time.
    pub async fn end(&self, grace: Duration) -> bool {
        self.tasks.end(grace).await
    }

    /// Tries a server once; `None` where too many are being tried.
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

    /// Starts what is new, changes what is different, removes what is gone.
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
            self.context.changes.removed();
        }
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

    /// Waits until a revision is handed to the connections, for not much longer than that takes: who
    /// is told of a change finds what there is from then on.
    pub(super) async fn handed(&self, revision: u64) {
        let mut handed = self.handed.subscribe();
        let _ = timeout(HANDED_LIMIT, handed.wait_for(|handed| *handed >= revision)).await;
    }

    /// The revision that was handed to the connections, and the earliest that one of them has not
    /// yet taken up.
    pub(super) fn applied(&self) -> (u64, Option<u64>) {
        let inner = self.lock();
        let waiting =
            inner.connections.values().filter_map(|handle| handle.unapplied_revision()).min();
        (*self.handed.borrow(), waiting)
    }

    /// The connections of these names, or all, sorted by name.
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
        let changed = handles.iter().filter(|(_, handle)| handle.changed() > number);
        let changed = changed.map(|(_, handle)| handle.snapshot(directory.as_ref())).collect();
        (changed, handles.into_iter().map(|(name, _)| name).collect())
    }

    /// One attempt at once for each of these, or of all that are active.
    pub fn start(&self, names: &[String]) -> Result<Vec<String>, ByHandError> {
        let chosen = self.active(names)?;
        chosen.iter().for_each(|(_, handle)| handle.start_by_hand());
        Ok(chosen.into_iter().map(|(name, _)| name).collect())
    }

    /// Stops these, or all that are active.
    pub fn stop(&self, names: &[String]) -> Result<Vec<String>, ByHandError> {
        let chosen = match names {
            [] => self.active(names)?,
            _ => self.named(names)?,
        };
        chosen.iter().for_each(|(_, handle)| handle.stop_by_hand());
        Ok(chosen.into_iter().map(|(name, _)| name).collect())
    }

    /// Statistics of the tests that run now, of these connections or of all.
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
