//! Reads entries out of windows.

use bytes::Bytes;

use super::{
    Entry, StoreError,
    page::{Records, Stored},
    pages::{Pages, falling},
    window::Window,
    windows::WindowList,
};

/// Records that were stored and are not found, though sled knows of no damage.
const MISSING: StoreError = StoreError::Damaged("page of records");

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
    let (first, last) = range.clone().into_inner();
    if backwards {
        for window in windows.iter().rev() {
            for page in falling(window, last) {
                let (key, page) = page?;
                let records: Vec<_> = readable(key, &page, window).collect();
                for record in records.into_iter().rev() {
                    if record.cursor < first {
                        return Ok(found.entries);
                    }
                    if range.contains(&record.cursor) && !found.take(record, window)? {
                        return Ok(found.entries);
                    }
                }
            }
        }
        return Ok(found.entries);
    }
    for (index, window) in windows.iter().enumerate() {
        // Where none was left out when they were stored none is missing but for damage.
        let end = windows.get(index + 1).map(|behind| behind.name.first_cursor);
        let end = end.filter(|end| end - window.name.first_cursor == window.records());
        let mut next = first.max(window.name.first_cursor);
        // The page that the range begins in may begin before it.
        let before = falling(window, first).next().transpose()?;
        let from = before.map_or(first, |(key, _)| key);
        for page in Pages::of(window, from, last) {
            let (key, page) = page?;
            for record in readable(key, &page, window) {
                if record.cursor >= next {
                    if end.is_some() && record.cursor > next {
                        window.tell_damage(&MISSING, next);
                    }
                    next = record.cursor + 1;
                }
                if range.contains(&record.cursor) && !found.take(record, window)? {
                    return Ok(found.entries);
                }
            }
        }
        if end.is_some_and(|end| next < end.min(last.saturating_add(1))) {
            window.tell_damage(&MISSING, next);
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
    /// Whether it took one more, or left one out that does not say whose it is.
    fn take(&mut self, record: Stored, window: &Window) -> Result<bool, StoreError> {
        let subject = match window.subject(record.subject) {
            Ok(subject) => subject,
            Err(error @ StoreError::Damaged(_)) => {
                window.tell_damage(&error, record.cursor);
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let entry = record.entry(subject);
        self.octets += entry.content.len();
        let (records, octets) = self.most;
        if !self.entries.is_empty() && (self.octets > octets || self.entries.len() >= records) {
            return Ok(false);
        }
        self.entries.push(entry);
        Ok(true)
    }
}

/// The records of a page, up to one that makes no sense.
pub(super) fn readable(key: u64, page: &[u8], window: &Window) -> impl Iterator<Item = Stored> {
    let records = Records::of(key, Bytes::copy_from_slice(page)).into_iter().flatten();
    records.map_while(move |record| record.inspect_err(|error| window.tell_damage(error, key)).ok())
}
