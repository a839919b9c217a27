//! The committed configuration, which the roles follow.

use std::{io, sync::Arc};

use tokio::sync::watch;

use crate::{
    model::{AgentConfig, Violation, parse_valid_parts},
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
    /// Description of the parts that an earlier version accepted and this one leaves out.
    pub(super) refused: Option<String>,
}

impl Committed {
    /// Reads the current revision.
    pub(super) fn read(store: &ConfigStore) -> Result<Self, LoadError> {
        let Some(stored) = store.current()? else { return Ok(Self::default()) };
        let revision = stored.revision.map_or(0, |revision| revision.revision);
        // An agent that does not start would measure nothing and could not be corrected.
        let (config, violations) = parse_valid_parts(&stored.config.unwrap_or_default());
        let refused = describe(revision, &violations);
        if let Some(refused) = &refused {
            tracing::error!("{refused}");
        }
        Ok(Self { revision, config: Arc::new(config), refused, ..Self::default() })
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
            Err(error @ LoadError::Random(_)) => {
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
}

/// Describes the parts of a revision that are left out; `None` if it is valid.
fn describe(revision: u64, violations: &[Violation]) -> Option<String> {
    let Violation { field, description } = violations.first()?;
    let more = match violations.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Some(format!(
        "parts of revision {revision} are not valid for this version and have no effect: {field}: \
         {description}{more}; apply a corrected configuration"
    ))
}
