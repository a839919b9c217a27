//! Results: the path from sessions to the store, statistics, and readers. Reporting never waits;
//! records that the store cannot accept are dropped and counted.

mod block;
mod content;
pub mod convert;
mod event_log;
mod filter;
mod host_events;
mod log;
mod reader;
mod report;
mod reports;
mod statistics;
mod subject;
mod tail;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use filter::Filter;
pub use host_events::{report_host, report_pauses, watch_host, watch_store};
pub use reader::{Page, Reader, Start, StreamItem, page};
pub use statistics::{StatisticsQuery, is_statistics_key};
pub use subject::Subject;

use crate::{
    model::AgentConfig,
    proto::{Event, EventType, Statistics},
    stats::{Figures, ProbeResult, TestResult},
    store::{self, PersistedConnection, ReadLimit, ResultStore, Retention, StoreError, StoreState},
    time::{Now, UnixTime},
};
use log::Log;
use report::{Report, ReportKind};
use reports::Reports;
use statistics::{Plan, Plans};

/// Largest number of probes in a record.
pub const PROBES_PER_RECORD: usize = 64;
/// Interval at which statistics are handed to the store. After a crash, later results are replayed
/// from the log.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of host changes that are kept; the oldest are removed first.
const HOST_CHANGES: usize = 16;
/// Interval at which ended intervals are closed.
const CLOSE_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between two steps of closing intervals, in which reports are appended.
const REPORTS_PAUSE: Duration = Duration::from_millis(2);

/// Checks that the content of a stored record can be decoded.
pub fn check_content(entry: &store::Entry) -> Result<(), StoreError> {
    if entry.kind == store::content::NOTHING || content::is_removed(entry) {
        return Ok(());
    }
    content::decode(entry).map(drop)
}

/// Result log with its statistics.
#[derive(Debug)]
pub struct Results {
    log: Arc<Log>,
    reports: Reports,
    boot_id: String,
    plans: Arc<Plans>,
    /// Retention that the store has not accepted yet.
    retention: Mutex<Option<Retention>>,
    /// Facts of the host that changed; see [`Self::host_changes`].
    host_changes: Mutex<Vec<String>>,
    reads: ReadLimit,
}

