//! State of control connections that survives a restart: an open outage, a completed test count, a
//! manual stop. It is read from memory; the result writer persists changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use prost::Message;

use super::{MAXIMUM_VALUE_OCTETS, StoreError};

/// Separator in a key between the name of a connection, which contains no NUL, and the number of a
/// piece of its state.
const SEPARATOR: u8 = 0;

/// State of one control connection. The default state is not stored.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PersistedConnection {
    /// Outage that has not ended.
    #[prost(message, optional, tag = "1")]
    pub outage: Option<PersistedOutage>,
    /// Completion of all tests of `test_count`.
    #[prost(message, optional, tag = "2")]
    pub completed: Option<PersistedCompletion>,
    /// Manual stop that is in effect.
    #[prost(message, optional, tag = "3")]
    pub stopped: Option<PersistedStop>,
    /// Number of outages that have ended.
    #[prost(uint64, tag = "4")]
    pub past_outages: u64,
    /// Length of these outages, nanoseconds.
    #[prost(uint64, tag = "5")]
    pub past_outages_ns: u64,
}

/// Outage whose beginning was reported.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PersistedOutage {
    /// Time of the loss, nanoseconds since 1970.
    #[prost(fixed64, tag = "1")]
    pub since_unix_ns: u64,
    /// Number of the `FailureCause`.
    #[prost(int32, tag = "2")]
    pub cause: i32,
    /// Accept value of the peer if it is the cause; 0 otherwise.
    #[prost(uint32, tag = "3")]
    pub accept_code: u32,
    /// Text of the first error.
    #[prost(string, tag = "4")]
    pub detail: String,
    /// Failed attempts since the loss.
    #[prost(uint64, tag = "5")]
    pub attempts: u64,
}

/// Completion of a connection with a `test_count`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PersistedCompletion {
    /// Time of the completion, nanoseconds since 1970.
    #[prost(fixed64, tag = "1")]
    pub time_unix_ns: u64,
    /// The completed `test_count`; tests run again if the configuration has another one.
    #[prost(uint64, tag = "2")]
    pub test_count: u64,
}

/// Manual stop: the connection stays down until it is started by hand or changed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PersistedStop {
    /// Time of the request, nanoseconds since 1970.
    #[prost(fixed64, tag = "1")]
    pub time_unix_ns: u64,
    /// Identity of the caller.
    #[prost(string, tag = "2")]
    pub identity: String,
}

/// States in memory, shared with the result writer.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    states: BTreeMap<String, PersistedConnection>,
    /// Names of connections whose state is not stored yet.
    unsaved: BTreeSet<String>,
}

