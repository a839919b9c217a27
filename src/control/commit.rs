//! Makes one change of the configuration at a time: checked, stored durably, published, answered,
//! in this order.

use std::{collections::HashMap, sync::Arc};

use prost::Message;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Committed, secrets::Digester};
use crate::{
    document::hexadecimal,
    model::{AgentConfig, Violation, changes, limits::MAXIMUM_TEXT_OCTETS, parse, warnings},
    net::{ResourceRefusal, check_resources, clock},
    proto::{self, ApplyConfigRequest, ApplyConfigResponse, ApplyMode, EventType, Revision},
    results::Results,
    store::{ConfigStore, StoreError, StoredAnswer, StoredRevision},
};

/// Requests that are remembered; as many as there may be kept revisions, and some without one.
const REMEMBERED: usize = 256;

/// Why a change was not made. Nothing has changed then.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The request is not valid.
    #[error("the configuration has {} violations", .0.len())]
    Invalid(Vec<Violation>),
    /// Someone else changed the configuration.
    #[error(
        "expected_revision is {expected}, but the current revision is {current}: \
         read it, and apply the change to it"
    )]
    Stale {
        /// In the request.
        expected: u64,
        /// What is.
        current: u64,
    },
    /// The identifier stands for another document.
    #[error("request_id {0} was used for another document")]
    RequestReused(String),
    /// This host does not give what the document names.
    #[error("this host refuses {} resources that the configuration names", .0.len())]
    Refused(Vec<ResourceRefusal>),
    /// It cannot be stored.
    #[error("the configuration was not stored: {0}")]
    Store(#[from] StoreError),
    /// The agent ends.
    #[error("the agent is ending")]
    Ending,
}

/// A request with where its answer goes.
#[derive(Debug)]
pub(super) struct Commit {
    request: ApplyConfigRequest,
    author: String,
    answer: oneshot::Sender<Result<ApplyConfigResponse, ApplyError>>,
}

/// Asks the actor.
pub(super) async fn ask(
    commits: &mpsc::Sender<Commit>,
    request: ApplyConfigRequest,
    author: String,
) -> Result<ApplyConfigResponse, ApplyError> {
    let (answer, answered) = oneshot::channel();
    commits.send(Commit { request, author, answer }).await.map_err(|_| ApplyError::Ending)?;
    answered.await.map_err(|_| ApplyError::Ending)?
}

/// A request that was answered.
#[derive(Clone, Debug)]
struct Answered {
    digest: String,
    answer: ApplyConfigResponse,
}

/// The actor.
pub(super) struct Committer {
    store: Arc<ConfigStore>,
    results: Arc<Results>,
    publish: watch::Sender<Committed>,
    digester: Digester,
    digest: String,
    /// By request_id; with the order in which they came, to forget the oldest.
    answered: HashMap<String, Answered>,
    order: std::collections::VecDeque<String>,
}

