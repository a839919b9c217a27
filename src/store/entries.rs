//! Reads entries of the log from its windows.

use std::{
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
};

use bytes::Bytes;

use super::{
    Entry, StoreError,
    page::{Records, Stored},
    pages::{Pages, falling},
    pool::Files,
    window::{Window, WindowList},
};

/// Error for stored records that are missing although sled reports no damage.
const MISSING: StoreError = StoreError::Damaged("page of records");

/// Returns entries with cursors in `range`, limited to `records` and to `octets` of content, but at
/// least one if there is one. With `backwards`, returns the newest of them in descending order.
pub(super) fn entries(
    list: &WindowList,
    range: RangeInclusive<u64>,
    records: usize,
    octets: usize,
    backwards: bool,
) -> Result<Vec<Entry>, StoreError> {
    let mut found =
        Found { entries: Vec::new(), octets: 0, most: (records, octets), range, is_full: false };
    if found.range.is_empty() {
        return Ok(found.entries);
    }
    let start = *found.range.start();
    // Windows before the one that contains the start of the range are skipped.
    let from = list.partition_point(|window| window.name.first_cursor <= start).max(1) - 1;
    let windows = list.get(from..).unwrap_or_default();
    let mut each = |index: usize, window: &Window| -> Result<bool, StoreError> {
        // If all cursors of a window were stored, a missing record is damage.
        let end = windows.get(index + 1).map(|next| next.name.first_cursor);
        let end = end.filter(|end| end - window.name.first_cursor == window.records());
        guarded(window, |files| {
            if backwards {
                found.read_backwards(window, files)
            } else {
                found.read(window, files, end)
            }
        })?;
        Ok(found.is_full)
    };
    if backwards {
        for (index, window) in windows.iter().enumerate().rev() {
            if each(index, window)? {
                break;
            }
        }
    } else {
        for (index, window) in windows.iter().enumerate() {
            if each(index, window)? {
                break;
            }
        }
    }
    Ok(found.entries)
}

/// Runs `read` on a window. If its database is damaged as a whole, or sled panics, the window is
/// marked as lost; other windows are not affected.
pub(super) fn guarded(
    window: &Window,
    read: impl FnOnce(&Files) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    if window.is_lost() {
        return Ok(());
    }
    let done = catch_unwind(AssertUnwindSafe(|| read(&*window.files()?)));
    match done.unwrap_or(Err(StoreError::Damaged("window of records"))) {
        Err(error @ StoreError::Damaged(_)) => {
            window.lose(&error);
            Ok(())
        }
        done => done,
    }
}

/// Collects entries up to the limits of a read.
struct Found {
    entries: Vec<Entry>,
    octets: usize,
    most: (usize, usize),
    range: RangeInclusive<u64>,
    /// The limit of records or octets is reached.
    is_full: bool,
}

impl Found {
    /// Reads a window in ascending order. If `end` is given, the window must have all records
    /// before it, and missing ones are reported as damage.
    fn read(&mut self, window: &Window, files: &Files, end: Option<u64>) -> Result<(), StoreError> {
        let (first, last) = self.range.clone().into_inner();
        let mut next = first.max(window.name.first_cursor);
        // The page with the first record of the range may begin before the range.
        let before = falling(window, files, first).next().transpose()?;
        let from = before.map_or(first, |(key, _)| key);
        for page in Pages::rising(window, files, from, last) {
            let (key, page) = page?;
            for record in readable(key, &page, window) {
                if record.cursor >= next {
                    if end.is_some() && record.cursor > next {
                        window.note_damage(&MISSING, next);
                    }
                    next = record.cursor + 1;
                }
                if self.range.contains(&record.cursor) && !self.push(record, window, files)? {
                    return Ok(());
                }
            }
        }
        if end.is_some_and(|end| next < end.min(last.saturating_add(1))) {
            window.note_damage(&MISSING, next);
        }
        Ok(())
    }

    fn read_backwards(&mut self, window: &Window, files: &Files) -> Result<(), StoreError> {
        let (first, last) = self.range.clone().into_inner();
        for page in falling(window, files, last) {
            let (key, page) = page?;
            let records: Vec<_> = readable(key, &page, window).collect();
            for record in records.into_iter().rev() {
                if record.cursor < first {
                    self.is_full = true;
                    return Ok(());
                }
                if self.range.contains(&record.cursor) && !self.push(record, window, files)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Adds a record unless its subject cannot be read; returns false if a limit was reached.
    fn push(&mut self, record: Stored, window: &Window, files: &Files) -> Result<bool, StoreError> {
        let subject = match files.subject(record.subject) {
            Ok(subject) => subject,
            Err(error @ StoreError::Damaged(_)) => {
                window.note_damage(&error, record.cursor);
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let entry = record.entry(subject);
        self.octets += entry.content.len();
        let (records, octets) = self.most;
        if !self.entries.is_empty() && (self.octets > octets || self.entries.len() >= records) {
            self.is_full = true;
            return Ok(false);
        }
        self.entries.push(entry);
        Ok(true)
    }
}

/// Returns the records of a page, up to the first malformed one.
pub(super) fn readable(key: u64, page: &[u8], window: &Window) -> impl Iterator<Item = Stored> {
    let records = Records::new(key, Bytes::copy_from_slice(page)).into_iter().flatten();
    records.map_while(move |record| record.inspect_err(|error| window.note_damage(error, key)).ok())
}
