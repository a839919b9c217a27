//! Reports become records: numbered, folded into statistics, handed to the store and kept for
//! readers that follow. By one thread.

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
    tail::Tail,
};
use crate::{
    store::{Entry, ResultStore, StoreError, content},
    time::UnixTime,
};

/// The store with what is folded from it.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) store: ResultStore,
    pub(super) tail: Tail,
    /// Folding and handing to the store happen under one lock, so that a snapshot of statistics
    /// and its place in the log agree.
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

    /// What the store did not take.
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

    /// Intervals that are over become records.
    pub(super) fn close_intervals(&self, now: UnixTime) {
        let mut aggregator = self.aggregator();
        if !aggregator.is_over(now) {
            return;
        }
        // First, so that what their records tell of a test that runs is counted over all tests too,
        // whatever happens.
        self.save(&mut aggregator);
        for (key, mut interval) in aggregator.close(now) {
            let subject = aggregator.subject(&key);
            let content = interval_result(&mut interval);
            self.append(&subject, content::INTERVAL_RESULT, content, now);
        }
    }

    /// Appends a record. The caller holds the lock of the statistics: cursors rise in the order in
    /// which records are passed on.
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
        // Before the store tells of it: whoever hears of it looks here.
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
            // They are in the log and in memory; the next snapshot has them.
            aggregator.mark_dirty(changed);
            tracing::warn!(%error, "statistics were not saved");
        }
    }

    pub(super) fn aggregator(&self) -> MutexGuard<'_, Aggregator> {
        self.aggregator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the store keeps of the time of a record: microseconds.
fn stored_time(time: UnixTime) -> UnixTime {
    UnixTime(time.0 / 1_000 * 1_000)
}
