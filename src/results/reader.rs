//! Readers of the log: pages, and streams that continue from stored to new records without a gap.
//! Readers pull records. A slow reader gets records from disk and never delays a measurement.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Filter, Results, content, convert};
use crate::{
    proto::{Record, record},
    store::{StoreError, StoreState},
    time::UnixTime,
};

/// Largest number of records in a message of a stream.
const BATCH: usize = 500;
/// Number of bytes read at once, so that a message of a stream is shorter than the default limit of
/// clients (4 MiB).
const READ_BYTES: usize = 1 << 20;
/// Number of records examined in one read, including those that the filter does not select.
const READ_RECORDS: usize = 4096;

/// Page of the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Records in rising order of their cursors.
    pub records: Vec<Record>,
    /// Cursor up to which the log was read.
    pub read_up_to: u64,
}

impl Page {
    /// Adds a gap, merged with a gap directly before it.
    fn push_gap(&mut self, first_cursor: u64, last_cursor: u64) {
        let before = self.records.pop_if(|last| matches!(last.kind, Some(record::Kind::Gap(_))));
        let first_cursor = match before.and_then(|before| before.kind) {
            Some(record::Kind::Gap(gap)) => gap.first_cursor,
            _ => first_cursor,
        };
        self.records.push(content::gap(first_cursor, last_cursor));
    }
}

/// Start of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// After the record with this cursor.
    After(u64),
    /// At the earliest stored record.
    Earliest,
    /// At the next new record.
    Latest,
    /// At the earliest record of this time or a later one.
    Since(UnixTime),
    /// After the last record that this consumer acknowledged.
    Consumer(String),
}

/// Item of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamItem {
    /// First item: the stream has records from this cursor on.
    Opening(u64),
    /// Records in rising order of their cursors.
    Batch(Vec<Record>),
    /// End of the stored records, with the latest cursor.
    Sync(u64),
    /// Silence for the heartbeat interval, with the latest cursor.
    Heartbeat(u64),
}

/// Reads a page of at most `limit` records after the cursor `after`: the first ones or, with `latest`,
/// the last ones.
pub async fn page(
    results: &Arc<Results>,
    filter: &Filter,
    after: u64,
    limit: usize,
    latest: bool,
) -> Result<Page, StoreError> {
    let newest = results.state().borrow().newest;
    let reads = results.reads.clone();
    let (results, filter) = (results.clone(), filter.clone());
    let read = reads.blocking(move || {
        let (mut first, mut last) = (after, newest);
        if let Some(times) = filter.times() {
            let cursors = results.log.store.cursors_at(times.clone())?;
            first = first.max(cursors.start.saturating_sub(1));
            last = last.min(cursors.end.saturating_sub(1));
        }
        let mut page = if first >= last {
            Page { records: Vec::new(), read_up_to: last }
        } else if latest {
            results.latest_records(&filter, first, last, limit)?
        } else {
            results.records_after(&filter, first, last, limit, after > 0)?
        };
        if page.read_up_to >= last {
            page.read_up_to = newest.max(after);
        }
        Ok(page)
    });
    read.await
}

/// Stream of records, which its caller pulls.
#[derive(Debug)]
pub struct Reader {
    results: Arc<Results>,
    filter: Filter,
    state: watch::Receiver<StoreState>,
    heartbeat: Duration,
    /// Cursor up to which all records are delivered.
    position: u64,
    /// True if missing cursors after `position` are reported as a gap. False at the start of the log,
    /// where earlier records may have been removed long ago.
    reports_gaps: bool,
    opened: bool,
    synced: bool,
    last_item: Instant,
}

impl Reader {
    /// Opens a stream at `start`.
    pub async fn open(
        results: Arc<Results>,
        filter: Filter,
        start: Start,
        heartbeat: Duration,
    ) -> Result<Self, StoreError> {
        let state = results.state();
        let newest = state.borrow().newest;
        let (position, reports_gaps) = match start {
            Start::After(cursor) => (cursor, true),
            Start::Earliest => (0, false),
            Start::Latest => (newest, true),
            Start::Since(time) => {
                let (results, reads) = (results.clone(), results.reads.clone());
                let times = time..UnixTime(u64::MAX);
                let cursors = reads.blocking(move || results.log.store.cursors_at(times)).await?;
                (cursors.start.saturating_sub(1).min(newest), true)
            }
            Start::Consumer(name) => {
                let (results, reads) = (results.clone(), results.reads.clone());
                let position = reads.blocking(move || results.log.store.consumer(&name)).await?;
                (position.unwrap_or(0), position.is_some())
            }
        };
        let (opened, synced, last_item) = (false, false, Instant::now());
        Ok(Self {
            results,
            filter,
            state,
            heartbeat,
            position,
            reports_gaps,
            opened,
            synced,
            last_item,
        })
    }

    /// Returns the cursor up to which every record was delivered or is not selected.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Returns the next item. Cancel-safe.
    pub async fn next(&mut self) -> Result<StreamItem, StoreError> {
        let item = self.find_next().await?;
        self.last_item = Instant::now();
        Ok(item)
    }

