//! Results on their way: from the sessions into the store, folded into statistics, and back out to
//! readers. Reporting never waits; what the store cannot take is dropped and counted.

mod filter;
mod reader;
mod statistics;
mod surroundings;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use filter::Filter;
pub use reader::{Page, Reader, Start, StreamItem, page};
pub use surroundings::{watch_clock, watch_store};

use crate::{
    model::{AgentConfig, StorageConfig},
    proto::{
        Event, EventType, LossCause, ProbeResult, ProbeResults, Record, Statistics, TestResult,
        record,
    },
    store::{Entry, MAXIMUM_VALUE_OCTETS, ResultStore, Retention, StoreError, StoreState},
    time::UnixTime,
};
use statistics::Fold;

/// Largest number of probes in one record: with the longest names and labels it stays below what
/// the store takes as a value.
pub const PROBES_PER_RECORD: usize = 30;
/// How often statistics are handed to the store. What a crash costs is replayed from the log.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(5);

/// To whom a record belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Name of the connection; empty for the agent as a whole.
    pub connection: String,
    /// Name of the session; empty for a connection.
    pub session: String,
    /// What its records carry.
    pub labels: BTreeMap<String, String>,
}

/// The result log with its statistics.
#[derive(Debug)]
pub struct Results {
    store: ResultStore,
    boot_id: String,
    /// Folding and handing to the store happen under one lock, so that a snapshot of statistics
    /// and its place in the log agree.
    fold: Mutex<Fold>,
    dropped: AtomicU64,
}

impl Results {
    /// Takes up statistics where they were left, and replays what the log has beyond.
    pub fn open(store: ResultStore, boot_id: String) -> Result<Arc<Self>, StoreError> {
        let fold = Fold::load(&store)?;
        Ok(Arc::new(Self { store, boot_id, fold: Mutex::new(fold), dropped: AtomicU64::new(0) }))
    }

    /// The agent, for ever.
    pub fn agent_id(&self) -> &str {
        self.store.agent_id()
    }

    /// What was wrong with the store when it was opened; empty when nothing was.
    pub fn damage(&self) -> &str {
        self.store.damage()
    }

    /// This run of the agent.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// What the store holds; changes when there is more to read.
    pub fn state(&self) -> watch::Receiver<StoreState> {
        self.store.state()
    }

    /// Records that did not come into the log.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed) + self.store.state().borrow().dropped
    }

    /// Reports a finished test.
    pub fn test(&self, subject: &Subject, result: TestResult, time: UnixTime) {
        self.report(subject, record::Kind::TestResult(result), time);
    }

    /// Reports single probes, at most [`PROBES_PER_RECORD`].
    pub fn probes(&self, subject: &Subject, probes: Vec<ProbeResult>, time: UnixTime) {
        self.report(subject, record::Kind::ProbeResults(ProbeResults { probes }), time);
    }

    /// Reports something that happened.
    pub fn event(&self, subject: &Subject, event: Event, time: UnixTime) {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let cause = event.cause();
        tracing::info!(
            connection = given(&subject.connection),
            cause = (cause != LossCause::Unspecified)
                .then(|| cause.as_str_name().trim_start_matches("LOSS_CAUSE_")),
            attempts = (event.attempts > 0).then_some(event.attempts),
            revision = (event.revision > 0).then_some(event.revision),
            detail = given(&event.detail),
            "{}",
            event.r#type().as_str_name().trim_start_matches("EVENT_TYPE_")
        );
        self.report(subject, record::Kind::Event(event), time);
    }

    /// Reports that the agent started, or that a configuration was committed.
    pub fn agent_event(&self, kind: EventType, revision: u64, detail: String, time: UnixTime) {
        let event = Event { r#type: kind.into(), revision, detail, ..Event::default() };
        self.event(&Subject::default(), event, time);
    }

    fn report(&self, subject: &Subject, kind: record::Kind, time: UnixTime) {
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
        let mut fold = self.lock();
        fold.take(&record);
        let fits = octets.len() <= MAXIMUM_VALUE_OCTETS;
        debug_assert!(fits, "a record of {} octets", octets.len());
        if !fits || self.store.append(Entry { time, octets }).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Statistics over finished tests, by connection, session and scope.
    pub fn statistics(&self) -> Vec<Statistics> {
        self.lock().all()
    }

    /// Forgets the statistics of sessions that are no longer configured, and keeps records as
    /// long as is configured now.
    pub fn follow_config(&self, config: &AgentConfig) {
        let configured = config.connections.values().flat_map(|connection| {
            let active = connection.sessions.iter().map(|session| &session.name);
            let names = active.chain(&connection.inactive_sessions);
            names.map(|session| (connection.name.clone(), session.clone()))
        });
        self.lock().retain(configured.collect());
        if let Err(error) = self.store.set_retention(retention(&config.storage)) {
            tracing::warn!(%error, "the new retention does not hold yet");
        }
    }

    /// Moves a consumer forward, never back; returns where it is then.
    pub async fn acknowledge(&self, consumer: &str, cursor: u64) -> Result<u64, StoreError> {
        self.store.move_consumer(consumer, cursor).await
    }

    /// The consumers with their positions.
    pub fn consumers(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.store.consumers()
    }

    /// Forgets a consumer; whether there was one.
    pub async fn delete_consumer(&self, name: &str) -> Result<bool, StoreError> {
        self.store.delete_consumer(name).await
    }

    /// Hands statistics to the store, again and again until the end, and once more then.
    pub async fn keep_statistics(self: Arc<Self>, token: CancellationToken) {
        let mut tick = tokio::time::interval(SNAPSHOT_EVERY);
        loop {
            tokio::select! {
                _ = tick.tick() => self.save_statistics(),
                () = token.cancelled() => return,
            }
        }
    }

    /// Writes everything durably and ends the store. Blocks.
    pub fn close(&self) {
        self.save_statistics();
        self.store.close();
    }

    fn save_statistics(&self) {
        let mut fold = self.lock();
        let changed = fold.take_changed();
        if !changed.is_empty()
            && let Err(error) = self.store.save_statistics(changed)
        {
            // They are in the log and in memory; the next snapshot has them.
            fold.mark_all_changed();
            tracing::warn!(%error, "statistics were not saved");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Fold> {
        self.fold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long records are kept, in the words of the store.
pub fn retention(storage: &StorageConfig) -> Retention {
    Retention { age_ns: storage.retention_age_ns, octets: storage.retention_octets }
}
