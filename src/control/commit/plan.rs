//! Steps from a proposal to a published revision. [`check`] compares the proposal with the current
//! revision and with the resources of the host, [`plan`] determines the changes, and [`persist`]
//! writes the result. Each step takes the result of the step before, so none can be left out.

use std::sync::Arc;

use super::{
    error::ApplyError,
    fields::add_field_changes,
    pending::Pending,
    proposal::{Proposal, digest},
};
use crate::{
    control::secrets::Digester,
    model::{AgentConfig, SessionControl, changes, warnings},
    net::{check_resources, clock::Uptime},
    proto::{self, ApplyConfigResponse, Revision},
    store::{ConfigStore, StoreError, StoredAnswer, StoredRevision, Unconfirmed},
    time::UnixTime,
};

/// Configuration with which a proposal is compared.
#[derive(Debug, Default)]
pub(super) struct Basis {
    pub(super) revision: u64,
    /// Document of the revision, with its secrets.
    pub(super) document: proto::AgentConfig,
    /// Digest of the document without secrets.
    pub(super) digest: String,
    /// Configuration of `document`; `None` if it is not valid for this version of the agent.
    pub(super) config: Option<Arc<AgentConfig>>,
    /// Running configuration. It differs from `config` while a rollback could not be persisted.
    pub(super) running: Arc<AgentConfig>,
    /// Revision that waits to be confirmed.
    pub(super) pending: Option<Pending>,
}

/// Facts about the host and the sessions that a plan depends on.
pub(super) struct Environment<'a> {
    pub(super) digester: &'a Digester,
    pub(super) session_control: &'a dyn Fn(&str) -> SessionControl,
    /// Number of sockets available to measurements.
    pub(super) sockets_available: u64,
    pub(super) now: UnixTime,
    pub(super) uptime: Uptime,
}

/// Proposal that is based on the current revision and for which the host has the resources.
#[derive(Debug)]
pub(super) struct Checked(Proposal);

/// Answer to a proposal and the steps that carry it out. Nothing has changed yet.
#[derive(Debug)]
pub(super) struct Plan {
    answer: ApplyConfigResponse,
    /// `request_id` and digest of the request; `None` if the answer need not be kept.
    request: Option<(String, String)>,
    write: Write,
    publication: Publication,
}

/// A plan after its write is durable.
#[derive(Debug)]
pub(super) struct Persisted {
    pub(super) answer: ApplyConfigResponse,
    pub(super) request: Option<(String, String)>,
    pub(super) publication: Publication,
}

#[derive(Debug)]
enum Write {
    Nothing,
    /// The document equals the current one; the pending revision may get a later deadline.
    Unchanged(Option<(u64, Unconfirmed)>),
    Revision(Box<StoredRevision>),
}

/// Changes outside the store, made once the plan is persisted.
#[derive(Debug)]
pub(super) enum Publication {
    Nothing,
    /// The pending revision has a later deadline.
    Prolonged(Pending),
    Revision(NewRevision),
}

/// A revision that is ready to be published.
#[derive(Debug)]
pub(super) struct NewRevision {
    pub(super) config: Arc<AgentConfig>,
    pub(super) digest: String,
    pub(super) pending: Option<Pending>,
    /// Text of the event.
    pub(super) detail: String,
}

/// Refuses a proposal that is based on an earlier revision, or for which the host lacks resources.
pub(super) fn check(proposal: Proposal, basis: &Basis) -> Result<Checked, ApplyError> {
    let current = basis.revision;
    if let Some(expected) = proposal.expected_revision.filter(|expected| *expected != current) {
        return Err(ApplyError::Stale { expected, current });
    }
    if !proposal.unconditional {
        let refusals = check_resources(&basis.running, &proposal.config);
        if !refusals.is_empty() {
            return Err(ApplyError::Refused(refusals));
        }
    }
    Ok(Checked(proposal))
}

/// Compares a checked proposal with the current configuration.
pub(super) fn plan(
    Checked(proposal): Checked,
    basis: &Basis,
    environment: &Environment<'_>,
) -> Plan {
    let Environment { digester, session_control, sockets_available, .. } = *environment;
    let mut answer = ApplyConfigResponse {
        revision: basis.revision,
        warnings: warnings(&proposal.document, &proposal.config, sockets_available),
        ..ApplyConfigResponse::default()
    };
    let redacted = digester.redact(proposal.document.clone());
    if let Some(config) = &basis.config {
        answer.changes = changes(config, &proposal.config, session_control);
        let before = || digester.redact(basis.document.clone());
        add_field_changes(&mut answer.changes, &before, &redacted);
    }
    let digest = digest(&redacted);
    // An overdue rollback makes a revision even if both documents are equal, because it has to end
    // the pending revision.
    let is_changed = basis.revision == 0 || digest != basis.digest || proposal.unconditional;
    if proposal.validate_only {
        Plan { answer, request: None, write: Write::Nothing, publication: Publication::Nothing }
    } else if is_changed {
        plan_revision(proposal, answer, digest, basis, environment)
    } else {
        plan_unchanged(proposal, answer, basis, environment)
    }
}

