//! Documents of stored revisions.

use std::sync::Arc;

use super::error::ApplyError;
use crate::{
    model::{self, parse},
    proto::AgentConfig,
    store::{ConfigStore, StoreError},
};

/// Reads the document of the current revision. Before the first commit it is empty.
pub(super) fn current(store: &ConfigStore) -> Result<AgentConfig, StoreError> {
    Ok(store.current()?.and_then(|stored| stored.config).unwrap_or_default())
}

/// Reads the document of a revision. The document of revision 0 is empty.
pub(super) fn by_revision(store: &ConfigStore, revision: u64) -> Result<AgentConfig, ApplyError> {
    if revision == 0 {
        return Ok(AgentConfig::default());
    }
    let stored = store.revision(revision)?.ok_or(ApplyError::NoRevision(revision))?;
    Ok(stored.config.unwrap_or_default())
}

/// Checks the document of the current revision. Returns `None` if it is not valid, and thereby
/// leaves the list of changes in the next answer empty.
pub(super) fn parse_current(
    revision: u64,
    document: &AgentConfig,
) -> Option<Arc<model::AgentConfig>> {
    match parse(document) {
        Ok(config) => Some(Arc::new(config)),
        Err(violations) => {
            tracing::warn!(revision, ?violations, "current revision is not valid");
            None
        }
    }
}
