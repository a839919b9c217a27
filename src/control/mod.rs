//! The path from a request to running measurements: the commit actor checks and persists one change
//! at a time, the reconcile task makes both roles follow the committed configuration. The start of
//! the agent is a reconciliation with the stored one.

mod admission;
mod clients;
mod commit;
mod committed;
mod reconcile;
mod secrets;

use std::{collections::HashSet, sync::Arc};

use tokio::sync::{mpsc, watch};

pub use admission::{Admission, Admissions};
pub use clients::{ByHandError, Clients};
pub use commit::ApplyError;
pub use committed::{Committed, LoadError};

use crate::{
    model::{ExportConfig, ServerConfig},
    net::{NetworkChanges, follow_network, random},
    proto,
    results::Results,
    session::{
        client::Senders,
        server::{Reflectors, Registry, ServerRole},
    },
    store::{ConfigStore, ReadLimit, StoreError, StoredRevision},
    supervise::{RestartPolicy, Tasks, keep_alive},
    time::UnixTime,
};
use commit::{Commit, Committer};
use secrets::Digester;

/// Changes that may wait for the one before.
const COMMITS: usize = 16;

/// Threads that send and reflect test packets.
#[derive(Clone, Debug)]
pub struct Planes {
    /// Threads of the client role.
    pub senders: Arc<Senders>,
    /// Threads of the server role.
    pub reflectors: Arc<Reflectors>,
}

/// The configuration of the agent and the tasks that follow it.
#[derive(Clone, Debug)]
pub struct Control {
    store: Arc<ConfigStore>,
    digester: Digester,
    commits: mpsc::Sender<Commit>,
    committed: watch::Receiver<Committed>,
    clients: Arc<Clients>,
    registry: Arc<Registry>,
    server_applied: watch::Receiver<Option<Arc<ServerConfig>>>,
    exported: watch::Receiver<Arc<ExportConfig>>,
    reads: ReadLimit,
}

impl Control {
    /// Returns the committed configuration of the exporters.
    pub fn exported(&self) -> watch::Receiver<Arc<ExportConfig>> {
        self.exported.clone()
    }

    /// Applies the stored configuration and follows every later one.
    pub fn start(
        store: ConfigStore,
        committed: Committed,
        results: &Arc<Results>,
        planes: Planes,
        tasks: &Tasks,
    ) -> Result<Self, LoadError> {
        let store = Arc::new(store);
        tracing::info!(
            revision = committed.revision,
            connections = committed.config.connections.len(),
            server = committed.config.server.is_some(),
            "configuration loaded"
        );
        let (publish, committed_receiver) = watch::channel(committed);
        let (commits, requests) = mpsc::channel(COMMITS);
        let digester = Digester::new(store.digest_key(random::bytes()?)?);
        let (network, network_changes) = watch::channel(NetworkChanges::default());
        tasks.spawn("network", follow_network(network, tasks.token()));
        let clients = Arc::new(Clients::new(results.clone(), network_changes, planes.senders));
        let committer = Committer {
            store: store.clone(),
            results: results.clone(),
            clients: clients.clone(),
            publish,
            digester: digester.clone(),
        };
        let requests = Arc::new(tokio::sync::Mutex::new(requests));
        let (token, commit_token) = (tasks.token(), tasks.token());
        tasks.spawn(
            "commit",
            keep_alive(
                token,
                RestartPolicy::default(),
                move |heartbeat| {
                    committer.clone().run(requests.clone(), commit_token.clone(), heartbeat)
                },
                |text, last| tracing::error!(error = text, last, "commit task failed"),
            ),
        );

        let reflectors = planes.reflectors;
        let registry = Registry::new(reflectors.counters());
        let (server, server_config) = watch::channel(None);
        let (applied, server_applied) = watch::channel(None);
        start_server_role(registry.clone(), reflectors, server_config, applied, tasks);
        let (export, exported) = watch::channel(Arc::default());
        let reconciler = reconcile::Reconciler {
            committed: committed_receiver.clone(),
            clients: clients.clone(),
            server: Arc::new(server),
            export: Arc::new(export),
            server_applied: server_applied.clone(),
            results: results.clone(),
            token: tasks.token(),
        };
        tasks.spawn(
            "reconcile",
            keep_alive(
                tasks.token(),
                RestartPolicy::default(),
                move |heartbeat| reconciler.clone().follow(heartbeat),
                |text, last| tracing::error!(error = text, last, "reconcile task failed"),
            ),
        );
        let committed = committed_receiver;
        Ok(Self {
            store,
            digester,
            commits,
            committed,
            clients,
            registry,
            server_applied,
            exported,
            reads: ReadLimit::default(),
        })
    }

    /// Makes a change on behalf of `author`, or only checks it where it is `validate_only`. A caller
    /// that gives up before the change has begun makes none.
    pub async fn apply(
        &self,
        request: proto::ApplyConfigRequest,
        author: String,
        admission: Admission,
    ) -> Result<proto::ApplyConfigResponse, ApplyError> {
        let applied = commit::request(&self.commits, |answer| {
            Commit::Apply(Box::new(request), author, admission, answer)
        });
        self.handed(applied.await).await
    }

