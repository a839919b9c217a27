//! Finds records by their times: the windows first, by the times in their summaries, then the pages of
//! a window by bisection. A page begins with the time of its first record, so the pages are the index.
//!
//! Times of records rise but for a disorder that each window notes: a record is earlier than one before
//! it by no more.

use std::ops::Range;

use bytes::Bytes;

use super::{
    StoreError,
    entries::{guarded, readable},
    layout::cursor_of,
    page::Records,
    pages::Pages,
    pool::Files,
    window::{Window, WindowList},
};
use crate::time::UnixTime;

/// Returns the cursors that all records with times in a range are between: the first cursor is exact
/// among the stored records, the last is near. An empty range where there is no such record.
pub(super) fn cursors(
    list: &WindowList,
    Range { start, end }: Range<UnixTime>,
) -> Result<Range<u64>, StoreError> {
    let Some(first) = list.iter().find(|window| window.last_time() >= start) else {
        return Ok(u64::MAX..u64::MAX);
    };
    let mut from = first.name.first_cursor;
    guarded(first, |files| {
        from = first_from(first, files, start)?;
        Ok(())
    })?;
    let Some(last) = list.iter().rposition(|window| window.earliest_time() < end) else {
        return Ok(from..from);
    };
    let after = list.get(last + 1).map_or(u64::MAX, |next| next.name.first_cursor);
    let (last, mut up_to) = (&list[last], after);
    guarded(last, |files| {
        let time = end.0.saturating_add(last.disorder_ns());
        up_to = bisect(last, files, after, |begun| begun.is_none_or(|begun| begun < time)).1;
        Ok(())
    })?;
    Ok(from..up_to.max(from))
}

/// Returns the cursor of the first record of a window with a time that is not before `start`; the one
/// after the last stored record where there is none.
fn first_from(window: &Window, files: &Files, start: UnixTime) -> Result<u64, StoreError> {
    let time = start.0.saturating_sub(window.disorder_ns());
    let is_before = |begun: Option<u64>| begun.is_some_and(|begun| begun < time);
    let (mut next, _) = bisect(window, files, u64::MAX, is_before);
    for page in Pages::rising(window, files, next, u64::MAX) {
        let (key, page) = page?;
        for record in readable(key, &page, window) {
            if record.time >= start {
                return Ok(record.cursor);
            }
            next = record.cursor + 1;
        }
    }
    Ok(next)
}

/// Finds two pages that follow each other, the first of which `is_before` the time that is looked for, by
/// the time that a page begins at, and the second is not. Returns their first cursors: that of the
/// window and `end` where all pages are on one side. A page that cannot be read has no time.
fn bisect(
    window: &Window,
    files: &Files,
    end: u64,
    is_before: impl Fn(Option<u64>) -> bool,
) -> (u64, u64) {
    let (mut low, mut high) = (window.name.first_cursor, end);
    while high.saturating_sub(low) > 1 {
        let middle = low + (high - low) / 2;
        let (key, begun) = page_at(files, middle);
        if is_before(begun) {
            low = middle;
        } else {
            high = key.map_or(middle, |key| key.max(low));
        }
    }
    let key = page_at(files, low).0.unwrap_or(low);
    (key.max(window.name.first_cursor), high)
}

/// Key of the page that a cursor is in, and the time it begins at, nanoseconds.
fn page_at(files: &Files, cursor: u64) -> (Option<u64>, Option<u64>) {
    let Some(Ok((key, page))) = files.pages.range(..=cursor.to_be_bytes()).next_back() else {
        return (None, None);
    };
    let key = cursor_of(&key).ok();
    let records = Records::new(0, Bytes::copy_from_slice(&page)).ok();
    (key, records.and_then(|records| records.begun_ns()))
}
