//! Results on their way: from the sessions into the store, folded into statistics, and back out to
//! readers. Reporting never waits; what the store cannot take is dropped and counted.

mod block;
mod content;
pub mod convert;
mod event_log;
mod filter;
mod log;
mod reader;
mod report;
mod reports;
mod statistics;
mod surroundings;
mod tail;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use filter::Filter;
pub use reader::{Page, Reader, Start, StreamItem, page};
pub use statistics::{StatisticsQuery, is_statistics_key};
pub use surroundings::{report_pauses, watch_clock, watch_store};

use crate::{
    model::{AgentConfig, ResultKeeping},
    proto::{Event, EventType, Statistics},
    stats::{Figures, ProbeResult, TestResult},
    store::{self, PersistedConnection, ResultStore, Retention, StoreError, StoreState},
    time::{Now, UnixTime},
};
use log::Log;
use report::{Report, ReportKind};
use reports::Reports;
use statistics::{Key, Plan, Plans};

/// Probes that wait for others to fill a record, at most.
pub const PROBES_PER_RECORD: usize = 64;
/// How often statistics are handed to the store. What a crash costs is replayed from the log.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(5);

/// How often intervals are looked at that may be over.
const CLOSE_EVERY: Duration = Duration::from_secs(1);

/// To whom a record belongs, and whether it is stored.
#[derive(Clone, Debug)]
pub struct Subject {
    key: Key,
    stored: Arc<store::Subject>,
    persistent: bool,
}

impl Subject {
    /// Of a session; with an empty name, of a connection as a whole.
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

    /// The agent as a whole.
    pub fn agent() -> Self {
        Self::new("", "", BTreeMap::new(), ResultKeeping::Stored)
    }

    /// The connection that the session is of.
    pub fn of_connection(&self) -> Self {
        let stored = store::Subject { session: String::new(), ..(*self.stored).clone() };
        let key = (stored.connection.clone(), String::new());
        Self { key, stored: Arc::new(stored), persistent: self.persistent }
    }

    /// Name of the connection; empty for the agent as a whole.
    pub fn connection(&self) -> &str {
        &self.key.0
    }

    /// Name of the session; empty for a connection.
    pub fn session(&self) -> &str {
        &self.key.1
    }
}

/// Reads the content of a record as the store has it.
pub fn check_content(entry: &store::Entry) -> Result<(), StoreError> {
    if entry.kind == store::content::NOTHING || content::is_removed(entry) {
        return Ok(());
    }
    content::decode(entry).map(drop)
}

/// The result log with its statistics.
#[derive(Debug)]
pub struct Results {
    log: Arc<Log>,
    reports: Reports,
    boot_id: String,
    plans: Arc<Plans>,
    /// What the store has yet to be told.
    retention: Mutex<Option<Retention>>,
}

