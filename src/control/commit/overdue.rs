//! Rollback at the start of the agent, if a revision was not confirmed in time.

use std::sync::Arc;

use super::{
    documents,
    error::ApplyError,
    pending::left_ns,
    plan::{Basis, Environment, Publication, check, persist, plan},
    proposal::{Proposal, digest},
};
use crate::{
    control::{
        committed::{Committed, LoadError},
        secrets::Digester,
    },
    model::{SessionControl, parse},
    net::{
        clock::{self, Uptime},
        files_for_measurements, random,
    },
    store::ConfigStore,
    time::UnixTime,
};

impl Committed {
    /// Loads the current revision. If it was not confirmed in time, it is rolled back first.
    pub fn load(store: &ConfigStore) -> Result<Self, LoadError> {
        let digester = Digester::new(store.digest_key(random::bytes()?)?);
        let overdue_rollback = roll_back_overdue(store, &digester, clock::unix(), clock::uptime())
            .unwrap_or_else(|error| {
                tracing::error!(%error, "failed to persist rollback, retrying after the start");
                None
            });
        Ok(Self { overdue_rollback, ..Self::read(store)? })
    }
}

/// Rolls back the pending revision if its deadline has passed, and returns the text of the event.
fn roll_back_overdue(
    store: &ConfigStore,
    digester: &Digester,
    now: UnixTime,
    uptime: Uptime,
) -> Result<Option<String>, ApplyError> {
    let Some((revision, unconfirmed)) = store.unconfirmed()? else { return Ok(None) };
    if left_ns(unconfirmed, now, uptime) > 0 {
        return Ok(None);
    }
    let rollback_to = unconfirmed.rollback_to;
    let proposal =
        Proposal::for_overdue(revision, rollback_to, documents::by_revision(store, rollback_to)?)?;
    let document = documents::current(store)?;
    let basis = Basis {
        revision,
        digest: digest(&digester.redact(document.clone())),
        config: parse(&document).ok().map(Arc::new),
        document,
        ..Basis::default()
    };
    let environment = Environment {
        digester,
        session_control: &|_| SessionControl::Down,
        sockets_available: files_for_measurements(),
        now,
        uptime,
    };
    let plan = plan(check(proposal, &basis)?, &basis, &environment);
    let persisted = persist(store, plan)?;
    store.damage_stands();
    Ok(match persisted.publication {
        Publication::Revision(new) => Some(new.detail),
        Publication::Nothing | Publication::Prolonged(_) => None,
    })
}
