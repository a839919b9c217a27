//! The log as windows, oldest first: which there are, which one is filled, and what retention takes.

mod open;
mod retain;

pub(super) use retain::May;

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

/// No record gets a cursor below this: written before windows go.
const FLOOR: &[u8] = b"cursor-floor";

/// Windows that could not be opened, and not because of damage.
#[derive(Debug, Default)]
struct Unopened {
    /// Generations of each of the windows.
    windows: Vec<Vec<WindowName>>,
    next_try: Option<Monotonic>,
}

/// The log. Written by one thread; the list of windows is shared with readers.
#[derive(Debug)]
pub(super) struct Windows {
    /// The tree that holds [`FLOOR`].
    meta: sled::Tree,
    pool: Arc<Pool>,
    list: Arc<RwLock<WindowList>>,
    /// Database of the newest window; `None` where that gets no more records.
    filled: Option<Arc<Files>>,
    /// Out of the list, but a reader still holds them.
    leaving: Vec<Arc<Window>>,
    /// A window that records are taken out of.
    trim: Option<Trim>,
    /// No record up to this cursor is there that is not in its window.
    trimmed_up_to: u64,
    /// Records of the newest window that are not in its database yet.
    page: PageBuilder,
    /// Numbers of the subjects in the newest window, where it was begun by this.
    numbers: HashMap<Arc<Subject>, u32>,
    next_cursor: u64,
    newest: u64,
    /// When they were opened: the newest cursor of which there was a record, or to be none.
    found: u64,
    /// When they were opened: some of the newest window, or all of one, could not be read.
    was_damaged: bool,
    unopened: Unopened,
}

impl Windows {
    /// Summaries of the windows that get no more records.
    fn sealed(&self) -> Index {
        let list = read(&self.list);
        let sealed = list.len() - usize::from(self.filled.is_some()).min(list.len());
        list.iter().take(sealed).map(|window| (window.name, window.summary())).collect()
    }

    /// Writes the index. What it lacks is in the windows themselves.
    fn write_index(&self) {
        if let Err(error) = index::write(self.pool.place(), &self.sealed()) {
            tracing::warn!(%error, "failed to write the index of the results");
        }
    }

    /// Gives the newest window no more records: what is put after something that cannot be read may
    /// not be found again.
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
        // Opening notes its findings beside the database: the next opening is quick.
        self.pool.close(window.name);
        if let Err(error) = guarded(&window, |_| Ok(())) {
            tracing::warn!(%error, "failed to open a sealed window of results");
        }
        self.write_index();
        Ok(())
    }

    /// No record gets one of the next so many cursors.
    pub(super) fn jump(&self, cursors: u64) -> Result<(), StoreError> {
        self.meta.insert(FLOOR, &(self.next_cursor + cursors).to_be_bytes())?;
        Ok(())
    }

    /// The newest cursor of which a record was found when they were opened, or was not to be.
    pub(super) fn found(&self) -> u64 {
        self.found
    }

    /// Returns true when something could not be read at the opening.
    pub(super) fn was_damaged(&self) -> bool {
        self.was_damaged
    }

    /// The list that readers share.
    pub(super) fn shared(&self) -> Arc<RwLock<WindowList>> {
        self.list.clone()
    }

    /// The cursor that the next record gets.
    pub(super) fn next_cursor(&self) -> u64 {
        self.next_cursor
    }

    /// The newest cursor that was given to a record, or that may have been.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Appends an entry; it is in a database once [`Self::write_page`] was called. Its cursor is not
    /// below [`Self::next_cursor`].
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

    /// Puts what was appended into the database of the newest window.
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

    /// Hands what was written to the kernel; the disk writes it with `durably`.
    pub(super) fn flush(&mut self, durably: bool) -> Result<(), StoreError> {
        self.write_page()?;
        match &self.filled {
            Some(files) if durably => files.engine.flush_durably(),
            Some(files) => files.engine.flush(),
            None => Ok(()),
        }
    }

    /// A cursor that has no record.
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
            // It was begun before this agent was.
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

    /// The newest window, or a new one where that has had its share.
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

    /// Records and octets that are stored, and the earliest cursor.
    pub(super) fn figures(&self) -> (u64, u64, Option<u64>) {
        let list = read(&self.list);
        (
            list.iter().map(|window| window.records()).sum(),
            list.iter().map(|window| window.octets()).sum(),
            list.first().map(|window| window.name.first_cursor),
        )
    }

    /// Octets on disk of all windows.
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
