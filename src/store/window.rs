//! Window of the log: a database for a span of time or size, with pages of records and their
//! subjects. A window is removed as a whole with its files, because sled does not free the space of
//! single records. Damage to the files affects only this window.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use super::{
    StoreError,
    layout::{Summary, WindowName},
    pool::{Files, Pool},
};
use crate::time::UnixTime;

/// List of windows, oldest first. A reader keeps a snapshot of the list.
pub(super) type WindowList = Arc<[Arc<Window>]>;

/// Returns a snapshot of the list.
pub(super) fn read(list: &RwLock<WindowList>) -> WindowList {
    list.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Window of the log: its figures, and access to its database.
#[derive(Debug)]
pub(super) struct Window {
    pool: Arc<Pool>,
    pub(super) name: WindowName,
    /// Time of the first record.
    begun_ns: u64,
    earliest_ns: AtomicU64,
    latest_ns: AtomicU64,
    /// Maximum time by which a record is earlier than a preceding one.
    disorder_ns: AtomicU64,
    records: AtomicU64,
    octets: AtomicU64,
    /// Cursor of the last record; set when the window is sealed.
    last_cursor: AtomicU64,
    disk_bytes: AtomicU64,
    /// True if part of the window is unreadable.
    pub(super) is_damaged: AtomicBool,
    /// True if the window is unreadable as a whole.
    is_lost: AtomicBool,
    /// Age at which the window is next checked for records to remove.
    pub(super) trim_at_age_ns: AtomicU64,
}

impl Window {
    pub(super) fn new(pool: Arc<Pool>, name: WindowName, summary: Summary) -> Self {
        Self {
            pool,
            name,
            begun_ns: summary.begun_ns,
            earliest_ns: summary.earliest_ns.into(),
            latest_ns: summary.latest_ns.into(),
            disorder_ns: summary.disorder_ns.into(),
            records: summary.records.into(),
            octets: summary.octets.into(),
            last_cursor: summary.last_cursor.into(),
            disk_bytes: AtomicU64::default(),
            is_damaged: AtomicBool::default(),
            is_lost: AtomicBool::default(),
            trim_at_age_ns: AtomicU64::default(),
        }
    }

    /// Returns the database, and opens it if necessary.
    pub(super) fn files(&self) -> Result<Arc<Files>, StoreError> {
        self.pool.files(self.name)
    }

    /// Creates an empty window that will replace this one; returns it with its database.
    pub(super) fn successor(&self) -> Result<(Self, Arc<Files>), StoreError> {
        let name = WindowName { generation: self.name.generation + 1, ..self.name };
        // An unfinished copy is replaced.
        self.pool.close(name);
        let empty = Summary { records: 0, octets: 0, ..self.summary() };
        let files = self.pool.create(name)?;
        Ok((Self::new(self.pool.clone(), name, empty), files))
    }

    pub(super) fn summary(&self) -> Summary {
        Summary {
            last_cursor: self.last_cursor.load(Relaxed),
            records: self.records.load(Relaxed),
            octets: self.octets.load(Relaxed),
            begun_ns: self.begun_ns,
            earliest_ns: self.earliest_ns.load(Relaxed),
            latest_ns: self.latest_ns.load(Relaxed),
            disorder_ns: self.disorder_ns.load(Relaxed),
        }
    }

    /// Seals the window: stores its summary durably. Records must not be added after this.
    pub(super) fn seal(&self, files: &Files, last_cursor: u64) -> Result<(), StoreError> {
        self.last_cursor.store(last_cursor, Relaxed);
        files.seal(&self.summary())?;
        self.note_disk_bytes();
        Ok(())
    }

    /// Measures the size on disk of a sealed window.
    pub(super) fn note_disk_bytes(&self) {
        self.disk_bytes.store(self.pool.disk_bytes(self.name), Relaxed);
    }

    pub(super) fn put_subject(
        &self,
        files: &Files,
        number: u32,
        octets: Vec<u8>,
    ) -> Result<(), StoreError> {
        self.octets.fetch_add((size_of::<u32>() + octets.len()) as u64, Relaxed);
        files.put_subject(number, octets)
    }

    /// Stores a page, given with its first cursor and its number of records.
    pub(super) fn put_page(
        &self,
        files: &Files,
        (first_cursor, records, page): (u64, u64, Vec<u8>),
    ) -> Result<(), StoreError> {
        let octets = (size_of::<u64>() + page.len()) as u64;
        files.pages.insert(first_cursor.to_be_bytes(), page)?;
        self.records.fetch_add(records, Relaxed);
        self.octets.fetch_add(octets, Relaxed);
        Ok(())
    }

    /// Marks part of the window, near a cursor, as unreadable. Logged once per window.
    pub(super) fn note_damage(&self, error: &StoreError, near: u64) {
        if !self.is_damaged.swap(true, Relaxed) {
            tracing::error!(%error, near, "some stored results cannot be read");
        }
    }

    /// Marks the window as lost: readers see a gap, and the writer moves the window to quarantine.
    pub(super) fn lose(&self, error: &StoreError) {
        self.note_damage(error, self.name.first_cursor);
        self.is_lost.store(true, Relaxed);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Relaxed)
    }

    /// Includes the time of a record in the figures.
    pub(super) fn note_time(&self, UnixTime(at): UnixTime) {
        let latest = self.latest_ns.fetch_max(at, Relaxed);
        self.earliest_ns.fetch_min(at, Relaxed);
        self.disorder_ns.fetch_max(latest.saturating_sub(at), Relaxed);
    }

    /// Returns true if `time` differs from the time of the first record by less than `span_ns`.
    pub(super) fn is_within(&self, time: UnixTime, span_ns: u64) -> bool {
        time.0.abs_diff(self.begun_ns) < span_ns
    }

    pub(super) fn last_time(&self) -> UnixTime {
        UnixTime(self.latest_ns.load(Relaxed))
    }

    pub(super) fn earliest_time(&self) -> UnixTime {
        UnixTime(self.earliest_ns.load(Relaxed))
    }

    pub(super) fn disorder_ns(&self) -> u64 {
        self.disorder_ns.load(Relaxed)
    }

    pub(super) fn last_cursor(&self) -> u64 {
        self.last_cursor.load(Relaxed)
    }

    pub(super) fn records(&self) -> u64 {
        self.records.load(Relaxed)
    }

    pub(super) fn octets(&self) -> u64 {
        self.octets.load(Relaxed)
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Relaxed)
    }
}
