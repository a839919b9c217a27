//! Commit actor: makes one change of the configuration at a time, durably, and rolls back a revision
//! that is not confirmed in time. [`plan`] has the steps of a change.

mod answers;
mod documents;
mod error;
mod fields;
mod merge;
mod overdue;
mod pending;
mod plan;
mod proposal;

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{admission::Admission, clients::Clients, committed::Committed, secrets::Digester};
use crate::{
    model::{AgentConfig, SessionControl, parse},
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

pub use error::ApplyError;

/// Pause before a rollback that could not be persisted is tried again.
const ROLLBACK_RETRY: Duration = Duration::from_secs(1);

/// Interval between attempts to reopen a configuration database that failed.
const REOPEN_INTERVAL: Duration = Duration::from_millis(500);

type Answer<T> = oneshot::Sender<Result<T, ApplyError>>;

/// Request to the actor: the change, its author, and the channel for the answer.
#[derive(Debug)]
pub(super) enum Commit {
    Apply(Box<ApplyConfigRequest>, String, Admission, Answer<ApplyConfigResponse>),
    RollBack(RollbackConfigRequest, String, Answer<ApplyConfigResponse>),
    Confirm(u64, String, Answer<u64>),
}

/// Sends a request to the actor and waits for its answer.
pub(super) async fn request<T>(
    commits: &mpsc::Sender<Commit>,
    request: impl FnOnce(Answer<T>) -> Commit,
) -> Result<T, ApplyError> {
    let (answer, answered) = oneshot::channel();
    commits.send(request(answer)).await.map_err(|_| ApplyError::Ending)?;
    answered.await.map_err(|_| ApplyError::Ending)?
}

/// Handles that the actor works with, kept when the actor restarts.
#[derive(Clone)]
pub(super) struct Committer {
    pub(super) store: Arc<ConfigStore>,
    pub(super) results: Arc<Results>,
    pub(super) clients: Arc<Clients>,
    pub(super) publish: watch::Sender<Committed>,
    pub(super) digester: Digester,
}

impl Committer {
    /// Serves requests until `token` is cancelled.
    pub(super) async fn run(
        self,
        requests: Arc<Mutex<mpsc::Receiver<Commit>>>,
        token: CancellationToken,
        heartbeat: Heartbeat,
    ) {
        match Actor::new(self) {
            Ok(actor) => actor.run(requests, token, heartbeat).await,
            Err(error) => tracing::error!(%error, "failed to read the configuration database"),
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

    /// Returns the sockets that measurements may use: all but those open for other purposes.
    fn sockets_available(&self, config: &AgentConfig) -> u64 {
        let is_running = |name: &str| match self.clients.session_control(name) {
            SessionControl::AllOrNothing | SessionControl::Individual => true,
            SessionControl::Down | SessionControl::Stopped | SessionControl::Completed => false,
        };
        let running = config.connections.values().filter(|c| is_running(&c.name));
        let others = open_files().saturating_sub(running.map(|c| c.sockets()).sum());
        files_for_measurements().saturating_sub(others)
    }
}

/// The actor. Its state is a copy of what the store has, so it can restart at any time.
struct Actor {
    committer: Committer,
    /// Digest of the current document without secrets.
    digest: String,
    answers: Answers,
    countdown: Option<Countdown>,
}

impl Actor {
    fn new(committer: Committer) -> Result<Self, StoreError> {
        let store = &committer.store;
        let current = store.revisions()?.into_iter().next();
        let digest = match current {
            Some(revision) => revision.digest,
            None => digest(&proto::AgentConfig::default()),
        };
        let countdown = store.unconfirmed()?.map(|(revision, unconfirmed)| {
            let rollback = documents::by_revision(store, unconfirmed.rollback_to);
            let rollback_document = rollback.ok().map(Arc::new);
            let pending = Pending { revision, unconfirmed, rollback_document };
            Countdown::new(pending, clock::unix(), clock::uptime())
        });
        let answers = Answers::load(store)?;
        // A revision that the actor persisted before it failed may not be published yet.
        let stored = Committed::read(store);
        committer.publish.send_if_modified(|published| match stored {
            Ok(stored) if stored.revision > published.revision => {
                *published = stored;
                true
            }
            _ => false,
        });
        Ok(Self { committer, digest, answers, countdown })
    }

    async fn run(
        mut self,
        requests: Arc<Mutex<mpsc::Receiver<Commit>>>,
        token: CancellationToken,
        heartbeat: Heartbeat,
    ) {
        let mut requests = requests.lock().await;
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
                Some(Commit::Apply(.., answer)) if answer.is_closed() => {}
                Some(Commit::Apply(request, author, _admission, answer)) => {
                    let _ = answer.send(logged(self.apply(*request, author).await));
                }
                Some(Commit::RollBack(request, author, answer)) => {
                    let _ = answer.send(logged(self.roll_back(request, author).await));
                }
                Some(Commit::Confirm(revision, author, answer)) => {
                    let _ = answer.send(logged(self.confirm(revision, &author).await));
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
            // One UUID has several spellings.
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
        self.make(proposal, basis).await
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
        let asked = request.revision;
        if asked == 0 || asked > current {
            return Err(ApplyError::NoRevision(asked));
        }
        let stored = self.committer.with_store(move |store| store.revision(asked)).await?;
        let document = stored.ok_or(ApplyError::NoRevision(asked))?.config.unwrap_or_default();
        self.make(Proposal::from_rollback(request, author, document)?, basis).await
    }

    async fn roll_back_overdue(&mut self) {
        let Some(countdown) = &self.countdown else { return };
        let (revision, to) =
            (countdown.pending.revision, countdown.pending.unconfirmed.rollback_to);
        if let Err(error) = self.roll_back_pending().await {
            tracing::error!(revision, to, %error, "failed to persist rollback, retrying");
        }
    }

    /// Rolls back the pending revision. Where that cannot be persisted, the configuration is rolled
    /// back in memory all the same: an operator who locked himself out waits for it, and a restart
    /// would have the same result.
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
        let made = match self.basis().await {
            Ok(basis) => self.make(proposal, basis).await,
            Err(error) => Err(error.into()),
        };
        if made.is_err()
            && let Some(countdown) = &mut self.countdown
            && !std::mem::replace(&mut countdown.is_rolled_back, true)
        {
            self.committer.publish.send_modify(|published| {
                (published.config, published.rolled_back_to) = (config, Some(to));
            });
        }
        made.map(drop)
    }

    /// Persists a rollback that only happened in memory so far: nothing may be committed before.
    async fn persist_rollback(&mut self) -> Result<(), ApplyError> {
        match self.countdown {
            Some(Countdown { is_rolled_back: true, .. }) => self.roll_back_pending().await,
            _ => Ok(()),
        }
    }

    async fn confirm(&mut self, asked: u64, author: &str) -> Result<u64, ApplyError> {
        self.persist_rollback().await?;
        let waiting = self.countdown.as_ref().map(|countdown| countdown.pending.revision);
        let Some(revision) = waiting.filter(|waiting| asked == 0 || asked == *waiting) else {
            let current = self.committer.publish.borrow().revision;
            let is_confirmed = asked != 0 && asked == current && waiting.is_none();
            return if is_confirmed {
                Ok(asked)
            } else {
                Err(ApplyError::NotWaiting { asked, waiting })
            };
        };
        self.committer.with_store(move |store| store.confirm(revision)).await?;
        self.countdown = None;
        tracing::info!(revision, author, "revision confirmed");
        Ok(revision)
    }

    /// Reads the configuration with which the next proposal is compared.
    async fn basis(&self) -> Result<Basis, StoreError> {
        let Committed { revision, config: running, .. } = self.committer.publish.borrow().clone();
        let document = self.committer.with_store(documents::current).await?;
        let countdown = self.countdown.as_ref();
        let config = match countdown.filter(|countdown| countdown.is_rolled_back) {
            Some(_) => parse(&document).map_or_else(|_| running.clone(), Arc::new),
            None => running.clone(),
        };
        Ok(Basis {
            revision,
            document,
            digest: self.digest.clone(),
            config: Some(config),
            running,
            pending: countdown.map(|countdown| countdown.pending.clone()),
        })
    }

    /// Commits a proposal, or only determines its changes with `validate_only`.
    async fn make(
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
                self.committer.publish.send_replace(committed);
                let kind = EventType::ConfigurationCommitted;
                self.committer.results.agent_event(kind, revision, detail, clock::unix());
            }
        }
        if let Some((request_id, digest)) = request {
            self.answers.keep(request_id, digest, answer.clone());
        }
        answer
    }
}

fn logged<T>(result: Result<T, ApplyError>) -> Result<T, ApplyError> {
    if let Err(error) = &result {
        tracing::info!(%error, "configuration change refused");
    }
    result
}
