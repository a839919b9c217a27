//! Commit actor: commits one change of the configuration at a time, durably, and rolls back a
//! revision that is not confirmed in time. [`plan`] has the steps of a change.

mod answers;
mod documents;
mod error;
mod fields;
mod merge;
mod overdue;
mod pending;
mod plan;
mod proposal;
mod request;

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{clients::Clients, committed::Committed, secrets::Digester};
use crate::{
    model::{AgentConfig, SessionControl},
    net::{clock, files_for_measurements, open_files},
    proto::{self, ApplyConfigRequest, ApplyConfigResponse, EventType, RollbackConfigRequest},
    results::Results,
    store::{ConfigStore, StoreError, blocking},
    supervise::Heartbeat,
};
use answers::Answers;
use pending::{Countdown, Pending};
use plan::{
    Basis, Checked, Environment, NewRevision, Persisted, Plan, Publication, check, persist, plan,
};
use proposal::{Proposal, digest, request_digest};
use request::log_error;

pub use error::ApplyError;
pub(super) use request::{Commit, send_request};

/// Delay before another attempt to persist a rollback.
const ROLLBACK_RETRY: Duration = Duration::from_secs(1);

/// Interval between attempts to reopen a configuration database that failed.
const REOPEN_INTERVAL: Duration = Duration::from_millis(500);

/// Delay before another attempt to read the configuration database.
const READ_RETRY: Duration = Duration::from_millis(500);

/// Handles that the actor works with. They outlive a restart of the actor.
#[derive(Clone)]
pub(super) struct Committer {
    pub(super) store: Arc<ConfigStore>,
    pub(super) results: Arc<Results>,
    pub(super) clients: Arc<Clients>,
    pub(super) committed: watch::Sender<Committed>,
    pub(super) digester: Digester,
}

impl Committer {
    /// Serves requests until `token` is cancelled. While the database cannot be read, requests are
    /// answered with the error and the read is repeated.
    pub(super) async fn run(
        self,
        requests: Arc<Mutex<mpsc::Receiver<Commit>>>,
        token: CancellationToken,
        heartbeat: Heartbeat,
    ) {
        let mut requests = requests.lock().await;
        let mut is_logged = false;
        loop {
            heartbeat.beat();
            let committer = self.clone();
            let error = match blocking(move || Actor::read(committer)).await {
                Ok(actor) => return actor.run(&mut requests, token, heartbeat).await,
                Err(error) => error,
            };
            if !std::mem::replace(&mut is_logged, true) {
                tracing::error!(%error, "failed to read the configuration database, retrying");
            }
            tokio::select! {
                () = sleep(READ_RETRY) => {}
                commit = requests.recv() => match commit {
                    Some(commit) => commit.refuse(error.into()),
                    None => return,
                },
                () = token.cancelled() => return,
            }
        }
    }

    /// Runs work that waits for the disk.
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ConfigStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store.clone();
        blocking(move || work(&store)).await
    }

    /// Returns the number of sockets available to measurements: the limit for them minus the files
    /// that are open for other purposes.
    fn sockets_available(&self, config: &AgentConfig) -> u64 {
        let is_running = |name: &str| match self.clients.session_control(name) {
            SessionControl::AllOrNothing | SessionControl::Individual => true,
            SessionControl::Down | SessionControl::Stopped | SessionControl::Completed => false,
        };
        let running = config.connections.values().filter(|c| is_running(&c.name));
        let other_files = open_files().saturating_sub(running.map(|c| c.sockets()).sum());
        files_for_measurements().saturating_sub(other_files)
    }
}

/// State of the commit actor. It is read from the store and from the published configuration at each
/// start, so the actor can restart at any time.
struct Actor {
    committer: Committer,
    /// Digest of the current document without secrets.
    digest: String,
    answers: Answers,
    countdown: Option<Countdown>,
}

impl Actor {
    /// Reads the state of the actor. Waits for the disk.
    fn read(committer: Committer) -> Result<Self, StoreError> {
        let store = &committer.store;
        Committed::publish_newer(store, &committer.committed)?;
        let current = store.revisions()?.into_iter().next();
        let digest = match current {
            Some(revision) => revision.digest,
            None => digest(&proto::AgentConfig::default()),
        };
        let countdown = store.unconfirmed()?.map(|(revision, unconfirmed)| {
            let rollback = documents::by_revision(store, unconfirmed.rollback_to);
            let rollback_document = rollback.ok().map(Arc::new);
            let pending = Pending { revision, unconfirmed, rollback_document };
            let countdown = Countdown::new(pending, clock::unix(), clock::uptime());
            countdown.with_published(&committer.committed.borrow())
        });
        let answers = Answers::load(store)?;
        Ok(Self { committer, digest, answers, countdown })
    }