    /// Makes the document of an earlier revision current again, as a new revision.
    pub async fn roll_back(
        &self,
        request: proto::RollbackConfigRequest,
        author: String,
    ) -> Result<proto::ApplyConfigResponse, ApplyError> {
        let applied =
            commit::request(&self.commits, |answer| Commit::RollBack(request, author, answer));
        self.handed(applied.await).await
    }

    async fn handed(
        &self,
        applied: Result<proto::ApplyConfigResponse, ApplyError>,
    ) -> Result<proto::ApplyConfigResponse, ApplyError> {
        if let Ok(answer) = &applied {
            self.clients.handed(answer.revision).await;
        }
        applied
    }

    /// Confirms the pending revision; `revision` 0 accepts any. Returns its number.
    pub async fn confirm(&self, revision: u64, author: String) -> Result<u64, ApplyError> {
        commit::request(&self.commits, |answer| Commit::Confirm(revision, author, answer)).await
    }

    /// Returns the deadline to confirm the pending revision.
    pub async fn confirm_deadline(&self) -> Result<Option<UnixTime>, StoreError> {
        let store = self.store.clone();
        let unconfirmed = self.reads.blocking(move || store.unconfirmed()).await?;
        Ok(unconfirmed.map(|(_, unconfirmed)| UnixTime(unconfirmed.until_unix_ns)))
    }

    /// Returns a revision, or the current one with 0, without its secrets; `None` where it is not
    /// kept.
    pub async fn revision(&self, revision: u64) -> Result<Option<StoredRevision>, StoreError> {
        let (store, digester) = (self.store.clone(), self.digester.clone());
        let revision = match revision {
            0 => self.committed.borrow().rolled_back_to.unwrap_or(0),
            asked => asked,
        };
        let read = self.reads.blocking(move || {
            let stored = if revision == 0 { store.current() } else { store.revision(revision) };
            stored.map(|stored| {
                stored.map(|stored| StoredRevision {
                    config: stored.config.map(|document| digester.redacted(document)),
                    ..stored
                })
            })
        });
        read.await
    }

    /// Lists the kept revisions, newest first.
    pub async fn revisions(&self) -> Result<Vec<proto::Revision>, StoreError> {
        let store = self.store.clone();
        self.reads.blocking(move || store.revisions()).await
    }

    /// Describes damage to the configuration database; empty without any.
    pub fn damage(&self) -> String {
        self.store.damage()
    }

    /// Returns the names of the configured connections.
    pub fn connection_names(&self) -> Vec<String> {
        self.committed.borrow().config.connections.keys().cloned().collect()
    }

    /// Refuses names that no connection has.
    pub fn check_names(&self, names: &[String]) -> Result<(), ByHandError> {
        let committed = self.committed.borrow();
        let known = &committed.config.connections;
        match names.iter().find(|name| !known.contains_key(*name)) {
            Some(unknown) => Err(ByHandError::Unknown(unknown.clone())),
            None => Ok(()),
        }
    }

    /// Refuses names that no session of these connections has, or of any connection where none is
    /// named.
    pub fn check_session_names(
        &self,
        connections: &[String],
        sessions: &[String],
    ) -> Result<(), ByHandError> {
        if sessions.is_empty() {
            return Ok(());
        }
        let committed = self.committed.borrow();
        let asked_for = committed.config.connections.values();
        let asked_for =
            asked_for.filter(|one| connections.is_empty() || connections.contains(&one.name));
        let known: HashSet<&str> = asked_for.flat_map(|one| one.session_names()).collect();
        match sessions.iter().find(|name| !known.contains(name.as_str())) {
            Some(unknown) => Err(ByHandError::UnknownSession(unknown.clone())),
            None => Ok(()),
        }
    }

    /// Returns the number of the committed revision.
    pub fn committed_revision(&self) -> u64 {
        self.committed.borrow().revision
    }

    /// Returns the revision that all running measurements follow.
    pub fn applied_revision(&self) -> u64 {
        let committed = self.committed.borrow().clone();
        if let Some(to) = committed.rolled_back_to {
            return to;
        }
        let (reached, waiting) = self.clients.applied();
        let same_server = match (&*self.server_applied.borrow(), &committed.config.server) {
            (None, None) => true,
            (Some(applied), Some(wanted)) => applied == wanted,
            _ => false,
        };
        match waiting {
            Some(unapplied) => unapplied.saturating_sub(1).min(reached),
            None if same_server => reached,
            None => reached.saturating_sub(1),
        }
    }

    /// Returns the connections of the client role.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Returns the sessions and connections of the server role.
    pub fn server(&self) -> &Registry {
        &self.registry
    }
}

fn start_server_role(
    registry: Arc<Registry>,
    reflectors: Arc<Reflectors>,
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
    applied: watch::Sender<Option<Arc<ServerConfig>>>,
    tasks: &Tasks,
) {
    let role_tasks = tasks.clone();
    tasks.spawn(
        "server role",
        keep_alive(
            tasks.token(),
            RestartPolicy::default(),
            move |heartbeat| {
                let (registry, reflectors) = (registry.clone(), reflectors.clone());
                let role = ServerRole::new(registry, reflectors, config.clone(), &role_tasks);
                role.run(applied.clone(), heartbeat)
            },
            |text, last| tracing::error!(error = text, last, "server role failed"),
        ),
    );
}