impl Results {
    /// Takes up statistics where they were left, and replays what the log has beyond, by what is
    /// configured; where that is not known yet, all sessions are.
    pub fn open(
        store: ResultStore,
        boot_id: String,
        config: Option<&AgentConfig>,
    ) -> Result<Arc<Self>, StoreError> {
        let plans = Arc::new(Plans::default());
        if let Some(config) = config {
            plans.set(statistics::plans(config));
        }
        store.begin_incarnation(&boot_id)?;
        let log = Arc::new(Log::open(store, plans.clone())?);
        let reports = Reports::start(log.clone())
            .map_err(|error| StoreError::Database(format!("its thread: {error}")))?;
        Ok(Arc::new(Self { log, reports, boot_id, plans, retention: Mutex::default() }))
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

    /// Reports a finished test, and the minute by the clock that all of it was in, if it was one.
    pub fn test(
        &self,
        subject: impl Into<Arc<Subject>>,
        result: Box<TestResult>,
        minute: Option<u64>,
        time: UnixTime,
    ) {
        self.report(subject, ReportKind::Test(result, minute), time);
    }

    /// Reports what was sent in a minute of a test that has part in several, and when that began.
    pub fn minute(
        &self,
        subject: impl Into<Arc<Subject>>,
        minute: u64,
        figures: Box<Figures>,
        started: UnixTime,
    ) {
        self.report(subject, ReportKind::Minute(minute, figures), started);
    }

    /// Reports single probes.
    pub fn probes(
        &self,
        subject: impl Into<Arc<Subject>>,
        probes: Vec<ProbeResult>,
        time: UnixTime,
    ) {
        self.report(subject, ReportKind::Probes(probes), time);
    }

    /// Reports something that happened.
    pub fn event(&self, subject: impl Into<Arc<Subject>>, event: Event, time: UnixTime) {
        self.report(subject, ReportKind::Event(Box::new(event)), time);
    }

    fn report(&self, subject: impl Into<Arc<Subject>>, kind: ReportKind, time: UnixTime) {
        self.reports.send(Report { subject: subject.into(), kind, time });
    }

    /// Reports that the agent started, or that a configuration was committed.
    pub fn agent_event(&self, kind: EventType, revision: u64, detail: String, time: UnixTime) {
        let event = Event { r#type: kind.into(), revision, detail, ..Event::default() };
        self.event(Subject::agent(), event, time);
    }

    /// Statistics over finished tests and intervals, by connection, session and scope, with
    /// percentiles.
    pub fn statistics(&self, query: &StatisticsQuery) -> Vec<Statistics> {
        let mut found = self.log.aggregator().statistics(query);
        for statistics in &mut found {
            let percentiles = self.plan(&statistics.connection, &statistics.session).percentiles;
            if let Some(figures) = statistics.figures.as_deref_mut() {
                convert::add_percentiles(figures, &percentiles);
            }
        }
        found
    }

    /// The same, by session and without percentiles, with what their records carry.
    pub fn session_statistics(
        &self,
        query: &StatisticsQuery,
    ) -> Vec<(Arc<store::Subject>, Vec<Statistics>)> {
        self.log.aggregator().session_statistics(query)
    }

    /// Begins the statistics of sessions anew, and writes that into the log; how many.
    pub async fn clear_statistics(
        &self,
        query: &StatisticsQuery,
        time: UnixTime,
    ) -> Result<usize, StoreError> {
        let cleared = self.log.aggregator().clear(query);
        // At once: the log is to say nothing that a restart takes back.
        self.log.save_statistics();
        for ((connection, session), epoch) in &cleared {
            let event = Event {
                r#type: EventType::StatisticsCleared.into(),
                value: epoch.cast_signed(),
                ..Event::default()
            };
            let plan = self.plan(connection, session);
            let subject = Subject::new(connection, session, (*plan.labels).clone(), plan.keeping);
            self.event(subject, event, time);
        }
        // The events take the way of all others: who is answered finds them, also after a kill.
        self.flush().await?;
        Ok(cleared.len())
    }

    /// How often the statistics of a session were begun anew.
    pub fn epoch(&self, connection: &str, session: &str) -> u64 {
        self.log.aggregator().epoch(&(connection.to_owned(), session.to_owned()))
    }

    /// What happened at this time makes intervals other than whole.
    fn disturbed(&self, at: UnixTime) {
        self.log.aggregator().disturbed(at);
    }

    fn plan(&self, connection: &str, session: &str) -> Plan {
        self.plans.of(&(connection.to_owned(), session.to_owned()))
    }

    /// What comes from now on is of this configuration. Quick: others wait.
    pub fn expect(&self, config: &AgentConfig) {
        self.plans.set(statistics::plans(config));
    }

    /// Forgets statistics of sessions that are no longer expected, makes the others as is configured
    /// now, and keeps records as long.
    pub fn follow_config(&self, config: &AgentConfig) {
        let forgotten = self.log.aggregator().follow();
        if forgotten {
            // At once: what is configured under the same name again has nothing to do with it.
            self.log.save_statistics();
        }
        *self.untold_retention() = Some(retention(config));
        self.tell_retention();
    }

    /// The store takes it where it has room in its queue; if not, later.
    fn tell_retention(&self) {
        let mut untold = self.untold_retention();
        if let Some(retention) = untold.clone()
            && self.log.store.set_retention(retention).is_ok()
        {
            *untold = None;
        }
    }

    fn untold_retention(&self) -> MutexGuard<'_, Option<Retention>> {
        self.retention.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the statistics as they are now survive the death of this process: whoever is told
    /// of them must not see them go back. Where the store does not take them, there is nothing to
    /// wait for.
    pub async fn settle(&self) {
        self.log.save_statistics();
        if let Err(error) = self.log.store.flush().await {
            tracing::debug!(%error, "statistics are told that are not stored");
        }
    }

    /// Returns the persisted state of a connection; a default one where there is none.
    pub fn persisted_connection(&self, name: &str) -> PersistedConnection {
        self.log.store.connection(name)
    }

    /// Changes the persisted state of a connection; returns whether it differs from before. It is
    /// stored after the events reported so far, within tens of milliseconds, and never waits. After
    /// [`Self::flush`] it survives the death of this process.
    pub fn persist_connection(
        &self,
        name: &str,
        change: impl FnOnce(&mut PersistedConnection),
    ) -> bool {
        let is_changed = self.log.store.update_connection(name, change);
        if is_changed {
            self.reports.save_connection(&self.log, name);
        }
        is_changed
    }

    /// Removes the persisted states of connections that are no longer configured.
    pub fn retain_persisted(&self, is_configured: impl Fn(&str) -> bool) {
        for name in self.log.store.retain_connections(is_configured) {
            self.reports.save_connection(&self.log, &name);
        }
    }

    /// Waits until all that was reported so far survives the death of this process.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.reports.settle().await;
        self.log.store.flush().await
    }

    /// Moves a consumer forward, never back; returns where it is then.
    pub async fn acknowledge(&self, consumer: &str, cursor: u64) -> Result<u64, StoreError> {
        self.log.store.move_consumer(consumer, cursor).await
    }

    /// Lists the consumers with their positions.
    pub async fn consumers(self: &Arc<Self>) -> Result<Vec<(String, u64)>, StoreError> {
        let results = self.clone();
        store::blocking(move || results.log.store.consumers()).await
    }

    /// Forgets a consumer; whether there was one.
    pub async fn delete_consumer(&self, name: &str) -> Result<bool, StoreError> {
        self.log.store.delete_consumer(name).await
    }

    /// Closes intervals that are over, and hands statistics to the store, again and again until
    /// the end.
    pub async fn keep_statistics(self: Arc<Self>, now: fn() -> Now, token: CancellationToken) {
        let mut save = tokio::time::interval(SNAPSHOT_EVERY);
        let mut close = tokio::time::interval(CLOSE_EVERY);
        let mut dropped = 0;
        loop {
            tokio::select! {
                _ = save.tick() => self.log.save_statistics(),
                _ = close.tick() => {
                    let now = now().unix;
                    if std::mem::replace(&mut dropped, self.reports.dropped()) != dropped {
                        self.disturbed(now);
                    }
                    self.close_intervals(now);
                    self.tell_retention();
                }
                () = token.cancelled() => return,
            }
        }
    }

    /// Intervals that are over by now become records.
    pub fn close_intervals(&self, now: UnixTime) {
        self.log.close_intervals(now);
    }

    /// Writes everything durably and ends the store. Blocks.
    pub fn close(&self) {
        self.reports.end();
        self.log.save_statistics();
        self.log.store.close();
    }
}

/// How long records are kept, in the words of the store.
pub fn retention(config: &AgentConfig) -> Retention {
    let ages = config
        .connections
        .iter()
        .filter_map(|(name, connection)| Some((name.clone(), connection.retention_age_ns?)));
    let storage = &config.storage;
    Retention::of_all(storage.retention_age_ns, storage.retention_bytes)
        .with_connection_ages(ages.collect())
}
