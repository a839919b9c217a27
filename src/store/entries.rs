//! Reads entries out of windows.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Entry, StoreError, Subject,
    page::Records,
    window::{Window, cursor_of},
    windows::WindowList,
};

/// Entries with cursors in `range`, at most so many records and octets; the newest of them, in
/// falling order, with `backwards`. At least one where there is one.
pub(super) fn entries(
    list: &WindowList,
    range: std::ops::RangeInclusive<u64>,
    records: usize,
    octets: usize,
    backwards: bool,
) -> Result<Vec<Entry>, StoreError> {
    let mut found = Found { entries: Vec::new(), octets: 0, most: (records, octets) };
    if range.is_empty() {
        return Ok(found.entries);
    }
    // Windows in front of the one that the range begins in hold nothing of it.
    let from = list.partition_point(|window| window.name.first_cursor <= *range.start()).max(1) - 1;
    let windows = list.get(from..).unwrap_or_default();
    if backwards {
        for window in windows.iter().rev() {
            for page in window.pages.range(..=range.end().to_be_bytes()).rev() {
                let (key, page) = page?;
                let records: Vec<_> = records_of(&key, &page)?.collect();
                for record in records.into_iter().rev() {
                    let record = record?;
                    if record.cursor < *range.start() {
                        return Ok(found.entries);
                    }
                    if range.contains(&record.cursor)
                        && !found.take(record.subject, window, |subject| record.entry(subject))?
                    {
                        return Ok(found.entries);
                    }
                }
            }
        }
        return Ok(found.entries);
    }
    for window in windows {
        // The page that the range begins in may begin before it.
        let before = window.pages.range(..=range.start().to_be_bytes()).next_back().transpose()?;
        let first = before.map_or_else(|| range.start().to_be_bytes().to_vec(), |p| p.0.to_vec());
        for page in window.pages.range(first..=range.end().to_be_bytes().to_vec()) {
            let (key, page) = page?;
            for record in records_of(&key, &page)? {
                let record = record?;
                if range.contains(&record.cursor)
                    && !found.take(record.subject, window, |subject| record.entry(subject))?
                {
                    return Ok(found.entries);
                }
            }
        }
    }
    Ok(found.entries)
}

/// What was found so far.
struct Found {
    entries: Vec<Entry>,
    octets: usize,
    most: (usize, usize),
}

impl Found {
    /// Whether it took one more.
    fn take(
        &mut self,
        subject: u32,
        window: &Window,
        entry: impl FnOnce(Arc<Subject>) -> Entry,
    ) -> Result<bool, StoreError> {
        let entry = entry(window.subject(subject)?);
        self.octets += entry.content.len();
        let (records, octets) = self.most;
        if !self.entries.is_empty() && (self.octets > octets || self.entries.len() >= records) {
            return Ok(false);
        }
        self.entries.push(entry);
        Ok(true)
    }
}

/// The records of a page as a tree has it.
pub(super) fn records_of(key: &[u8], page: &[u8]) -> Result<Records, StoreError> {
    Records::of(cursor_of(key)?, Bytes::copy_from_slice(page))
}
