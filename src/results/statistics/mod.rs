//! Statistics of tests and intervals: updated with each result, saved, and loaded at a start.

mod part;
mod plans;
mod session;
#[cfg(test)]
mod tests;
mod totals;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;

use super::{Subject, subject::Key};
use crate::{
    proto::{Statistics, StatisticsScope},
    stats::{Figures, TestResult},
    store::{self, Changed, ResultStore, StoreError, content},
    time::UnixTime,
};
use part::Part;
pub(super) use plans::{Plan, Plans, plans};
use session::Session;
pub(super) use totals::IntervalResult;

/// Bytes and records read at once during the replay of the log.
const REPLAY_BYTES: usize = 1 << 20;
const REPLAY_RECORDS: usize = 4096;
/// Key of the cursor up to which all stored statistics include the log.
const SNAPSHOT_KEY: &[u8] = b"";
/// Maximum number of stored times at which all measurements were disturbed, for intervals that
/// begin later.
const DISTURBANCES: usize = 64;

/// Returns true if a key of the store is one of statistics.
pub fn is_statistics_key(key: &[u8]) -> bool {
    key == SNAPSHOT_KEY || Part::from_key(key).is_some()
}

/// Selection of statistics by name and scope.
#[derive(Clone, Debug, Default)]
pub struct StatisticsQuery {
    /// Names of connections; empty for all.
    pub connections: BTreeSet<String>,
    /// Names of sessions; empty for all.
    pub sessions: BTreeSet<String>,
    /// Scopes; empty for all.
    pub scopes: BTreeSet<StatisticsScope>,
    /// Includes intervals that are not over.
    pub current: bool,
    /// Includes the latest results of sessions whose results are not stored.
    pub history: bool,
}

impl StatisticsQuery {
    /// Returns true if a session is selected.
    pub fn selects(&self, connection: &str, session: &str) -> bool {
        let named = |names: &BTreeSet<String>, name| names.is_empty() || names.contains(name);
        named(&self.connections, connection) && named(&self.sessions, session)
    }

    /// Returns true if a scope is selected.
    pub fn selects_scope(&self, scope: StatisticsScope) -> bool {
        self.scopes.is_empty() || self.scopes.contains(&scope)
    }
}

/// Statistics of all sessions.
#[derive(Debug, Default)]
pub(super) struct Aggregator {
    sessions: BTreeMap<Key, Session>,
    changed: BTreeSet<Key>,
    /// Stored keys of sessions that were removed.
    obsolete: Vec<Vec<u8>>,
    plans: Arc<Plans>,
    disturbed: VecDeque<u64>,
    /// Cursor of the latest snapshot that the store accepted.
    snapshot_cursor: u64,
}

impl Aggregator {
    /// Loads the latest snapshot from the store and replays later results.
    pub(super) fn load(store: &ResultStore, plans: Arc<Plans>) -> Result<Self, StoreError> {
        let mut aggregator = Self { plans, ..Self::default() };
        let mut as_of: HashMap<(Key, Part), u64> = HashMap::new();
        let mut after = 0;
        for saved in store.statistics()? {
            if saved.key == SNAPSHOT_KEY {
                after = saved.as_of_cursor;
                continue;
            }
            let (key, part) =
                Part::from_key(&saved.key).ok_or(StoreError::Damaged("statistics"))?;
            if !aggregator.plans.for_session(&key).is_persistent() {
                // The part was stored before the results of the session were kept in memory only.
                aggregator.obsolete.push(saved.key);
                continue;
            }
            aggregator.session(&key).restore(part, saved.content);
            as_of.insert((key, part), saved.as_of_cursor);
        }
        let newest = store.state().borrow().newest;
        loop {
            let entries = store.entries(after, newest, REPLAY_RECORDS, REPLAY_BYTES, false)?;
            let Some(last) = entries.last() else { break };
            after = last.cursor;
            let counted = [content::TEST_RESULT, content::INTERVAL_RESULT];
            for entry in entries.iter().filter(|entry| counted.contains(&entry.kind)) {
                let key = (entry.subject.connection.clone(), entry.subject.session.clone());
                if !aggregator.plans.for_session(&key).is_persistent() {
                    continue;
                }
                let has = |part| {
                    as_of.get(&(key.clone(), part)).is_some_and(|as_of| entry.cursor <= *as_of)
                };
                if entry.kind == content::TEST_RESULT {
                    let result = decoded(TestResult::decode(entry.content.clone()))?;
                    aggregator.session(&key).replay_test(&result, &entry.content, has);
                } else {
                    let result = decoded(IntervalResult::decode(entry.content.clone()))?;
                    aggregator.session(&key).replay_interval(&result, has);
                }
                aggregator.changed.insert(key);
            }
        }
        // Results are missing for the time in which the agent did not run.
        for session in aggregator.sessions.values_mut() {
            session.mark_interrupted();
        }
        Ok(aggregator)
    }