impl Results {
    /// Loads the statistics and replays later results from the log. `config` selects the sessions
    /// to load; `None` selects all.
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
        Ok(Arc::new(Self {
            log,
            reports,
            boot_id,
            plans,
            retention: Mutex::default(),
            host_changes: Mutex::default(),
            reads: ReadLimit::default(),
        }))
    }

    /// Returns the identifier of the agent, made at its first start.
    pub fn agent_id(&self) -> &str {
        self.log.store.agent_id()
    }

    /// Returns the damage that was found when the store was opened; empty if there was none.
    pub fn damage(&self) -> &str {
        self.log.store.damage()
    }

    /// Returns the identifier of this run of the agent.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Returns the facts of the host that differ from those of the previous start, or that changed
    /// since this one.
    pub fn host_changes(&self) -> Vec<String> {
        self.host_changes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_host_changes(&self, changes: Vec<String>) {
        let mut known = self.host_changes.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(changes);
        let extra = known.len().saturating_sub(HOST_CHANGES);
        known.drain(..extra);
    }

    /// Begins another incarnation for later records. After a large clock step or another machine
    /// id, this agent may be a copy of the one that wrote the earlier records.
    fn change_incarnation(&self) {
        let id = uuid::Uuid::new_v4().to_string();
        if let Err(error) = self.log.store.change_incarnation(id) {
            tracing::warn!(%error, "failed to begin another incarnation");
        }
    }

    /// Removes intervals in the future, which were recorded while the clock was ahead.
    fn forget_future(&self, now: UnixTime) {
        self.log.aggregator().forget_future(now);
    }

    /// Returns the state of the store, which changes when there are new records.
    pub fn state(&self) -> watch::Receiver<StoreState> {
        self.log.store.state()
    }

    /// Returns the number of records that are not in the log.
    pub fn dropped(&self) -> u64 {
        self.reports.dropped() + self.log.dropped()
    }

    /// Reports a finished test, and its minute by the clock if all of it was in one.
    pub fn test(
        &self,
        subject: impl Into<Arc<Subject>>,
        result: Box<TestResult>,
        minute: Option<u64>,
        time: UnixTime,
    ) {
        self.report(subject, ReportKind::Test(result, minute), time);
    }

    /// Reports the figures of one minute of a longer test that began at `started`.
    pub fn minute(
        &self,
        subject: impl Into<Arc<Subject>>,
        minute: u64,
        figures: Box<Figures>,
        started: UnixTime,
    ) {
        self.report(subject, ReportKind::Minute(minute, figures), started);
    }

    /// Reports the results of single probes.
    pub fn probes(
        &self,
        subject: impl Into<Arc<Subject>>,
        probes: Vec<ProbeResult>,
        time: UnixTime,
    ) {
        self.report(subject, ReportKind::Probes(probes), time);
    }

    /// Reports an event of the subject.
    pub fn event(&self, subject: impl Into<Arc<Subject>>, event: Event, time: UnixTime) {
        self.report(subject, ReportKind::Event(Box::new(event)), time);
    }

    fn report(&self, subject: impl Into<Arc<Subject>>, kind: ReportKind, time: UnixTime) {
        self.reports.send(Report { subject: subject.into(), kind, time });
    }

    /// Reports an event of the agent as a whole, with a revision.
    pub fn agent_event(&self, kind: EventType, revision: u64, detail: String, time: UnixTime) {
        let event = Event { r#type: kind.into(), revision, detail, ..Event::default() };
        self.event(Subject::agent(), event, time);
    }

    /// Returns [`Self::statistics`], off the workers of the runtime.
    pub async fn read_statistics(
        self: &Arc<Self>,
        query: StatisticsQuery,
    ) -> Result<Vec<Statistics>, StoreError> {
        let results = self.clone();
        self.reads.blocking(move || Ok(results.statistics(&query))).await
    }

    /// Returns statistics of finished tests and intervals, by connection, session and scope, with
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

    /// Returns the same statistics by session, without percentiles, with the labels of each
    /// session.
    pub fn session_statistics(
        &self,
        query: &StatisticsQuery,
    ) -> Vec<(Arc<store::Subject>, Vec<Statistics>)> {
        self.log.aggregator().session_statistics(query)
    }

    /// Resets the statistics of sessions and logs an event for each. Returns the number of
    /// sessions.
    pub async fn clear_statistics(
        &self,
        query: &StatisticsQuery,
        time: UnixTime,
    ) -> Result<usize, StoreError> {
        let cleared = self.log.aggregator().clear(query);
        // Saved before the events are reported, so that a restart does not undo a reported reset.
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
        // The events pass through the queue. After the flush the caller finds them in the log, also
        // after a kill.
        match self.flush().await {
            // The reset is stored when the database works again.
            Ok(()) | Err(StoreError::Database(_)) => Ok(cleared.len()),
            Err(error) => Err(error),
        }
    }

    /// Returns the number of resets of the statistics of a session.
    pub fn epoch(&self, connection: &str, session: &str) -> u64 {
        self.log.aggregator().epoch(&(connection.to_owned(), session.to_owned()))
    }

    /// Marks the intervals around a time as suspect.
    fn mark_suspect(&self, at: UnixTime) {
        self.log.aggregator().mark_suspect(at);
    }

    fn plan(&self, connection: &str, session: &str) -> Plan {
        self.plans.for_session(&(connection.to_owned(), session.to_owned()))
    }

    /// Sets the configuration of results that arrive from now on. Does not block, because callers
    /// wait for it.
    pub fn expect(&self, config: &AgentConfig) {
        self.plans.set(statistics::plans(config));
    }

    /// Removes statistics of sessions that are no longer configured, and applies the configured
    /// sizes and retention to the others.
    pub fn follow_config(&self, config: &AgentConfig) {
        let forgotten = self.log.aggregator().follow();
        if forgotten {
            // Saved before a session of the same name can be configured again.
            self.log.save_statistics();
        }
        *self.pending_retention() = Some(retention(config));
        self.send_retention();
    }

    /// Passes the retention to the store, or leaves it for later if the store's queue is full.
    fn send_retention(&self) {
        let mut pending = self.pending_retention();
        if let Some(retention) = pending.clone()
            && self.log.store.set_retention(retention).is_ok()
        {
            *pending = None;
        }
    }

    fn pending_retention(&self) -> MutexGuard<'_, Option<Retention>> {
        self.retention.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Persists the current statistics, so that a client does not see them decrease after a crash. If
    /// the store fails, the failure is logged.
    pub async fn persist_statistics(&self) {
        self.log.save_statistics();
        if let Err(error) = self.log.store.flush().await {
            tracing::debug!(%error, "failed to persist statistics before they are shown");
        }
    }

    /// Returns the persisted state of a connection; a default one if there is none.
    pub fn persisted_connection(&self, name: &str) -> PersistedConnection {
        self.log.store.connection(name)
    }

    /// Changes the persisted state of a connection; returns true if it has changed. It is
    /// stored after the events reported so far, within tens of milliseconds, and never waits. After
    /// [`Self::flush`] it survives a crash of the agent.
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

    /// Waits until all reports so far are stored and survive a crash of the agent.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.reports.wait_until_logged().await;
        self.log.store.flush().await
    }

    /// Moves a consumer forward, never backward; returns its position.
    pub async fn acknowledge(&self, consumer: &str, cursor: u64) -> Result<u64, StoreError> {
        self.log.store.move_consumer(consumer, cursor).await
    }

    /// Lists the consumers with their positions.
    pub async fn consumers(self: &Arc<Self>) -> Result<Vec<(String, u64)>, StoreError> {
        let results = self.clone();
        self.reads.blocking(move || results.log.store.consumers()).await
    }

    /// Removes a consumer; returns true if it existed.
    pub async fn delete_consumer(&self, name: &str) -> Result<bool, StoreError> {
        self.log.store.delete_consumer(name).await
    }

    /// Closes ended intervals and hands statistics to the store, until `token` is cancelled.
    pub async fn keep_statistics(self: Arc<Self>, now: fn() -> Now, token: CancellationToken) {
        let mut save = tokio::time::interval(SNAPSHOT_INTERVAL);
        let mut close = tokio::time::interval(CLOSE_INTERVAL);
        let mut dropped = 0;
        loop {
            tokio::select! {
                _ = save.tick() => self.log.save_statistics(),
                _ = close.tick() => {
                    let now = now().unix;
                    if std::mem::replace(&mut dropped, self.reports.dropped()) != dropped {
                        self.mark_suspect(now);
                    }
                    tokio::select! {
                        () = self.close_intervals(now) => {}
                        () = token.cancelled() => return,
                    }
                    self.send_retention();
                }
                () = token.cancelled() => return,
            }
        }
    }

    /// Appends records of the intervals that have ended, in steps between which reports are
    /// appended. Cancel-safe: the next call continues.
    pub async fn close_intervals(&self, now: UnixTime) {
        let mut after = None;
        while let Some(key) = self.log.close_intervals(now, after.as_ref()) {
            after = Some(key);
            tokio::time::sleep(REPORTS_PAUSE).await;
        }
    }

    /// Writes everything durably and ends the store. Blocks.
    pub fn close(&self) {
        self.reports.end();
        self.log.save_statistics();
        self.log.store.close();
    }
}

/// Converts the retention of a configuration to that of the store.
pub fn retention(config: &AgentConfig) -> Retention {
    let ages = config
        .connections
        .iter()
        .filter_map(|(name, connection)| Some((name.clone(), connection.retention_age_ns?)));
    let storage = &config.storage;
    Retention::of_all(storage.retention_age_ns, storage.retention_bytes)
        .with_disk_quota(storage.maximum_disk_bytes)
        .with_connection_ages(ages.collect())
}
