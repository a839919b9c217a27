//! Makes one change of the configuration at a time: checked, stored durably, published, answered,
//! in this order. What waits to be confirmed is rolled back here when its time is over.

mod answered;
mod error;
mod merge;
mod parts;
mod proposal;
mod waiting;

use std::{future::pending, ops::Deref, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Clients, Committed, secrets::Digester};
use crate::{
    model::{SessionControl, changes, parse, warnings},
    net::{
        check_resources,
        clock::{self, Uptime},
        files_for_measurements, open_files,
    },
    proto::{
        self, ApplyConfigRequest, ApplyConfigResponse, EventType, Revision, RollbackConfigRequest,
    },
    results::Results,
    store::{ConfigStore, StoreError, StoredAnswer, StoredRevision, Unconfirmed},
    supervise::Heartbeat,
    time::{Now, UnixTime},
};
use answered::Answered;
use parts::name_fields;
use proposal::{Proposal, digest, request_digest};
use waiting::{Waiting, document};

pub use error::ApplyError;
pub(super) use waiting::roll_back_overdue;

/// When a rollback that could not be stored is tried again.
const ROLLBACK_AGAIN: Duration = Duration::from_secs(1);

/// How often a configuration database that failed is tried.
const MEND_EVERY: Duration = Duration::from_millis(500);

type Answer<T> = oneshot::Sender<Result<T, ApplyError>>;

/// A request with where its answer goes.
#[derive(Debug)]
pub(super) enum Commit {
    Apply(Box<ApplyConfigRequest>, String, Answer<ApplyConfigResponse>),
    RollBack(RollbackConfigRequest, String, Answer<ApplyConfigResponse>),
    Confirm(u64, String, Answer<u64>),
}

/// Asks the actor.
pub(super) async fn ask<T>(
    commits: &mpsc::Sender<Commit>,
    request: impl FnOnce(Answer<T>) -> Commit,
) -> Result<T, ApplyError> {
    let (answer, answered) = oneshot::channel();
    commits.send(request(answer)).await.map_err(|_| ApplyError::Ending)?;
    answered.await.map_err(|_| ApplyError::Ending)?
}

/// What the actor works with.
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
            Err(error) => tracing::error!(%error, "no configuration can be committed"),
        }
    }
}

/// The actor. Whatever it knows it finds in the store again.
struct Actor {
    tools: Committer,
    /// Of the current document.
    digest: String,
    answered: Answered,
    waiting: Option<Waiting>,
}

impl Deref for Actor {
    type Target = Committer;

    fn deref(&self) -> &Committer {
        &self.tools
    }
}