    async fn find_next(&mut self) -> Result<StreamItem, StoreError> {
        if !self.opened {
            self.opened = true;
            let earliest = self.state.borrow().earliest;
            let first = self.position.saturating_add(1);
            let first = if self.reports_gaps { first } else { first.max(earliest) };
            return Ok(StreamItem::Opening(first));
        }
        loop {
            let newest = self.state.borrow_and_update().newest;
            if self.position < newest {
                let (results, filter) = (self.results.clone(), self.filter.clone());
                let (after, gaps) = (self.position, self.reports_gaps);
                let read = self
                    .results
                    .reads
                    .blocking(move || results.records_after(&filter, after, newest, BATCH, gaps));
                let page = read.await?;
                self.position = page.read_up_to;
                self.reports_gaps = true;
                if !page.records.is_empty() {
                    return Ok(StreamItem::Batch(page.records));
                }
                continue;
            }
            if !self.synced {
                self.synced = true;
                return Ok(StreamItem::Sync(newest));
            }
            tokio::select! {
                changed = self.state.changed() => {
                    changed.map_err(|_| StoreError::Unavailable)?;
                }
                () = sleep_until(self.last_item + self.heartbeat) => {
                    return Ok(StreamItem::Heartbeat(newest));
                }
            }
        }
    }
}

impl Results {
    /// Reads selected records after `after` and up to `newest`, with the gaps between them.
    fn records_after(
        &self,
        filter: &Filter,
        after: u64,
        newest: u64,
        limit: usize,
        mut reports_gaps: bool,
    ) -> Result<Page, StoreError> {
        let mut page = Page { records: Vec::new(), read_up_to: after };
        // Records that retention removed are a gap, even if they are still in memory.
        let kept = {
            let state = self.log.store.state();
            let state = state.borrow();
            after + 1 >= state.earliest && after >= state.trimmed_up_to
        };
        let live = self.log.tail.entries(after, newest, READ_RECORDS).filter(|_| kept);
        let entries = match live {
            Some(entries) => entries,
            None => self.log.store.entries(after, newest, READ_RECORDS, READ_BYTES, false)?,
        };
        let is_at_end = entries.is_empty();
        let mut bytes = 0;
        for entry in entries {
            bytes += entry.content.len();
            if page.records.len() >= limit || bytes > READ_BYTES && !page.records.is_empty() {
                return Ok(page);
            }
            if reports_gaps && entry.cursor > page.read_up_to + 1 {
                page.push_gap(page.read_up_to + 1, entry.cursor - 1);
                page.read_up_to = entry.cursor - 1;
                if page.records.len() >= limit {
                    return Ok(page);
                }
            }
            if filter.selects(&entry) {
                match content::decode(&entry) {
                    Ok(record) => page.records.push(self.add_calculated_fields(record)),
                    // The record was removed by retention or damaged on disk.
                    Err(_) if reports_gaps => page.push_gap(entry.cursor, entry.cursor),
                    Err(_) => {}
                }
            }
            reports_gaps = true;
            page.read_up_to = entry.cursor;
        }
        if is_at_end {
            if reports_gaps && after < newest {
                page.push_gap(after + 1, newest);
            }
            page.read_up_to = after.max(newest);
        }
        Ok(page)
    }

    /// Reads at most `limit` selected records after `after`: the latest ones up to `newest`.
    fn latest_records(
        &self,
        filter: &Filter,
        after: u64,
        newest: u64,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let mut records = Vec::new();
        let mut up_to = newest;
        'reading: loop {
            let entries = self.log.store.entries(after, up_to, READ_RECORDS, READ_BYTES, true)?;
            let Some(last) = entries.last() else { break };
            up_to = last.cursor.saturating_sub(1);
            for entry in entries {
                if filter.selects(&entry)
                    && let Ok(record) = content::decode(&entry)
                {
                    records.push(self.add_calculated_fields(record));
                    if records.len() >= limit {
                        break 'reading;
                    }
                }
            }
        }
        records.reverse();
        Ok(Page { records, read_up_to: newest.max(after) })
    }

    /// Adds the fields that are calculated for each answer and never stored.
    fn add_calculated_fields(&self, mut record: Record) -> Record {
        record.incarnation =
            self.log.store.incarnation(record.cursor).map_or_else(String::new, |id| id.to_string());
        let figures = match &mut record.kind {
            Some(record::Kind::TestResult(result)) => result.figures.as_deref_mut(),
            Some(record::Kind::IntervalResult(result)) => result.figures.as_deref_mut(),
            Some(record::Kind::ProbeResults(_) | record::Kind::Event(_) | record::Kind::Gap(_))
            | None => None,
        };
        if let Some(figures) = figures {
            convert::add_percentiles(
                figures,
                &self.plan(&record.connection, &record.session).percentiles,
            );
        }
        record
    }
}