    fn session(&mut self, key: &Key) -> &mut Session {
        let plans = &self.plans;
        self.sessions.entry(key.clone()).or_insert_with(|| Session::new(plans.for_session(key)))
    }

    /// Returns the subject of the records of a session's intervals.
    pub(super) fn subject(&mut self, key: &Key) -> Arc<Subject> {
        self.session(key).subject(key)
    }

    /// Adds the result of a test, and its minute if all of it was in one.
    pub(super) fn test(
        &mut self,
        subject: &Arc<Subject>,
        result: &TestResult,
        content: &Bytes,
        minute: Option<u64>,
    ) {
        self.update(subject, |session, disturbed| {
            session.test(result, content, minute, disturbed, |_| false);
        });
    }

    /// Adds the figures of one minute of a longer test that began at `started`.
    pub(super) fn minute(
        &mut self,
        subject: &Arc<Subject>,
        minute: u64,
        figures: &Figures,
        started: UnixTime,
    ) {
        self.update(subject, |session, disturbed| {
            session.minute(minute, figures, started, disturbed);
        });
    }

    /// Updates a session, unless it is no longer configured.
    fn update(
        &mut self,
        subject: &Arc<Subject>,
        update: impl FnOnce(&mut Session, &VecDeque<u64>),
    ) {
        let key = &subject.key;
        if self.plans.is_removed(key) {
            return;
        }
        let disturbed = std::mem::take(&mut self.disturbed);
        let session = self.session(key);
        session.set_subject(subject);
        update(session, &disturbed);
        self.disturbed = disturbed;
        if !self.changed.contains(key) {
            self.changed.insert(key.clone());
        }
    }

    /// Returns true if an interval has ended.
    pub(super) fn is_over(&self, now: UnixTime) -> bool {
        self.sessions.values().any(|session| session.over(now.0).next().is_some())
    }