impl Actor {
    fn new(tools: Committer) -> Result<Self, StoreError> {
        let store = &tools.store;
        let current = store.revisions()?.into_iter().next();
        let digest = match current {
            Some(revision) => revision.digest,
            None => digest(&proto::AgentConfig::default()),
        };
        let waiting = store.unconfirmed()?.map(|(revision, unconfirmed)| {
            let before = document(store, unconfirmed.rollback_to).ok().map(Arc::new);
            Waiting::new(revision, unconfirmed, before, clock::unix(), clock::uptime())
        });
        let answered = Answered::load(store)?;
        // What a task that failed had stored and not yet published.
        let stored = Committed::stored(store);
        tools.publish.send_if_modified(|published| match stored {
            Ok(stored) if stored.revision > published.revision => {
                *published = stored;
                true
            }
            _ => false,
        });
        Ok(Self { tools, digest, answered, waiting })
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
            let due = self.waiting.as_ref().map(|waiting| waiting.due);
            let over = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            let commit = tokio::select! {
                commit = requests.recv() => commit,
                () = over => {
                    self.roll_back_by_time().await;
                    continue;
                }
                () = sleep(heartbeat.interval().min(MEND_EVERY)) => {
                    let store = self.store.clone();
                    if let Err(error) = blocking(move || store.mend()).await {
                        tracing::debug!(%error, "the configuration database still fails");
                    }
                    continue;
                }
                () = token.cancelled() => return,
            };
            match commit {
                Some(Commit::Apply(request, author, answer)) => {
                    let _ = answer.send(told(self.apply(*request, author).await));
                }
                Some(Commit::RollBack(request, author, answer)) => {
                    let _ = answer.send(told(self.roll_back(request, author).await));
                }
                Some(Commit::Confirm(revision, author, answer)) => {
                    let _ = answer.send(told(self.confirm(revision, &author).await));
                }
                None => return,
            }
        }
    }

    async fn apply(
        &mut self,
        request: ApplyConfigRequest,
        author: String,
    ) -> Result<ApplyConfigResponse, ApplyError> {
        if !request.validate_only {
            self.finish_going_back().await?;
        }
        let mut request = request;
        if let Ok(id) = uuid::Uuid::try_parse(&request.request_id) {
            // However it is written.
            request.request_id = id.to_string();
        }
        let said = request_digest(&request, &self.digester);
        if !request.validate_only
            && let Some((known, answer)) = self.answered.get(&request.request_id)
        {
            return if *known == said {
                Ok(answer.clone())
            } else {
                Err(ApplyError::RequestReused(request.request_id))
            };
        }
        let store = self.store.clone();
        let current = || current_document(&store);
        let proposal = Proposal::of_request(request, author, said, &self.digester, &current)?;
        self.make(proposal).await
    }

    async fn roll_back(
        &mut self,
        mut request: RollbackConfigRequest,
        author: String,
    ) -> Result<ApplyConfigResponse, ApplyError> {
        self.finish_going_back().await?;
        let current = self.publish.borrow().revision;
        if request.revision == 0 {
            if current < 2 {
                return Err(ApplyError::NothingBefore(current));
            }
            request.revision = current - 1;
        }
        let wanted = request.revision;
        if wanted == 0 || wanted > current {
            return Err(ApplyError::NoRevision(wanted));
        }
        let stored = self.store.revision(wanted)?.ok_or(ApplyError::NoRevision(wanted))?;
        let document = stored.config.unwrap_or_default();
        self.make(Proposal::of_rollback(request, author, document)?).await
    }

    async fn roll_back_by_time(&mut self) {
        let Some(Waiting { revision, unconfirmed, .. }) = self.waiting.clone() else { return };
        if let Err(error) = self.go_back().await {
            let to = unconfirmed.rollback_to;
            tracing::error!(revision, to, %error, "the way back cannot be stored; trying again");
        }
    }

    /// Goes back from what was not confirmed. Where that cannot be stored, what runs goes back all the
    /// same: whoever is locked out waits for it, and a restart would come to the same.
    async fn go_back(&mut self) -> Result<(), ApplyError> {
        let Some(waiting) = &mut self.waiting else { return Ok(()) };
        // Where it fails: not for ever at once.
        waiting.due = Instant::now() + ROLLBACK_AGAIN;
        let to = waiting.unconfirmed.rollback_to;
        let before = match &waiting.before {
            Some(before) => before.as_ref().clone(),
            None => document(&self.tools.store, to)?,
        };
        let proposal = Proposal::of_time(waiting.revision, to, before)?;
        let config = Arc::new(proposal.config.clone());
        let made = self.make(proposal).await;
        if made.is_err()
            && let Some(waiting) = &mut self.waiting
            && !std::mem::replace(&mut waiting.gone_back, true)
        {
            self.tools.publish.send_modify(|published| {
                (published.config, published.gone_back_to) = (config, Some(to));
            });
        }
        made.map(drop)
    }

    /// Where what runs has gone back and the store does not know, that comes before anything else.
    async fn finish_going_back(&mut self) -> Result<(), ApplyError> {
        match self.waiting {
            Some(Waiting { gone_back: true, .. }) => self.go_back().await,
            _ => Ok(()),
        }
    }

    async fn confirm(&mut self, asked: u64, author: &str) -> Result<u64, ApplyError> {
        self.finish_going_back().await?;
        let waiting = self.waiting.as_ref().map(|waiting| waiting.revision);
        let Some(revision) = waiting.filter(|waiting| asked == 0 || asked == *waiting) else {
            let current = self.publish.borrow().revision;
            let confirmed = asked != 0 && asked == current && waiting.is_none();
            return if confirmed {
                Ok(asked)
            } else {
                Err(ApplyError::NotWaiting { asked, waiting })
            };
        };
        let store = self.store.clone();
        blocking(move || store.confirm(revision)).await?;
        self.waiting = None;
        tracing::info!(revision, author, "confirmed");
        Ok(revision)
    }

    /// Makes a proposal the configuration, unless something speaks against it.
    async fn make(&mut self, proposal: Proposal) -> Result<ApplyConfigResponse, ApplyError> {
        let before = self.publish.borrow().clone();
        let current = before.revision;
        let expected = proposal.expected_revision;
        if let Some(expected) = expected.filter(|expected| *expected != current) {
            return Err(ApplyError::Stale { expected, current });
        }
        if !proposal.unconditional {
            let refusals = check_resources(&before.config, &proposal.config);
            if !refusals.is_empty() {
                return Err(ApplyError::Refused(refusals));
            }
        }
        let session_control = |name: &str| self.clients.session_control(name);
        // What is stored, where what runs has gone back already.
        let from = match &self.waiting {
            Some(Waiting { gone_back: true, .. }) => {
                parse(&current_document(&self.store)?).map_or(before.config, Arc::new)
            }
            _ => before.config,
        };
        // What is open beside the sockets that run already.
        let runs = |name: &str| {
            matches!(
                session_control(name),
                SessionControl::AllOrNothing | SessionControl::Individual
            )
        };
        let running = from.connections.values().filter(|connection| runs(&connection.name));
        let others = open_files().saturating_sub(running.map(|c| c.sockets()).sum());
        let most_sockets = files_for_measurements().saturating_sub(others);
        let mut answer = ApplyConfigResponse {
            revision: current,
            changes: changes(&from, &proposal.config, &session_control),
            warnings: warnings(&proposal.config, most_sockets),
            confirm_deadline: None,
        };
        let redacted = self.digester.redacted(proposal.document.clone());
        let store = self.store.clone();
        let shown = || Ok(self.digester.redacted(current_document(&store)?));
        name_fields(&mut answer.changes, &shown, &redacted)?;
        if proposal.validate_only {
            return Ok(answer);
        }
        let now = clock::now();
        let digest = digest(&redacted);
        let unconfirmed = self.unconfirmed(&proposal, current, now);
        // What goes back over time does so also from a document that is the one before again.
        let changes = current == 0 || digest != self.digest || proposal.unconditional;
        if changes {
            answer.revision = current + 1;
            answer.confirm_deadline = unconfirmed.map(until);
            let document_before = match (unconfirmed, &self.waiting) {
                (None, _) => None,
                (Some(_), Some(waiting)) => waiting.before.clone(),
                (Some(_), None) => Some(Arc::new(current_document(&store)?)),
            };
            self.commit(proposal, unconfirmed, &digest, &answer, now).await?;
            self.digest = digest;
            self.waiting = unconfirmed.map(|waits| {
                Waiting::new(answer.revision, waits, document_before, now.unix, clock::uptime())
            });
        } else {
            self.store.settle();
            // A change that is none does not confirm: one that is pushed from time to time would
            // take the way back away without a word.
            if let Some(waiting) = self.waiting.clone() {
                let (revision, mut waits) = (waiting.revision, waiting.unconfirmed);
                if let Some(prolonged) = unconfirmed {
                    waits = prolonged;
                    let store = self.store.clone();
                    blocking(move || store.prolong(revision, waits)).await?;
                    self.waiting = Some(Waiting::new(
                        revision,
                        waits,
                        waiting.before,
                        now.unix,
                        clock::uptime(),
                    ));
                }
                answer.confirm_deadline = Some(until(waits));
                answer.warnings.push(format!(
                    "revision {revision} still waits to be confirmed, and goes back to {} otherwise",
                    waits.rollback_to
                ));
            }
            if !proposal.request_id.is_empty() {
                self.remember(&proposal, &answer).await?;
                self.answered.keep(proposal.request_id, proposal.request_digest, answer.clone());
            }
        }
        Ok(answer)
    }

    /// What becomes of the revision after this one: what stays is what nobody has to confirm.
    fn unconfirmed(&self, proposal: &Proposal, current: u64, now: Now) -> Option<Unconfirmed> {
        let timeout_ns = proposal.confirm_timeout_ns?;
        let waiting = self.waiting.as_ref();
        let rollback_to = waiting.map_or(current, |waiting| waiting.unconfirmed.rollback_to);
        let until_unix_ns = now.unix.plus_ns(timeout_ns as i64).0;
        let Uptime { boot, ns } = clock::uptime();
        let until_uptime_ns = ns.saturating_add(timeout_ns);
        Some(Unconfirmed { until_unix_ns, rollback_to, timeout_ns, until_uptime_ns, boot })
    }

    /// A revision carries its answer; what made none is remembered by itself.
    async fn remember(
        &self,
        proposal: &Proposal,
        answer: &ApplyConfigResponse,
    ) -> Result<(), StoreError> {
        let (store, request_id) = (self.store.clone(), proposal.request_id.clone());
        let answered = StoredAnswer {
            digest: proposal.request_digest.clone(),
            answer: Some(answer.clone()),
            ..StoredAnswer::default()
        };
        blocking(move || store.remember(&request_id, &answered)).await
    }

    async fn commit(
        &mut self,
        proposal: Proposal,
        unconfirmed: Option<Unconfirmed>,
        digest: &str,
        answer: &ApplyConfigResponse,
        now: Now,
    ) -> Result<(), StoreError> {
        let revision = answer.revision;
        let detail = match (proposal.rollback_to, unconfirmed) {
            (0, None) => format!("{} changes", answer.changes.len()),
            (0, Some(_)) => format!("{} changes, to be confirmed", answer.changes.len()),
            (to, _) if proposal.comment.is_empty() => format!("back to revision {to}"),
            (to, _) => format!("back to revision {to}: {}", proposal.comment),
        };
        let request_digest = proposal.request_digest.clone();
        let request_id = proposal.request_id.clone();
        let config = Arc::new(proposal.config);
        let stored = StoredRevision {
            revision: Some(Revision {
                revision,
                commit_time: Some(now.unix.to_proto()),
                author: proposal.author,
                comment: proposal.comment,
                digest: digest.to_owned(),
                request_id: proposal.request_id,
                rollback_to: proposal.rollback_to,
            }),
            config: Some(proposal.document),
            answer: Some(answer.clone()),
            request_digest: proposal.request_digest,
            unconfirmed,
        };
        let store = self.store.clone();
        blocking(move || store.commit(revision, &stored)).await?;
        self.publish.send_replace(Committed { revision, config, ..Committed::default() });
        self.results.agent_event(
            EventType::ConfigurationCommitted,
            revision,
            detail,
            clock::unix(),
        );
        if !request_id.is_empty() {
            self.answered.keep(request_id, request_digest, answer.clone());
        }
        Ok(())
    }
}

/// Returns the document of the current revision; an empty one only where nothing was ever committed.
fn current_document(store: &ConfigStore) -> Result<proto::AgentConfig, StoreError> {
    Ok(store.current()?.and_then(|stored| stored.config).unwrap_or_default())
}

fn until(unconfirmed: Unconfirmed) -> prost_types::Timestamp {
    UnixTime(unconfirmed.until_unix_ns).to_proto()
}

fn told<T>(result: Result<T, ApplyError>) -> Result<T, ApplyError> {
    if let Err(error) = &result {
        tracing::info!(%error, "configuration refused");
    }
    result
}

/// The store waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Unavailable)?
}
