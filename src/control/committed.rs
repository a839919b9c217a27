//! The committed configuration as the roles follow it.

use std::{io, sync::Arc};

use crate::{
    model::{AgentConfig, Violation, parse},
    store::{ConfigStore, StoreError},
};

/// A committed configuration with its revision.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// 0 before the first commit.
    pub(super) revision: u64,
    pub(super) config: Arc<AgentConfig>,
    /// Rollback of an unconfirmed revision at the start of the agent, in words.
    pub(super) overdue_rollback: Option<String>,
    /// Revision that `config` is taken from while its rollback cannot be persisted.
    pub(super) rolled_back_to: Option<u64>,
}

impl Committed {
    /// Reads the current revision.
    pub(super) fn read(store: &ConfigStore) -> Result<Self, LoadError> {
        let Some(stored) = store.current()? else { return Ok(Self::default()) };
        let revision = stored.revision.map_or(0, |revision| revision.revision);
        match parse(&stored.config.unwrap_or_default()) {
            Ok(config) => Ok(Self { revision, config: Arc::new(config), ..Self::default() }),
            Err(violations) => Err(LoadError::Invalid { revision, violations }),
        }
    }

    /// Returns its revision; 0 before the first commit.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Describes the rollback of an unconfirmed revision at the start of the agent, if any.
    pub fn rolled_back(&self) -> Option<&str> {
        self.overdue_rollback.as_deref()
    }

    /// Returns the configuration of this revision.
    pub fn config(&self) -> &AgentConfig {
        &self.config
    }
}

/// Failure to load the stored configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store failed to read the revision.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel gave no random bytes for the key of digests.
    #[error(transparent)]
    Random(#[from] io::Error),
    /// This version of the agent refuses the document of the current revision.
    #[error("stored revision {revision} is not valid: {violations:?}")]
    Invalid {
        /// Number of the current revision.
        revision: u64,
        /// Everything that is invalid in it.
        violations: Vec<Violation>,
    },
}
