//! Documents of stored revisions.

use super::error::ApplyError;
use crate::{
    proto::AgentConfig,
    store::{ConfigStore, StoreError},
};

/// Reads the document of the current revision; an empty one before the first commit.
pub(super) fn current(store: &ConfigStore) -> Result<AgentConfig, StoreError> {
    Ok(store.current()?.and_then(|stored| stored.config).unwrap_or_default())
}

/// Reads the document of a revision; an empty one of revision 0.
pub(super) fn by_revision(store: &ConfigStore, revision: u64) -> Result<AgentConfig, ApplyError> {
    if revision == 0 {
        return Ok(AgentConfig::default());
    }
    let stored = store.revision(revision)?.ok_or(ApplyError::NoRevision(revision))?;
    Ok(stored.config.unwrap_or_default())
}
