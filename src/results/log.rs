//! Records into the store and into statistics, by one writer.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use prost::Message;

use super::{reports::Report, statistics::Fold};
use crate::{
    proto::{Event, LossCause, Record, record},
    store::{Entry, MAXIMUM_VALUE_OCTETS, ResultStore, StoreError},
};

/// The store with what is folded from it.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) store: ResultStore,
    /// Folding and handing to the store happen under one lock, so that a snapshot of statistics
    /// and its place in the log agree.
    fold: Mutex<Fold>,
    dropped: AtomicU64,
}

impl Log {
    pub(super) fn open(store: ResultStore) -> Result<Self, StoreError> {
        let fold = Mutex::new(Fold::load(&store)?);
        Ok(Self { store, fold, dropped: AtomicU64::new(0) })
    }

    /// What the store did not take.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed) + self.store.state().borrow().dropped
    }

    pub(super) fn take(&self, Report { subject, kind, time }: Report) {
        if let record::Kind::Event(event) = &kind {
            tell(&subject.connection, event);
        }
        let record = Record {
            // The store numbers it.
            cursor: 0,
            time: Some(time.to_proto()),
            connection: subject.connection.clone(),
            session: subject.session.clone(),
            labels: subject.labels.clone(),
            kind: Some(kind),
        };
        let octets = record.encode_to_vec();
        let mut fold = self.fold();
        fold.take(&record);
        let fits = octets.len() <= MAXIMUM_VALUE_OCTETS;
        debug_assert!(fits, "a record of {} octets", octets.len());
        if !fits || self.store.append(Entry { time, octets }).is_err() {
            self.count_dropped();
        }
    }

    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(super) fn save_statistics(&self) {
        let mut fold = self.fold();
        let changed = fold.take_changed();
        if !changed.is_empty()
            && let Err(error) = self.store.save_statistics(changed)
        {
            // They are in the log and in memory; the next snapshot has them.
            fold.mark_all_changed();
            tracing::warn!(%error, "statistics were not saved");
        }
    }

    pub(super) fn fold(&self) -> MutexGuard<'_, Fold> {
        self.fold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events are what the agent logs of measurements.
fn tell(connection: &str, event: &Event) {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let cause = event.cause();
    tracing::info!(
        connection = given(connection),
        cause = (cause != LossCause::Unspecified)
            .then(|| cause.as_str_name().trim_start_matches("LOSS_CAUSE_")),
        attempts = (event.attempts > 0).then_some(event.attempts),
        revision = (event.revision > 0).then_some(event.revision),
        detail = given(&event.detail),
        "{}",
        event.r#type().as_str_name().trim_start_matches("EVENT_TYPE_")
    );
}
