//! Results on their way: from the sessions into the store, folded into statistics, and back out to
//! readers. Reporting never waits; what the store cannot take is dropped and counted.

mod filter;
mod log;
mod reader;
mod reports;
mod statistics;
mod surroundings;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use filter::Filter;
pub use reader::{Page, Reader, Start, StreamItem, page};
pub use surroundings::{watch_clock, watch_store};

use crate::{
    model::{AgentConfig, StorageConfig},
    proto::{Event, EventType, ProbeResult, ProbeResults, Statistics, TestResult, record},
    store::{ResultStore, Retention, StoreError, StoreState},
    time::UnixTime,
};
use log::Log;
use reports::{Report, Reports};

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
    log: Arc<Log>,
    reports: Reports,
    boot_id: String,
}

impl Results {
    /// Takes up statistics where they were left, and replays what the log has beyond.
    pub fn open(store: ResultStore, boot_id: String) -> Result<Arc<Self>, StoreError> {
        let log = Arc::new(Log::open(store)?);
        let reports = Reports::start(log.clone())
            .map_err(|error| StoreError::Database(format!("its thread: {error}")))?;
        Ok(Arc::new(Self { log, reports, boot_id }))
    }

    /// The agent, for ever.
    pub fn agent_id(&self) -> &str {
        self.log.store.agent_id()
    }

    /// What was wrong with the store when it was opened; empty when nothing was.
    pub fn damage(&self) -> &str {
        self.log.store.damage()
    }

    /// This run of the agent.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// What the store holds; changes when there is more to read.
    pub fn state(&self) -> watch::Receiver<StoreState> {
        self.log.store.state()
    }

    /// Records that did not come into the log.
    pub fn dropped(&self) -> u64 {
        self.reports.dropped() + self.log.dropped()
    }

    /// Reports a finished test.
    pub fn test(&self, subject: impl Into<Arc<Subject>>, result: TestResult, time: UnixTime) {
        self.report(subject, record::Kind::TestResult(result), time);
    }

    /// Reports single probes, at most [`PROBES_PER_RECORD`].
    pub fn probes(
        &self,
        subject: impl Into<Arc<Subject>>,
        probes: Vec<ProbeResult>,
        time: UnixTime,
    ) {
        self.report(subject, record::Kind::ProbeResults(ProbeResults { probes }), time);
    }

    /// Reports something that happened.
    pub fn event(&self, subject: impl Into<Arc<Subject>>, event: Event, time: UnixTime) {
        self.report(subject, record::Kind::Event(event), time);
    }

    fn report(&self, subject: impl Into<Arc<Subject>>, kind: record::Kind, time: UnixTime) {
        self.reports.send(Report { subject: subject.into(), kind, time });
    }

    /// Reports that the agent started, or that a configuration was committed.
    pub fn agent_event(&self, kind: EventType, revision: u64, detail: String, time: UnixTime) {
        let event = Event { r#type: kind.into(), revision, detail, ..Event::default() };
        self.event(Subject::default(), event, time);
    }

    /// Statistics over finished tests, by connection, session and scope.
    pub fn statistics(&self) -> Vec<Statistics> {
        self.log.fold().all()
    }

    /// Forgets the statistics of sessions that are no longer configured, and keeps records as
    /// long as is configured now.
    pub fn follow_config(&self, config: &AgentConfig) {
        let configured = config.connections.values().flat_map(|connection| {
            let active = connection.sessions.iter().map(|session| &session.name);
            let names = active.chain(&connection.inactive_sessions);
            names.map(|session| (connection.name.clone(), session.clone()))
        });
        self.log.fold().retain(configured.collect());
        if let Err(error) = self.log.store.set_retention(retention(&config.storage)) {
            tracing::warn!(%error, "the new retention does not hold yet");
        }
    }

    /// Moves a consumer forward, never back; returns where it is then.
    pub async fn acknowledge(&self, consumer: &str, cursor: u64) -> Result<u64, StoreError> {
        self.log.store.move_consumer(consumer, cursor).await
    }

    /// The consumers with their positions.
    pub fn consumers(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.log.store.consumers()
    }

    /// Forgets a consumer; whether there was one.
    pub async fn delete_consumer(&self, name: &str) -> Result<bool, StoreError> {
        self.log.store.delete_consumer(name).await
    }

    /// Hands statistics to the store, again and again until the end, and once more then.
    pub async fn keep_statistics(self: Arc<Self>, token: CancellationToken) {
        let mut tick = tokio::time::interval(SNAPSHOT_EVERY);
        loop {
            tokio::select! {
                _ = tick.tick() => self.log.save_statistics(),
                () = token.cancelled() => return,
            }
        }
    }

    /// Writes everything durably and ends the store. Blocks.
    pub fn close(&self) {
        self.reports.end();
        self.log.save_statistics();
        self.log.store.close();
    }
}

/// How long records are kept, in the words of the store.
pub fn retention(storage: &StorageConfig) -> Retention {
    Retention { age_ns: storage.retention_age_ns, octets: storage.retention_octets }
}
