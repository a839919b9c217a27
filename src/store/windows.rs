//! The log as a list of windows: opening, appending to the newest window, and retention.

mod open;
mod retain;

pub(super) use retain::Allowed;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use prost::Message;

use super::{
    Entry, Retention, StoreError, Subject,
    entries::guarded,
    index::{self, Index},
    layout::{Summary, WindowName},
    page::PageBuilder,
    pool::{Files, Pool},
    trim::Trim,
    window::{Window, WindowList, read},
};
use crate::time::Monotonic;

/// Key of the minimum cursor of new records; written before windows are removed.
const FLOOR: &[u8] = b"cursor-floor";

/// Windows that could not be opened, for a reason other than damage.
#[derive(Debug, Default)]
struct Unopened {
    /// Generations of each of the windows.
    windows: Vec<Vec<WindowName>>,
    next_try: Option<Monotonic>,
}

/// The log, written by one thread. The list of windows is shared with readers.
#[derive(Debug)]
pub(super) struct Windows {
    /// Tree that contains [`FLOOR`].
    meta: sled::Tree,
    pool: Arc<Pool>,
    list: Arc<RwLock<WindowList>>,
    /// Database of the newest window; `None` if that window is sealed.
    filled: Option<Arc<Files>>,
    /// Windows that are removed from the list but may still be in use by readers.
    leaving: Vec<Arc<Window>>,
    /// Removal of records from a window in progress.
    trim: Option<Trim>,
    /// Cursor up to which records of some connections may have been removed.
    trimmed_up_to: u64,
    /// Records of the newest window that are not written to its database yet.
    page: PageBuilder,
    /// Numbers of the subjects in the newest window; empty until the first record is appended.
    numbers: HashMap<Arc<Subject>, u32>,
    next_cursor: u64,
    newest: u64,
    /// Newest cursor at opening that had a record or was skipped deliberately.
    found: u64,
    /// True if part of the newest window, or a whole window, was unreadable at opening.
    was_damaged: bool,
    unopened: Unopened,
}

impl Windows {
    /// Returns the summaries of the sealed windows.
    fn sealed(&self) -> Index {
        let list = read(&self.list);
        let sealed = list.len() - usize::from(self.filled.is_some()).min(list.len());
        list.iter().take(sealed).map(|window| (window.name, window.summary())).collect()
    }

    /// Writes the index. After an error the next start reads the summaries from the windows.
    fn write_index(&self) {
        if let Err(error) = index::write(self.pool.directory(), &self.sealed()) {
            tracing::warn!(%error, "failed to write the index of results");
        }
    }

    /// Seals the newest window. This is necessary after damage, because records that are written
    /// after unreadable data may not be found again.
    pub(super) fn seal_newest(&mut self) -> Result<(), StoreError> {
        self.write_page()?;
        let (Some(files), Some(window)) = (self.filled.take(), read(&self.list).last().cloned())
        else {
            return Ok(());
        };
        if window.is_lost() {
            return Ok(());
        }
        window.seal(&files, self.newest)?;
        drop(files);
        // Opening the database makes sled store a snapshot, so that the next opening is quick.
        self.pool.close(window.name);
        if let Err(error) = guarded(&window, |_| Ok(())) {
            tracing::warn!(%error, "failed to open a sealed window of results");
        }
        // sled allocates a segment when it opens a database.
        window.note_disk_bytes();
        self.write_index();
        Ok(())
    }

    /// Skips the next `cursors` cursors: a later start does not assign them.
    pub(super) fn jump(&self, cursors: u64) -> Result<(), StoreError> {
        self.meta.insert(FLOOR, &(self.next_cursor + cursors).to_be_bytes())?;
        Ok(())
    }

    /// Returns the newest cursor at opening that had a record or was skipped deliberately.
    pub(super) fn found(&self) -> u64 {
        self.found
    }

    /// Returns true if some records were unreadable at opening.
    pub(super) fn was_damaged(&self) -> bool {
        self.was_damaged
    }

    /// Returns the list that is shared with readers.
    pub(super) fn shared(&self) -> Arc<RwLock<WindowList>> {
        self.list.clone()
    }

    /// Returns the minimum cursor of the next record.
    pub(super) fn next_cursor(&self) -> u64 {
        self.next_cursor
    }