    async fn run(
        mut self,
        requests: &mut mpsc::Receiver<Commit>,
        token: CancellationToken,
        heartbeat: Heartbeat,
    ) {
        loop {
            heartbeat.beat();
            let due = self.countdown.as_ref().map(|countdown| countdown.due);
            let timeout = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            let commit = tokio::select! {
                commit = requests.recv() => commit,
                () = timeout => {
                    self.roll_back_overdue().await;
                    continue;
                }
                () = sleep(heartbeat.interval().min(REOPEN_INTERVAL)) => {
                    if let Err(error) = self.committer.with_store(ConfigStore::mend).await {
                        tracing::debug!(%error, "configuration database still failing");
                    }
                    continue;
                }
                () = token.cancelled() => return,
            };
            match commit {
                // The caller has given up.
                Some(Commit::Apply(.., reply)) if reply.is_closed() => {}
                Some(Commit::Apply(request, author, _admission, reply)) => {
                    let _ = reply.send(log_error(self.apply(*request, author).await));
                }
                Some(Commit::Rollback(request, author, reply)) => {
                    let _ = reply.send(log_error(self.roll_back(request, author).await));
                }
                Some(Commit::Confirm(revision, author, reply)) => {
                    let _ = reply.send(log_error(self.confirm(revision, &author).await));
                }
                None => return,
            }
        }
    }

    async fn apply(
        &mut self,
        mut request: ApplyConfigRequest,
        author: String,
    ) -> Result<ApplyConfigResponse, ApplyError> {
        if !request.validate_only {
            self.persist_rollback().await?;
        }
        if let Ok(id) = uuid::Uuid::try_parse(&request.request_id) {
            // The same UUID can be written in several ways.
            request.request_id = id.to_string();
        }
        let digest = request_digest(&request, &self.committer.digester);
        if !request.validate_only
            && let Some((known, answer)) = self.answers.get(&request.request_id)
        {
            return if *known == digest {
                Ok(answer.clone())
            } else {
                Err(ApplyError::RequestReused(request.request_id))
            };
        }
        let basis = self.basis().await?;
        let digester = &self.committer.digester;
        let current = || Ok(basis.document.clone());
        let proposal = Proposal::from_apply(request, author, digest, digester, &current)?;
        self.commit_proposal(proposal, basis).await
    }

    async fn roll_back(
        &mut self,
        mut request: RollbackConfigRequest,
        author: String,
    ) -> Result<ApplyConfigResponse, ApplyError> {
        self.persist_rollback().await?;
        let basis = self.basis().await?;
        let current = basis.revision;
        if request.revision == 0 {
            if current < 2 {
                return Err(ApplyError::NothingBefore(current));
            }
            request.revision = current - 1;
        }
        let target = request.revision;
        if target > current {
            return Err(ApplyError::NoRevision(target));
        }
        let stored = self.committer.with_store(move |store| store.revision(target)).await?;
        let document = stored.ok_or(ApplyError::NoRevision(target))?.config.unwrap_or_default();
        let proposal = Proposal::from_rollback(request, author, document)?;
        self.commit_proposal(proposal, basis).await
    }

    async fn roll_back_overdue(&mut self) {
        let Some(countdown) = &self.countdown else { return };
        let (revision, to) =
            (countdown.pending.revision, countdown.pending.unconfirmed.rollback_to);
        if let Err(error) = self.roll_back_pending().await {
            tracing::error!(revision, to, %error, "failed to persist rollback, retrying");
        }
    }