impl Committer {
    pub(super) fn new(
        store: Arc<ConfigStore>,
        results: Arc<Results>,
        publish: watch::Sender<Committed>,
        digester: Digester,
    ) -> Result<Self, StoreError> {
        let mut committer = Self {
            store: store.clone(),
            results,
            publish,
            digester,
            digest: digest(&proto::AgentConfig::default()),
            answered: HashMap::new(),
            order: std::collections::VecDeque::new(),
        };
        for answered in store.answers()? {
            if let Some(answer) = answered.answer {
                committer.keep(answered.request_id, answered.digest, answer);
            }
        }
        for revision in store.revisions()?.into_iter().rev() {
            committer.digest.clone_from(&revision.digest);
            if revision.request_id.is_empty() {
                continue;
            }
            let stored = store.revision(revision.revision)?;
            if let Some(answer) = stored.and_then(|stored| stored.answer) {
                committer.keep(revision.request_id, revision.digest, answer);
            }
        }
        Ok(committer)
    }

    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Commit>,
        token: CancellationToken,
    ) {
        loop {
            let commit = tokio::select! {
                commit = requests.recv() => commit,
                () = token.cancelled() => return,
            };
            let Some(Commit { request, author, answer }) = commit else { return };
            let result = self.apply(request, author).await;
            if let Err(error) = &result {
                tracing::info!(%error, "configuration refused");
            }
            let _ = answer.send(result);
        }
    }

    async fn apply(
        &mut self,
        request: ApplyConfigRequest,
        author: String,
    ) -> Result<ApplyConfigResponse, ApplyError> {
        let stored = || {
            let current = self.store.current().ok().flatten();
            current.and_then(|stored| stored.config).unwrap_or_default()
        };
        let document = request.config.clone().unwrap_or_default();
        let document = self.digester.completed(document, stored);
        let digest = digest(&self.digester.redacted(document.clone()));
        if let Some(known) = self.answered.get(&request.request_id) {
            return if known.digest == digest {
                Ok(known.answer.clone())
            } else {
                Err(ApplyError::RequestReused(request.request_id))
            };
        }
        let before = self.publish.borrow().clone();
        let current = before.revision;
        if let Some(expected) = request.expected_revision.filter(|expected| *expected != current) {
            return Err(ApplyError::Stale { expected, current });
        }
        let config = check(&request, &document).map_err(ApplyError::Invalid)?;
        let refusals = check_resources(&before.config, &config);
        if !refusals.is_empty() {
            return Err(ApplyError::Refused(refusals));
        }
        let mut answer = ApplyConfigResponse {
            revision: current,
            changes: changes(&before.config, &config),
            warnings: warnings(&config),
        };
        if request.validate_only {
            return Ok(answer);
        }
        let changes = current == 0 || digest != self.digest;
        if changes {
            answer.revision = current + 1;
            self.commit(&request, document, author, &digest, &answer).await?;
            let revision = answer.revision;
            self.publish.send_replace(Committed { revision, config: Arc::new(config) });
            let detail = format!("{} changes", answer.changes.len());
            let now = clock::unix();
            self.results.agent_event(EventType::ConfigurationCommitted, revision, detail, now);
            self.digest.clone_from(&digest);
        }
        if !request.request_id.is_empty() {
            if !changes {
                self.remember(&request.request_id, &digest, &answer).await?;
            }
            self.keep(request.request_id, digest, answer.clone());
        }
        Ok(answer)
    }

    /// A revision carries its answer; what made none is remembered by itself.
    async fn remember(
        &self,
        request_id: &str,
        digest: &str,
        answer: &ApplyConfigResponse,
    ) -> Result<(), StoreError> {
        let (store, request_id) = (self.store.clone(), request_id.to_owned());
        let answered = StoredAnswer {
            digest: digest.to_owned(),
            answer: Some(answer.clone()),
            ..StoredAnswer::default()
        };
        tokio::task::spawn_blocking(move || store.remember(&request_id, &answered))
            .await
            .map_err(|_| StoreError::Unavailable)?
    }

    async fn commit(
        &self,
        request: &ApplyConfigRequest,
        document: proto::AgentConfig,
        author: String,
        digest: &str,
        answer: &ApplyConfigResponse,
    ) -> Result<(), StoreError> {
        let revision = Revision {
            revision: answer.revision,
            time: Some(clock::unix().to_proto()),
            author,
            comment: request.comment.clone(),
            digest: digest.to_owned(),
            request_id: request.request_id.clone(),
        };
        let stored = StoredRevision {
            revision: Some(revision),
            config: Some(document),
            answer: Some(answer.clone()),
        };
        let (store, revision) = (self.store.clone(), answer.revision);
        tokio::task::spawn_blocking(move || store.commit(revision, &stored))
            .await
            .map_err(|_| StoreError::Unavailable)?
    }

    fn keep(&mut self, request_id: String, digest: String, answer: ApplyConfigResponse) {
        self.order.push_back(request_id.clone());
        self.answered.insert(request_id, Answered { digest, answer });
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.answered.remove(&oldest);
        }
    }
}

/// Checks the whole request; all violations at once.
fn check(
    request: &ApplyConfigRequest,
    document: &proto::AgentConfig,
) -> Result<AgentConfig, Vec<Violation>> {
    let mut violations = Vec::new();
    let mut report = |field: &str, description: String| {
        violations.push(Violation { field: field.into(), description });
    };
    if ApplyMode::try_from(request.mode).is_err() {
        let mode = request.mode;
        report("mode", format!("{mode} is no mode: 0 or 1 (APPLY_MODE_REPLACE)"));
    }
    if request.comment.len() > MAXIMUM_TEXT_OCTETS {
        let octets = request.comment.len();
        report("comment", format!("{octets} octets; at most {MAXIMUM_TEXT_OCTETS}"));
    }
    let id = &request.request_id;
    if !id.is_empty() && uuid::Uuid::try_parse(id).is_err() {
        let shown: String = id.chars().take(80).collect();
        report("request_id", format!("{shown:?} is no UUID"));
    }
    match parse(document) {
        Ok(config) if violations.is_empty() => Ok(config),
        Ok(_) => Err(violations),
        Err(mut of_document) => {
            violations.append(&mut of_document);
            Err(violations)
        }
    }
}

/// Of the document as it may be shown: a digest must not help to guess a secret.
fn digest(document: &proto::AgentConfig) -> String {
    hexadecimal(&Sha256::digest(document.encode_to_vec()))
}
