//! Reports become records: numbered, folded into statistics, handed to the store and kept for
//! readers that follow. By one thread.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;

use super::{
    Subject, content as record_content,
    reports::{Report, Told},
    statistics::{Fold, Plans},
    tail::Tail,
};
use crate::{
    proto::{Event, FailureCause, Word, record},
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
    fold: Mutex<Fold>,
    next_cursor: AtomicU64,
    dropped: AtomicU64,
}

impl Log {
    pub(super) fn open(store: ResultStore, plans: Arc<Plans>) -> Result<Self, StoreError> {
        let fold = Mutex::new(Fold::load(&store, plans)?);
        let next_cursor = store.next_cursor().into();
        Ok(Self { store, tail: Tail::default(), fold, next_cursor, dropped: AtomicU64::new(0) })
    }

    /// What the store did not take.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed) + self.store.state().borrow().dropped
    }

    pub(super) fn take(&self, Report { subject, told, time }: Report) {
        let mut fold = self.fold();
        let kind = match told {
            Told::Record(kind) => *kind,
            Told::Test(mut result, minute) => {
                let content = record_content::test_result(&mut result);
                fold.test(&subject, &result, &content, minute);
                return self.append(&subject, content::TEST_RESULT, content, time);
            }
            Told::Minute(minute, figures) => {
                return fold.minute(&subject, minute, &figures, time);
            }
        };
        if let record::Kind::Event(event) = &kind {
            tell(subject.connection(), event);
        }
        self.append_all(&subject, kind, time);
    }

    /// Intervals that are over become records.
    pub(super) fn close_intervals(&self, now: UnixTime) {
        let mut fold = self.fold();
        if !fold.is_over(now) {
            return;
        }
        // First, so that what their records tell of a test that runs is counted over all tests too,
        // whatever happens.
        self.save(&mut fold);
        for (key, interval) in fold.close(now) {
            let subject = fold.subject(&key);
            self.append_all(&subject, record::Kind::IntervalResult(interval), now);
        }
    }

    /// Under the lock of the statistics: cursors rise in the order in which records are handed on.
    fn append_all(&self, subject: &Subject, kind: record::Kind, time: UnixTime) {
        for (kind, content) in record_content::encode(kind, kept(time)) {
            self.append(subject, kind, content, time);
        }
    }

    fn append(&self, subject: &Subject, kind: u8, content: Bytes, time: UnixTime) {
        let entry = Entry {
            cursor: self.next_cursor.load(Relaxed),
            time: kept(time),
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
            self.tail.take_back();
            self.count_dropped();
        }
    }

    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(super) fn save_statistics(&self) {
        self.save(&mut self.fold());
    }

    fn save(&self, fold: &mut Fold) {
        let changed = fold.take_changed(self.next_cursor.load(Relaxed) - 1);
        if changed.is_empty() {
            return;
        }
        if let Err((changed, error)) = self.store.save_statistics(changed) {
            // They are in the log and in memory; the next snapshot has them.
            fold.give_back(changed);
            tracing::warn!(%error, "statistics were not saved");
        }
    }

    pub(super) fn fold(&self) -> MutexGuard<'_, Fold> {
        self.fold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the store keeps of the time of a record: microseconds.
fn kept(time: UnixTime) -> UnixTime {
    UnixTime(time.0 / 1_000 * 1_000)
}

/// Events are what the agent logs of measurements.
fn tell(connection: &str, event: &Event) {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let cause = event.cause();
    tracing::info!(
        connection = given(connection),
        cause = (cause != FailureCause::Unspecified).then(|| cause.word()),
        attempts = (event.attempts > 0).then_some(event.attempts),
        revision = (event.revision > 0).then_some(event.revision),
        detail = given(&event.detail),
        "{}",
        event.r#type().word()
    );
}
