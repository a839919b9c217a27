//! The path from a request to running measurements: the commit actor checks and persists one change
//! at a time, and the reconcile task makes both roles follow the committed configuration. At the
//! start of the agent, the reconcile task applies the stored configuration in the same way.

mod admission;
mod clients;
mod commit;
mod committed;
mod reconcile;
mod secrets;

use std::{collections::HashSet, sync::Arc};

use tokio::sync::{mpsc, watch};

pub use admission::{Admission, Admissions};
pub use clients::{Clients, ClientsError};
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
use clients::Handover;
use commit::{Commit, Committer, send_request};
use secrets::Digester;

/// Maximum number of requests that wait for the commit actor.
const COMMIT_QUEUE: usize = 16;

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
    /// Returns a watch on the committed configuration of the exporters.
    pub fn exported(&self) -> watch::Receiver<Arc<ExportConfig>> {
        self.exported.clone()
    }

    /// Starts the tasks that apply the stored configuration and every later one.
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
        let (committed, committed_receiver) = watch::channel(committed);
        let (commits, requests) = mpsc::channel(COMMIT_QUEUE);
        let digester = Digester::new(store.digest_key(random::bytes()?)?);
        let (network, network_changes) = watch::channel(NetworkChanges::default());
        tasks.spawn("network", follow_network(network, tasks.token()));
        let clients = Arc::new(Clients::new(results.clone(), network_changes, planes.senders));
        let committer = Committer {
            store: store.clone(),
            results: results.clone(),
            clients: clients.clone(),
            committed,
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
                move |heartbeat| reconciler.clone().run(heartbeat),
                |text, last| tracing::error!(error = text, last, "reconcile task failed"),
            ),
        );
        Ok(Self {
            store,
            digester,
            commits,
            committed: committed_receiver,
            clients,
            registry,
            server_applied,
            exported,
            reads: ReadLimit::default(),
        })
    }

    /// Commits a change on behalf of `author`; with `validate_only`, only determines its effects. A
    /// caller that gives up before the change has begun makes none.
    pub async fn apply(
        &self,
        request: proto::ApplyConfigRequest,
        author: String,
        admission: Admission,
    ) -> Result<proto::ApplyConfigResponse, ApplyError> {
        let request = |reply| Commit::Apply(Box::new(request), author, admission, reply);
        let answer = send_request(&self.commits, request).await?;
        self.clients.wait_for_handover(answer.revision).await;
        Ok(answer)
    }

    /// Commits the document of an earlier revision again, as a new revision.
    pub async fn roll_back(
        &self,
        request: proto::RollbackConfigRequest,
        author: String,
    ) -> Result<proto::ApplyConfigResponse, ApplyError> {
        let request = |reply| Commit::Rollback(request, author, reply);
        let answer = send_request(&self.commits, request).await?;
        self.clients.wait_for_handover(answer.revision).await;
        Ok(answer)
    }

    /// Confirms the pending revision; `revision` 0 accepts any. Returns its number.
    pub async fn confirm(&self, revision: u64, author: String) -> Result<u64, ApplyError> {
        send_request(&self.commits, |reply| Commit::Confirm(revision, author, reply)).await
    }

    /// Returns the deadline to confirm the pending revision.
    pub async fn confirm_deadline(&self) -> Result<Option<UnixTime>, StoreError> {
        let store = self.store.clone();
        let unconfirmed = self.reads.blocking(move || store.unconfirmed()).await?;
        Ok(unconfirmed.map(|(_, unconfirmed)| UnixTime(unconfirmed.until_unix_ns)))
    }

    /// Returns a revision without its secrets. The number 0 stands for the current revision; `None` is
    /// returned for a revision that is not kept.
    pub async fn revision(&self, revision: u64) -> Result<Option<StoredRevision>, StoreError> {
        let (store, digester) = (self.store.clone(), self.digester.clone());
        let revision = match revision {
            0 => self.committed.borrow().rolled_back_to.unwrap_or(0),
            requested => requested,
        };
        let read = self.reads.blocking(move || {
            let stored = if revision == 0 { store.current() } else { store.revision(revision) };
            stored.map(|stored| {
                stored.map(|stored| StoredRevision {
                    config: stored.config.map(|document| digester.redact(document)),
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
        let refused = self.committed.borrow().refused.clone();
        let faults = [self.store.damage(), refused.unwrap_or_default()];
        let faults: Vec<String> = faults.into_iter().filter(|fault| !fault.is_empty()).collect();
        faults.join("; ")
    }

    /// Returns the names of the configured connections.
    pub fn connection_names(&self) -> Vec<String> {
        self.committed.borrow().config.connections.keys().cloned().collect()
    }

    /// Returns an error for the first name that no configured connection has.
    pub fn check_names(&self, names: &[String]) -> Result<(), ClientsError> {
        let committed = self.committed.borrow();
        let known = &committed.config.connections;
        match names.iter().find(|name| !known.contains_key(*name)) {
            Some(unknown) => Err(ClientsError::Unknown(unknown.clone())),
            None => Ok(()),
        }
    }

    /// Returns an error for the first name that no session of the named connections has. An empty
    /// `connections` selects all connections.
    pub fn check_session_names(
        &self,
        connections: &[String],
        sessions: &[String],
    ) -> Result<(), ClientsError> {
        if sessions.is_empty() {
            return Ok(());
        }
        let committed = self.committed.borrow();
        let is_selected = |name| connections.is_empty() || connections.contains(name);
        let selected = committed.config.connections.values().filter(|c| is_selected(&c.name));
        let known: HashSet<&str> = selected.flat_map(|c| c.session_names()).collect();
        match sessions.iter().find(|name| !known.contains(name.as_str())) {
            Some(unknown) => Err(ClientsError::UnknownSession(unknown.clone())),
            None => Ok(()),
        }
    }

    /// Returns the number of the committed revision.
    pub fn committed_revision(&self) -> u64 {
        self.committed.borrow().revision
    }

    /// Returns the latest revision that all running measurements have applied.
    pub fn applied_revision(&self) -> u64 {
        let committed = self.committed.borrow().clone();
        if let Some(to) = committed.rolled_back_to {
            return to;
        }
        let Handover { handed, earliest_unapplied } = self.clients.handover();
        let is_server_applied = match (&*self.server_applied.borrow(), &committed.config.server) {
            (None, None) => true,
            (Some(applied), Some(desired)) => applied == desired,
            _ => false,
        };
        match earliest_unapplied {
            Some(unapplied) => unapplied.saturating_sub(1).min(handed),
            None if is_server_applied => handed,
            None => handed.saturating_sub(1),
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
