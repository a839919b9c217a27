//! The result log: numbers reports as records, merges them into statistics, hands them to the store
//! and keeps them for readers that follow. One thread writes it.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use prost::Message;

use super::{
    Subject,
    content::{interval_result, probe_results, test_result},
    event_log::log_event,
    report::{Report, ReportKind},
    statistics::{Aggregator, Plans},
    subject::Key,
    tail::Tail,
};
use crate::{
    store::{Entry, ResultStore, StoreError, content},
    time::UnixTime,
};

/// Number of sessions whose intervals are closed in one step, which takes some ten milliseconds.
const SESSIONS_AT_ONCE: usize = 256;

/// Number of records not stored yet above which no intervals are closed.
const MAX_UNSTORED: u64 = 2_048;

/// Store, latest records and statistics.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) store: ResultStore,
    pub(super) tail: Tail,
    /// Merging and handing to the store happen under one lock, so that a snapshot of statistics
    /// matches its place in the log.
    aggregator: Mutex<Aggregator>,
    next_cursor: AtomicU64,
    dropped: AtomicU64,
}

impl Log {
    pub(super) fn open(store: ResultStore, plans: Arc<Plans>) -> Result<Self, StoreError> {
        let aggregator = Mutex::new(Aggregator::load(&store, plans)?);
        let next_cursor = store.next_cursor().into();
        Ok(Self {
            store,
            tail: Tail::default(),
            aggregator,
            next_cursor,
            dropped: AtomicU64::new(0),
        })
    }

    /// Returns the number of records that the store did not accept.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed) + self.store.state().borrow().dropped
    }

    pub(super) fn append_report(&self, Report { subject, kind, time }: Report) {
        let mut aggregator = self.aggregator();
        match kind {
            ReportKind::Event(event) => {
                log_event(&subject, &event);
                self.append(&subject, content::EVENT, event.encode_to_vec().into(), time);
            }
            ReportKind::Probes(probes) => {
                for (kind, content) in probe_results(probes, stored_time(time)) {
                    self.append(&subject, kind, content, time);
                }
            }
            ReportKind::Test(mut result, minute) => {
                let content = test_result(&mut result);
                aggregator.test(&subject, &result, &content, minute);
                self.append(&subject, content::TEST_RESULT, content, time);
            }
            ReportKind::Minute(minute, figures) => {
                aggregator.minute(&subject, minute, &figures, time);
            }
        }
    }

    /// Closes ended intervals of the next sessions after the key `after`, and appends them. Returns
    /// the key after which to continue; `None` at the end. A step is limited, because reports wait
    /// for it.
    pub(super) fn close_intervals(&self, now: UnixTime, after: Option<&Key>) -> Option<Key> {
        let mut aggregator = self.aggregator();
        let unstored =
            self.next_cursor.load(Relaxed).saturating_sub(1 + self.store.state().borrow().newest);
        if unstored > MAX_UNSTORED {
            // Intervals can be delayed until the store has caught up, measurements cannot.
            return Some(after.cloned().unwrap_or_default());
        }
        if after.is_none() && !aggregator.is_over(now) {
            return None;
        }
        // These records report minutes of running tests. Statistics are saved first, so that even
        // after a crash the statistics of all tests include those minutes.
        self.save(&mut aggregator);
        let (closed, last) = aggregator.close(now, after, SESSIONS_AT_ONCE);
        for (key, mut interval) in closed {
            let subject = aggregator.subject(&key);
            let content = interval_result(&mut interval);
            self.append(&subject, content::INTERVAL_RESULT, content, now);
        }
        last
    }

    /// Appends a record. The caller holds the lock of the statistics, so that cursors rise in the
    /// order of records.
    fn append(&self, subject: &Subject, kind: u8, content: Bytes, time: UnixTime) {
        let entry = Entry {
            cursor: self.next_cursor.load(Relaxed),
            time: stored_time(time),
            subject: subject.stored.clone(),
            kind,
            content,
        };
        let stored = if subject.persistent {
            entry.clone()
        } else {
            Entry { kind: content::NOTHING, content: Bytes::new(), ..entry.clone() }
        };
        // The tail gets the entry before the store announces it, because readers search the tail.
        self.tail.push(entry);
        if self.store.append(stored).is_ok() {
            self.next_cursor.fetch_add(1, Relaxed);
        } else {
            self.tail.pop_uncommitted();
            self.count_dropped();
        }
    }

    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(super) fn save_statistics(&self) {
        self.save(&mut self.aggregator());
    }

    fn save(&self, aggregator: &mut Aggregator) {
        let changed = aggregator.take_changed(self.next_cursor.load(Relaxed) - 1);
        if changed.is_empty() {
            return;
        }
        if let Err((changed, error)) = self.store.save_statistics(changed) {
            // Nothing is lost: the log has the results, and the next snapshot saves the statistics.
            aggregator.mark_dirty(changed);
            tracing::warn!(%error, "failed to save statistics");
        }
    }

    pub(super) fn aggregator(&self) -> MutexGuard<'_, Aggregator> {
        self.aggregator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rounds a time down to microseconds, the resolution of the store.
fn stored_time(time: UnixTime) -> UnixTime {
    UnixTime(time.0 / 1_000 * 1_000)
}
