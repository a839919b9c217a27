//! Owners of records.

use std::{collections::BTreeMap, sync::Arc};

use crate::{model::ResultKeeping, store};

/// Names of a connection and its session.
pub(super) type Key = (String, String);

/// Owner of records, with the setting that decides about storing them.
#[derive(Clone, Debug)]
pub struct Subject {
    pub(super) key: Key,
    pub(super) stored: Arc<store::Subject>,
    pub(super) persistent: bool,
}

impl Subject {
    /// Creates the subject of a session or, with an empty `session`, of a connection as a whole.
    pub fn new(
        connection: &str,
        session: &str,
        labels: BTreeMap<String, String>,
        keeping: ResultKeeping,
    ) -> Self {
        let key = (connection.to_owned(), session.to_owned());
        let stored = store::Subject { connection: key.0.clone(), session: key.1.clone(), labels };
        Self { key, stored: Arc::new(stored), persistent: keeping == ResultKeeping::Stored }
    }

    /// Creates the subject of the agent as a whole.
    pub fn agent() -> Self {
        Self::new("", "", BTreeMap::new(), ResultKeeping::Stored)
    }

    /// Creates the subject of the session's connection.
    pub fn for_connection(&self) -> Self {
        let stored = store::Subject { session: String::new(), ..(*self.stored).clone() };
        let key = (stored.connection.clone(), String::new());
        Self { key, stored: Arc::new(stored), persistent: self.persistent }
    }

    /// Returns the name of the connection; empty for the agent as a whole.
    pub fn connection(&self) -> &str {
        &self.key.0
    }

    /// Returns the name of the session; empty for a connection.
    pub fn session(&self) -> &str {
        &self.key.1
    }
}