    /// Rolls back the pending revision. If the rollback cannot be persisted, it still takes effect
    /// in memory, because it may be the only way for an operator to reach the agent again. A restart
    /// of the agent has the same effect, because the expired deadline is in the store.
    async fn roll_back_pending(&mut self) -> Result<(), ApplyError> {
        let Some(countdown) = &mut self.countdown else { return Ok(()) };
        countdown.due = Instant::now() + ROLLBACK_RETRY;
        let Pending { revision, unconfirmed, rollback_document } = countdown.pending.clone();
        let to = unconfirmed.rollback_to;
        let document = match rollback_document {
            Some(document) => document.as_ref().clone(),
            None => documents::by_revision(&self.committer.store, to)?,
        };
        let proposal = Proposal::for_overdue(revision, to, document)?;
        let config = Arc::new(proposal.config.clone());
        let result = match self.basis().await {
            Ok(basis) => self.commit_proposal(proposal, basis).await,
            Err(error) => Err(error.into()),
        };
        if result.is_err()
            && let Some(countdown) = &mut self.countdown
            && !std::mem::replace(&mut countdown.is_rolled_back, true)
        {
            self.committer.committed.send_modify(|published| {
                (published.config, published.rolled_back_to) = (config, Some(to));
            });
        }
        result.map(drop)
    }

    /// Persists a rollback that has so far happened only in memory. Every change calls this first.
    async fn persist_rollback(&mut self) -> Result<(), ApplyError> {
        match self.countdown {
            Some(Countdown { is_rolled_back: true, .. }) => self.roll_back_pending().await,
            _ => Ok(()),
        }
    }

    /// Confirms the pending revision; `requested` is its number or 0. A repeated confirmation of the
    /// current revision succeeds, because the client may have missed the first answer.
    async fn confirm(&mut self, requested: u64, author: &str) -> Result<u64, ApplyError> {
        self.persist_rollback().await?;
        let pending = self.countdown.as_ref().map(|countdown| countdown.pending.revision);
        let Some(revision) = pending.filter(|pending| requested == 0 || requested == *pending)
        else {
            let current = self.committer.committed.borrow().revision;
            let is_confirmed = requested != 0 && requested == current && pending.is_none();
            return if is_confirmed {
                Ok(requested)
            } else {
                Err(ApplyError::NotPending { requested, pending })
            };
        };
        self.committer.with_store(move |store| store.confirm(revision)).await?;
        self.countdown = None;
        tracing::info!(revision, author, "revision confirmed");
        Ok(revision)
    }

    /// Reads the configuration with which the next proposal is compared.
    async fn basis(&self) -> Result<Basis, StoreError> {
        let Committed { revision, config: running, .. } = self.committer.committed.borrow().clone();
        let document = self.committer.with_store(documents::current).await?;
        let countdown = self.countdown.as_ref();
        let config = if countdown.is_some_and(|countdown| countdown.is_rolled_back) {
            documents::parse_current(revision, &document)
        } else {
            Some(running.clone())
        };
        Ok(Basis {
            revision,
            document,
            digest: self.digest.clone(),
            config,
            running,
            pending: countdown.map(|countdown| countdown.pending.clone()),
        })
    }

    /// Commits a proposal; with `validate_only`, only determines its effects.
    async fn commit_proposal(
        &mut self,
        proposal: Proposal,
        basis: Basis,
    ) -> Result<ApplyConfigResponse, ApplyError> {
        let plan = self.plan(check(proposal, &basis)?, &basis);
        let persisted = self.committer.with_store(move |store| persist(store, plan)).await?;
        Ok(self.publish(persisted))
    }

    fn plan(&self, checked: Checked, basis: &Basis) -> Plan {
        let Committer { clients, digester, .. } = &self.committer;
        let config = basis.config.as_ref().unwrap_or(&basis.running);
        let environment = Environment {
            digester,
            session_control: &|name| clients.session_control(name),
            sockets_available: self.committer.sockets_available(config),
            now: clock::unix(),
            uptime: clock::uptime(),
        };
        plan(checked, basis, &environment)
    }

    fn publish(&mut self, persisted: Persisted) -> ApplyConfigResponse {
        let Persisted { answer, request, publication } = persisted;
        let countdown = |pending| Countdown::new(pending, clock::unix(), clock::uptime());
        match publication {
            Publication::Nothing => {}
            Publication::Prolonged(pending) => self.countdown = Some(countdown(pending)),
            Publication::Revision(NewRevision { config, digest, pending, detail }) => {
                let revision = answer.revision;
                self.digest = digest;
                self.countdown = pending.map(countdown);
                let committed = Committed { revision, config, ..Committed::default() };
                self.committer.committed.send_replace(committed);
                let kind = EventType::ConfigurationCommitted;
                self.committer.results.agent_event(kind, revision, detail, clock::unix());
            }
        }
        if let Some((request_id, digest)) = request {
            self.answers.insert(request_id, digest, answer.clone());
        }
        answer
    }
}
