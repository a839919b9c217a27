//! Statistics over finished tests, kept as results come and found again after a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use prost::Message;

use crate::{
    proto::{Record, Statistics, StatisticsScope, TestResult, record},
    stats::add_result,
    store::{ResultStore, StoreError, StoredStatistics},
};

/// Octets and records read at once while the log is replayed.
const REPLAY_OCTETS: usize = 1 << 20;
const REPLAY_RECORDS: usize = 4096;
/// Stands under every snapshot: the place in the log up to which all statistics reach.
const SNAPSHOT_KEY: &[u8] = b"";

/// Connection and session.
pub(super) type Key = (String, String);

/// The statistics of all sessions.
#[derive(Debug, Default)]
pub(super) struct Fold {
    sessions: BTreeMap<Key, StoredStatistics>,
    changed: BTreeSet<Key>,
    /// Connections that are configured, once that is known. A connection that was removed may
    /// still report how its last test ended.
    configured: Option<BTreeSet<Key>>,
}

impl Fold {
    /// From the store: the last snapshot, and the results behind it.
    pub(super) fn load(store: &ResultStore) -> Result<Self, StoreError> {
        let mut fold = Self::default();
        let mut after = 0;
        for (key, stored) in store.statistics()? {
            if key == SNAPSHOT_KEY {
                after = stored.as_of_cursor;
            } else {
                let key = names(&key).ok_or(StoreError::Damaged("statistics"))?;
                fold.sessions.insert(key, stored);
            }
        }
        let newest = store.state().borrow().newest;
        loop {
            let entries = store.entries(after, newest, REPLAY_RECORDS, REPLAY_OCTETS, false)?;
            let Some((last, _)) = entries.last() else { break };
            after = *last;
            for (cursor, octets) in entries {
                let record =
                    Record::decode(octets.as_slice()).map_err(|_| StoreError::Damaged("record"))?;
                fold.take(&Record { cursor, ..record });
            }
        }
        Ok(fold)
    }

    /// Takes a record; only results of tests count. One with a cursor that is in the statistics
    /// already is left out.
    pub(super) fn take(&mut self, record: &Record) {
        let Some(record::Kind::TestResult(result)) = &record.kind else { return };
        let key = (record.connection.clone(), record.session.clone());
        if self.configured.as_ref().is_some_and(|names| !names.contains(&key)) {
            return;
        }
        let stored = self.sessions.entry(key.clone()).or_default();
        if record.cursor != 0 && record.cursor <= stored.as_of_cursor {
            return;
        }
        let mut all = stored.all.take().unwrap_or_else(|| empty(&key, StatisticsScope::AllTests));
        add_result(&mut all, result);
        stored.all = Some(all);
        stored.last = Some(of_one(&key, result));
        self.changed.insert(key);
    }

    /// All statistics, sorted by connection, session and scope.
    pub(super) fn all(&self) -> Vec<Statistics> {
        let scopes = |stored: &StoredStatistics| [stored.last.clone(), stored.all.clone()];
        self.sessions.values().flat_map(scopes).flatten().collect()
    }

    /// Forgets sessions that are not configured.
    pub(super) fn retain(&mut self, configured: BTreeSet<Key>) {
        let Self { sessions, changed, .. } = self;
        sessions.retain(|key, _| {
            let stays = configured.contains(key);
            if !stays {
                changed.insert(key.clone());
            }
            stays
        });
        self.configured = Some(configured);
    }

    /// What changed since the last call, as the store takes it; `None` stands for "forgotten".
    pub(super) fn take_changed(&mut self) -> Vec<(Vec<u8>, Option<StoredStatistics>)> {
        if self.changed.is_empty() {
            return Vec::new();
        }
        let changed = mem::take(&mut self.changed);
        let stored = changed.iter().map(|key| (octets(key), self.sessions.get(key).cloned()));
        let snapshot = (SNAPSHOT_KEY.to_vec(), Some(StoredStatistics::default()));
        // Last: it says that all before it are there.
        stored.chain([snapshot]).collect()
    }

    /// All are to be saved again.
    pub(super) fn mark_all_changed(&mut self) {
        self.changed = self.sessions.keys().cloned().collect();
    }
}

fn empty((connection, session): &Key, scope: StatisticsScope) -> Statistics {
    Statistics {
        connection: connection.clone(),
        session: session.clone(),
        scope: scope.into(),
        ..Statistics::default()
    }
}

fn of_one(key: &Key, result: &TestResult) -> Statistics {
    let mut statistics = empty(key, StatisticsScope::LastTest);
    add_result(&mut statistics, result);
    statistics
}

/// Names hold no NUL.
fn octets((connection, session): &Key) -> Vec<u8> {
    [connection.as_bytes(), b"\0", session.as_bytes()].concat()
}

fn names(octets: &[u8]) -> Option<Key> {
    let (connection, session) = std::str::from_utf8(octets).ok()?.split_once('\0')?;
    Some((connection.to_owned(), session.to_owned()))
}