    /// Returns the newest cursor that was or may have been assigned to a record.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Appends an entry, whose cursor must be at least [`Self::next_cursor`]. [`Self::write_page`]
    /// writes it to the database.
    pub(super) fn append(
        &mut self,
        retention: &Retention,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        if !self.page.fits(entry) {
            self.write_page()?;
        }
        let (window, files) = self.window(retention, entry)?;
        let subject = self.number(&window, &files, &entry.subject)?;
        self.page.push(entry, subject);
        self.next_cursor = entry.cursor + 1;
        window.note_time(entry.time);
        Ok(())
    }

    /// Writes the appended entries to the database of the newest window.
    pub(super) fn write_page(&mut self) -> Result<(), StoreError> {
        if self.page.is_empty() {
            return Ok(());
        }
        let list = read(&self.list);
        let (Some(window), Some(files)) = (list.last(), &self.filled) else { return Ok(()) };
        let page @ (first_cursor, records, _) = self.page.finish();
        window.put_page(files, page)?;
        self.newest = first_cursor + records - 1;
        Ok(())
    }

    /// Writes the appended entries and hands them to the kernel; with `durably`, syncs them to the
    /// disk.
    pub(super) fn flush(&mut self, durably: bool) -> Result<(), StoreError> {
        self.write_page()?;
        match &self.filled {
            Some(files) if durably => files.engine.flush_durably(),
            Some(files) => files.engine.flush(),
            None => Ok(()),
        }
    }

    /// Returns an error if the database of the newest window is no longer where it was opened.
    pub(super) fn check_presence(&self) -> Result<(), StoreError> {
        self.filled.as_ref().map_or(Ok(()), |files| files.engine.check_presence())
    }

    /// Returns the size on disk of removed windows that readers still use, bytes.
    pub(super) fn leaving_bytes(&self) -> u64 {
        self.leaving.iter().map(|window| window.disk_bytes()).sum()
    }

    /// Skips a cursor whose record was not stored.
    pub(super) fn pass(&mut self, cursor: u64) {
        self.next_cursor = self.next_cursor.max(cursor + 1);
        self.newest = self.newest.max(cursor);
    }

    fn number(
        &mut self,
        window: &Window,
        files: &Files,
        subject: &Arc<Subject>,
    ) -> Result<u32, StoreError> {
        if let Some(number) = self.numbers.get(subject) {
            return Ok(*number);
        }
        if self.numbers.is_empty() {
            // The window was created before this opening of the log.
            for stored in files.stored_subjects() {
                let (number, _) = stored?;
                self.numbers.insert(files.subject(number)?, number);
            }
            if let Some(number) = self.numbers.get(subject) {
                return Ok(*number);
            }
        }
        let number = self.numbers.values().max().map_or(0, |most| most + 1);
        window.put_subject(files, number, subject.encode_to_vec())?;
        self.numbers.insert(subject.clone(), number);
        Ok(number)
    }

    /// Returns the newest window; a new one if the newest is full, lost or sealed.
    fn window(
        &mut self,
        retention: &Retention,
        entry: &Entry,
    ) -> Result<(Arc<Window>, Arc<Files>), StoreError> {
        let list = read(&self.list);
        if let (Some(window), Some(files)) = (list.last(), &self.filled)
            && !window.is_lost()
            && window.is_within(entry.time, retention.window_span_ns())
            && window.octets() < retention.window_octets()
        {
            return Ok((window.clone(), files.clone()));
        }
        self.seal_newest()?;
        let (name, summary) = (WindowName::new(entry.cursor), Summary::beginning_at(entry.time));
        let files = self.pool.create(name)?;
        let window = Arc::new(Window::new(self.pool.clone(), name, summary));
        self.numbers.clear();
        self.filled = Some(files.clone());
        let longer = list.iter().cloned().chain([window.clone()]).collect();
        self.replace(longer);
        Ok((window, files))
    }

    /// Returns the number of stored records, their size in bytes, and the earliest cursor.
    pub(super) fn figures(&self) -> (u64, u64, Option<u64>) {
        let list = read(&self.list);
        (
            list.iter().map(|window| window.records()).sum(),
            list.iter().map(|window| window.octets()).sum(),
            list.first().map(|window| window.name.first_cursor),
        )
    }

    /// Returns the size of all windows on disk, bytes.
    pub(super) fn disk_bytes(&self) -> u64 {
        let list = read(&self.list);
        let sealed = list.len() - usize::from(self.filled.is_some()).min(list.len());
        let filled = self.filled.as_ref().map_or(0, |files| files.engine.disk_bytes());
        filled + list.iter().take(sealed).map(|window| window.disk_bytes()).sum::<u64>()
    }

    fn replace(&self, list: WindowList) {
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = list;
    }
}
