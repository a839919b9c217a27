//! Steps from a proposal to a published revision: [`check`] compares it with the host, [`plan`]
//! with the current configuration, [`persist`] writes the result. Each step takes the result of the
//! one before, so none can be left out.

use std::sync::Arc;

use super::{
    error::ApplyError,
    fields::name_fields,
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
    /// The document, checked; `None` where this version of the agent refuses it.
    pub(super) config: Option<Arc<AgentConfig>>,
    /// Configuration that runs: not that of `document` while a rollback waits to be persisted.
    pub(super) running: Arc<AgentConfig>,
    /// Revision that waits to be confirmed.
    pub(super) pending: Option<Pending>,
}

/// Facts about the host and the sessions that a plan depends on.
pub(super) struct Environment<'a> {
    pub(super) digester: &'a Digester,
    pub(super) session_control: &'a dyn Fn(&str) -> SessionControl,
    /// Sockets that measurements may use.
    pub(super) sockets_available: u64,
    pub(super) now: UnixTime,
    pub(super) uptime: Uptime,
}

/// Proposal for the current revision for which the host has the resources.
#[derive(Debug)]
pub(super) struct Checked(Proposal);

/// A proposal with its answer and its consequences. Nothing has happened yet.
#[derive(Debug)]
pub(super) struct Plan {
    answer: ApplyConfigResponse,
    /// `request_id` and digest of the request; `None` where the answer need not be kept.
    request: Option<(String, String)>,
    write: Write,
    publication: Publication,
}

/// A plan that is stored durably.
#[derive(Debug)]
pub(super) struct Persisted {
    pub(super) answer: ApplyConfigResponse,
    pub(super) request: Option<(String, String)>,
    pub(super) publication: Publication,
}

#[derive(Debug)]
enum Write {
    Nothing,
    /// The document is the current one; a pending revision may get a later deadline.
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

/// Refuses a proposal that was made for another revision, or that this host cannot run.
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
    let redacted = digester.redacted(proposal.document.clone());
    if let Some(config) = &basis.config {
        answer.changes = changes(config, &proposal.config, session_control);
        let before = || digester.redacted(basis.document.clone());
        name_fields(&mut answer.changes, &before, &redacted);
    }
    let digest = digest(&redacted);
    // An overdue rollback ends the pending revision also where both documents are equal.
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

/// A document that changes nothing does not confirm the pending revision: a controller that applies
/// the same document from time to time would take the rollback away unnoticed.
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
            "revision {revision} still waits to be confirmed, and goes back to {} otherwise",
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

/// Returns until when the proposal has to be confirmed, and the revision it is rolled back to: the
/// latest one that needs no confirmation.
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

/// Text of the event: effect, author and comment of a commit.
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