impl Connections {
    /// Reads the stored states. Unreadable states are logged and left out.
    pub(super) fn load(tree: &sled::Tree) -> Result<Self, StoreError> {
        let mut octets: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for piece in tree {
            let (key, piece) = piece?;
            let name = key.split(|octet| *octet == SEPARATOR).next().unwrap_or_default();
            let name = str::from_utf8(name).map_err(|_| StoreError::Damaged("connection state"))?;
            octets.entry(name.to_owned()).or_default().extend_from_slice(&piece);
        }
        let mut states = BTreeMap::new();
        for (name, octets) in octets {
            match PersistedConnection::decode(octets.as_slice()) {
                Ok(state) => drop(states.insert(name, state)),
                Err(error) => {
                    tracing::error!(%error, connection = name, "stored connection state damaged");
                }
            }
        }
        Ok(Self(Mutex::new(Table { states, unsaved: BTreeSet::new() })))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a state; the default if none is stored.
    pub(super) fn get(&self, name: &str) -> PersistedConnection {
        self.table().states.get(name).cloned().unwrap_or_default()
    }

    /// Changes a state in memory; the default state is removed. Returns true if it has changed.
    pub(super) fn update(&self, name: &str, change: impl FnOnce(&mut PersistedConnection)) -> bool {
        let mut table = self.table();
        let before = table.states.get(name).cloned().unwrap_or_default();
        let mut state = before.clone();
        change(&mut state);
        if state == before {
            return false;
        }
        if state == PersistedConnection::default() {
            table.states.remove(name);
        } else {
            table.states.insert(name.to_owned(), state);
        }
        true
    }

    /// Removes the states in memory for which `is_kept` returns false; returns their names.
    pub(super) fn retain(&self, is_kept: impl Fn(&str) -> bool) -> Vec<String> {
        let mut table = self.table();
        let removed: Vec<String> =
            table.states.keys().filter(|name| !is_kept(name)).cloned().collect();
        removed.iter().for_each(|name| drop(table.states.remove(name)));
        removed
    }

    /// Marks a state for [`Self::save`].
    pub(super) fn mark_unsaved(&self, name: &str) {
        self.table().unsaved.insert(name.to_owned());
    }

    pub(super) fn has_unsaved(&self) -> bool {
        !self.table().unsaved.is_empty()
    }

    /// Stores the marked states. After an error all of them stay marked.
    pub(super) fn save(&self, tree: &sled::Tree) -> Result<(), StoreError> {
        let unsaved = std::mem::take(&mut self.table().unsaved);
        let saved = unsaved.iter().try_for_each(|name| self.save_one(tree, name));
        if saved.is_err() {
            self.table().unsaved.extend(unsaved);
        }
        saved
    }

    fn save_one(&self, tree: &sled::Tree, name: &str) -> Result<(), StoreError> {
        let octets = self.get(name).encode_to_vec();
        let mut batch = sled::Batch::default();
        for stored in tree.scan_prefix([name.as_bytes(), &[SEPARATOR]].concat()).keys() {
            batch.remove(stored?);
        }
        for (index, piece) in octets.chunks(MAXIMUM_VALUE_OCTETS).enumerate() {
            let number = (index as u32).to_be_bytes();
            batch.insert([name.as_bytes(), &[SEPARATOR], &number].concat(), piece);
        }
        Ok(tree.apply_batch(batch)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> sled::Tree {
        let db = sled::Config::new().temporary(true).open().unwrap();
        db.open_tree("connections").unwrap()
    }

    fn stopped(identity: impl Into<String>) -> PersistedConnection {
        let stopped = Some(PersistedStop { time_unix_ns: 6, identity: identity.into() });
        PersistedConnection { stopped, ..PersistedConnection::default() }
    }

    fn all(connections: &Connections) -> BTreeMap<String, PersistedConnection> {
        connections.table().states.clone()
    }

    fn set(connections: &Connections, name: &str, state: PersistedConnection) {
        if connections.update(name, |known| *known = state) {
            connections.mark_unsaved(name);
        }
    }

    #[test]
    fn states_of_any_size_are_read_back_and_may_shrink() {
        let tree = tree();
        let outage = PersistedOutage {
            since_unix_ns: 5,
            cause: 2,
            accept_code: 3,
            detail: "refused".into(),
            attempts: 9,
        };
        let completed = PersistedCompletion { time_unix_ns: 7, test_count: 3 };
        let small = PersistedConnection {
            outage: Some(outage),
            completed: Some(completed),
            ..PersistedConnection::default()
        };
        let connections = Connections::default();
        let large = stopped("x".repeat(3 * MAXIMUM_VALUE_OCTETS));
        for (name, state) in [("a", small.clone()), ("ab", large.clone())] {
            set(&connections, name, state);
        }
        connections.save(&tree).unwrap();
        assert!(!connections.has_unsaved());
        assert!(tree.iter().values().all(|value| value.unwrap().len() <= MAXIMUM_VALUE_OCTETS));
        let loaded = Connections::load(&tree).unwrap();
        assert_eq!(all(&loaded), all(&connections));
        assert_eq!(loaded.get("ab"), large);

        set(&loaded, "ab", stopped("uid:0"));
        set(&loaded, "a", PersistedConnection::default());
        loaded.save(&tree).unwrap();
        let loaded = Connections::load(&tree).unwrap();
        assert_eq!(all(&loaded), [("ab".to_owned(), stopped("uid:0"))].into());
        assert_eq!(tree.len(), 1);
    }

    #[test]
    fn update_reports_changes_and_retain_removes_states() {
        let connections = Connections::default();
        for name in ["a", "b", "c"] {
            set(&connections, name, stopped("uid:0"));
        }
        assert!(!connections.update("a", |_| {}));
        assert!(!connections.update("new", |state| state.stopped = None));
        assert_eq!(connections.retain(|name| name == "b"), ["a", "c"]);
        assert_eq!(all(&connections), [("b".to_owned(), stopped("uid:0"))].into());
    }

    #[test]
    fn a_damaged_state_does_not_affect_others() {
        let tree = tree();
        let connections = Connections::default();
        set(&connections, "a", stopped("uid:0"));
        connections.save(&tree).unwrap();
        tree.insert(b"b\0\0\0\0\0", &[0xff; 3]).unwrap();
        assert_eq!(all(&Connections::load(&tree).unwrap()), all(&connections));
    }
}
