//! The committed configuration, which the roles follow.

use std::{io, sync::Arc};

use tokio::sync::watch;

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
    /// Description of a rollback of an unconfirmed revision at the start of the agent.
    pub(super) overdue_rollback: Option<String>,
    /// Revision whose configuration `config` is, while the rollback to it cannot be persisted.
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

    /// Publishes the current revision of the store if it is newer than the published one: an actor that
    /// failed may have persisted a revision without publishing it.
    pub(super) fn publish_newer(
        store: &ConfigStore,
        committed: &watch::Sender<Self>,
    ) -> Result<(), StoreError> {
        let stored = match Self::read(store) {
            Ok(stored) => stored,
            Err(LoadError::Store(error)) => return Err(error),
            Err(error @ (LoadError::Random(_) | LoadError::Invalid { .. })) => {
                tracing::error!(%error, "failed to read the current revision");
                return Ok(());
            }
        };
        committed.send_if_modified(|published| {
            let is_newer = stored.revision > published.revision;
            if is_newer {
                *published = stored;
            }
            is_newer
        });
        Ok(())
    }

    /// Returns the number of the revision; 0 before the first commit.
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
    /// The document of the current revision is not valid for this version of the agent.
    #[error("stored revision {revision} is not valid: {violations:?}")]
    Invalid {
        /// Number of the current revision.
        revision: u64,
        /// All violations in its document.
        violations: Vec<Violation>,
    },
}