fn plan_revision(
    proposal: Proposal,
    mut answer: ApplyConfigResponse,
    digest: String,
    basis: &Basis,
    environment: &Environment<'_>,
) -> Plan {
    let revision = basis.revision + 1;
    let unconfirmed = unconfirmed(&proposal, basis, environment);
    answer.revision = revision;
    answer.confirm_deadline = unconfirmed.map(deadline);
    let pending = unconfirmed.map(|unconfirmed| Pending {
        revision,
        unconfirmed,
        rollback_document: match &basis.pending {
            Some(pending) => pending.rollback_document.clone(),
            None => Some(Arc::new(basis.document.clone())),
        },
    });
    let request = request(&proposal);
    let detail = detail(&proposal, &answer);
    let stored = StoredRevision {
        revision: Some(Revision {
            revision,
            commit_time: Some(environment.now.to_proto()),
            author: proposal.author,
            comment: proposal.comment,
            digest: digest.clone(),
            request_id: proposal.request_id,
            rollback_to: proposal.rollback_to,
        }),
        config: Some(proposal.document),
        answer: Some(answer.clone()),
        request_digest: proposal.request_digest,
        unconfirmed,
    };
    let config = Arc::new(proposal.config);
    let new = NewRevision { config, digest, pending, detail };
    let write = Write::Revision(Box::new(stored));
    Plan { answer, request, write, publication: Publication::Revision(new) }
}

/// Plans the answer to a document that changes nothing. It does not confirm the pending revision,
/// because a controller that applies the same document at intervals would prevent the rollback
/// without noticing.
fn plan_unchanged(
    proposal: Proposal,
    mut answer: ApplyConfigResponse,
    basis: &Basis,
    environment: &Environment<'_>,
) -> Plan {
    let mut prolonged = None;
    if let Some(pending) = &basis.pending {
        prolonged = unconfirmed(&proposal, basis, environment)
            .map(|unconfirmed| Pending { unconfirmed, ..pending.clone() });
        let Pending { revision, unconfirmed, .. } = prolonged.as_ref().unwrap_or(pending);
        answer.confirm_deadline = Some(deadline(*unconfirmed));
        answer.warnings.push(format!(
            "revision {revision} is still pending: it is rolled back to {} unless confirmed",
            unconfirmed.rollback_to
        ));
    }
    Plan {
        answer,
        request: request(&proposal),
        write: Write::Unchanged(prolonged.as_ref().map(|p| (p.revision, p.unconfirmed))),
        publication: prolonged.map_or(Publication::Nothing, Publication::Prolonged),
    }
}

/// Writes a plan. Waits for the disk.
pub(super) fn persist(store: &ConfigStore, plan: Plan) -> Result<Persisted, StoreError> {
    let Plan { answer, request, write, publication } = plan;
    match write {
        Write::Nothing => {}
        Write::Unchanged(prolonged) => {
            store.check_presence()?;
            store.settle();
            if let Some((revision, unconfirmed)) = prolonged {
                store.prolong(revision, unconfirmed)?;
            }
            // A revision carries its answer; an answer without one is stored alone.
            if let Some((request_id, digest)) = &request {
                let (digest, answer) = (digest.clone(), Some(answer.clone()));
                let stored = StoredAnswer { digest, answer, ..StoredAnswer::default() };
                store.remember(request_id, &stored)?;
            }
        }
        Write::Revision(stored) => store.commit(answer.revision, &stored)?,
    }
    Ok(Persisted { answer, request, publication })
}

/// Returns the deadline for confirming the proposal and the revision to roll back to, which is the
/// latest one that is not pending. Returns `None` if the proposal needs no confirmation.
fn unconfirmed(
    proposal: &Proposal,
    basis: &Basis,
    environment: &Environment<'_>,
) -> Option<Unconfirmed> {
    let timeout_ns = proposal.confirm_timeout_ns?;
    let pending = basis.pending.as_ref();
    let Uptime { boot, ns } = environment.uptime;
    Some(Unconfirmed {
        until_unix_ns: environment.now.plus_ns(timeout_ns as i64).0,
        rollback_to: pending.map_or(basis.revision, |pending| pending.unconfirmed.rollback_to),
        timeout_ns,
        until_uptime_ns: ns.saturating_add(timeout_ns),
        boot,
    })
}

fn request(proposal: &Proposal) -> Option<(String, String)> {
    let Proposal { request_id, request_digest, .. } = proposal;
    (!request_id.is_empty()).then(|| (request_id.clone(), request_digest.clone()))
}

/// Returns the text of the event: number of changes, author and comment of a commit.
fn detail(proposal: &Proposal, answer: &ApplyConfigResponse) -> String {
    let count = answer.changes.len();
    let plural = if count == 1 { "" } else { "s" };
    let mut text = match proposal.rollback_to {
        0 => format!("{count} change{plural}"),
        to => format!("back to revision {to}"),
    };
    if !proposal.author.is_empty() {
        text += &format!(" by {}", proposal.author);
    }
    if proposal.confirm_timeout_ns.is_some() {
        text += ", to be confirmed";
    }
    if !proposal.comment.is_empty() {
        text += &format!(": {}", proposal.comment);
    }
    text
}

fn deadline(unconfirmed: Unconfirmed) -> prost_types::Timestamp {
    UnixTime(unconfirmed.until_unix_ns).to_proto()
}