    /// Closes the ended intervals of at most `limit` sessions after the key `after`, and returns
    /// them with the key after which to continue; `None` at the end.
    pub(super) fn close(
        &mut self,
        now: UnixTime,
        after: Option<&Key>,
        limit: usize,
    ) -> (Vec<(Key, IntervalResult)>, Option<Key>) {
        let Self { sessions, changed, disturbed, .. } = self;
        let mut closed = Vec::new();
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut left, mut last) = (limit, None);
        for (key, session) in sessions.range_mut::<Key, _>((begin, Bound::Unbounded)) {
            if left == 0 {
                return (closed, last);
            }
            left -= 1;
            last = Some(key.clone());
            let of_session = session.close(now.0, disturbed);
            if !of_session.is_empty() {
                changed.insert(key.clone());
                closed.extend(of_session.into_iter().map(|interval| (key.clone(), interval)));
            }
        }
        (closed, None)
    }

    /// Marks the intervals of all sessions around a time as suspect.
    pub(super) fn mark_suspect(&mut self, at: UnixTime) {
        if self.disturbed.len() >= DISTURBANCES {
            self.disturbed.pop_front();
        }
        self.disturbed.push_back(at.0);
        for (key, session) in &mut self.sessions {
            session.mark_suspect(at.0);
            self.changed.insert(key.clone());
        }
    }

    /// Removes intervals that begin in the future, which were recorded while the clock was ahead.
    pub(super) fn forget_future(&mut self, now: UnixTime) {
        self.disturbed.retain(|at| *at <= now.0);
        for (key, session) in &mut self.sessions {
            if session.forget_future(now.0) {
                self.changed.insert(key.clone());
            }
        }
    }

    /// Resets the statistics of sessions and returns their new epochs.
    pub(super) fn clear(&mut self, query: &StatisticsQuery) -> Vec<(Key, u64)> {
        // Sessions without a result are reset as well.
        let plans = self.plans.all();
        let known = plans.iter().flat_map(|plans| plans.keys());
        let keys: BTreeSet<Key> = known
            .chain(self.sessions.keys())
            .filter(|(connection, session)| query.selects(connection, session))
            .cloned()
            .collect();
        let clear = |key: Key| {
            let epoch = self.session(&key).clear();
            self.changed.insert(key.clone());
            (key, epoch)
        };
        keys.into_iter().map(clear).collect()
    }

    /// Returns the epoch of the statistics of a session.
    pub(super) fn epoch(&self, key: &Key) -> u64 {
        self.sessions.get(key).map_or(0, Session::epoch)
    }

    /// Returns statistics, sorted by connection and session.
    pub(super) fn statistics(&self, query: &StatisticsQuery) -> Vec<Statistics> {
        let sessions = self.session_statistics(query).into_iter();
        sessions
            .flat_map(|(subject, statistics)| {
                statistics.into_iter().map(move |one| Statistics {
                    connection: subject.connection.clone(),
                    session: subject.session.clone(),
                    ..one
                })
            })
            .collect()
    }

    /// Returns the same statistics by session, with its labels.
    pub(super) fn session_statistics(
        &self,
        query: &StatisticsQuery,
    ) -> Vec<(Arc<store::Subject>, Vec<Statistics>)> {
        let wanted = self.sessions.iter();
        let wanted = wanted.filter(|((connection, session), _)| query.selects(connection, session));
        let of_session = |(key, session): (&Key, &Session)| {
            let scopes = |scope| query.selects_scope(scope);
            let found = session.statistics(scopes, query.current, query.history);
            (session.subject(key).stored.clone(), found)
        };
        wanted.map(of_session).collect()
    }

    /// Applies the plans of configured sessions and removes all others. Returns true if stored
    /// statistics have to be removed.
    pub(super) fn follow(&mut self) -> bool {
        let Some(plans) = self.plans.all() else { return false };
        let Self { sessions, changed, obsolete, .. } = self;
        sessions.retain(|key, session| {
            if let Some(plan) = plans.get(key) {
                if session.plan.is_persistent() && !plan.is_persistent() {
                    obsolete.extend(session.all_parts().into_iter().map(|part| part.key(key)));
                }
                session.set_plan(plan.clone());
                changed.insert(key.clone());
                return true;
            }
            obsolete.extend(session.all_parts().into_iter().map(|part| part.key(key)));
            changed.remove(key);
            false
        });
        !obsolete.is_empty()
    }

    /// Returns the statistics that changed since the last call; they include the records up to
    /// cursor `newest`.
    pub(super) fn take_changed(&mut self, newest: u64) -> Changed {
        let mut all: Changed =
            std::mem::take(&mut self.obsolete).into_iter().map(|key| (key, None)).collect();
        for key in std::mem::take(&mut self.changed) {
            let Some(session) = self.sessions.get_mut(&key) else { continue };
            let parts = session.take_changed().into_iter();
            all.extend(parts.map(|(part, content)| (part.key(&key), content)));
        }
        // The snapshot is stored even without a change, so that a start does not replay these
        // records again.
        if std::mem::replace(&mut self.snapshot_cursor, newest) != newest || !all.is_empty() {
            // Written last: its presence shows that all others are complete.
            all.push((SNAPSHOT_KEY.to_vec(), Some(Vec::new())));
        }
        all
    }

    /// Marks statistics that could not be saved as changed.
    pub(super) fn mark_dirty(&mut self, changed: Changed) {
        for (stored_key, content) in changed {
            let Some((key, part)) = Part::from_key(&stored_key) else { continue };
            match (content, self.sessions.get_mut(&key)) {
                (_, Some(session)) => {
                    session.mark_changed(part);
                    self.changed.insert(key);
                }
                (None, None) => self.obsolete.push(stored_key),
                (Some(_), None) => {}
            }
        }
        // The store did not accept the snapshot either.
        self.snapshot_cursor = 0;
    }
}

fn decoded<T>(read: Result<T, prost::DecodeError>) -> Result<T, StoreError> {
    read.map_err(|_| StoreError::Damaged("record"))
}
