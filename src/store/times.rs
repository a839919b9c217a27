//! Finds records by time. Windows are selected by the times in their summaries, pages of a window
//! by binary search: a page begins with the time of its first record, so no separate index is
//! needed.
//!
//! Times of records may decrease. Each window stores its disorder: the maximum time by which a
//! record is earlier than a preceding one.

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

/// Returns a range of cursors that contains all records with times in the given range. Its start is
/// exact, its end may be too high. Empty if there is no such record.
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

/// Returns the cursor of the first record of a window with a time at or after `start`; the cursor
/// after the last stored record if there is none.
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

/// Finds two consecutive pages of which `is_before` is true for the first and false for the second;
/// its argument is the time of a page's first record, `None` if the page cannot be read. Returns
/// their first cursors; the first cursor of the window or `end` in place of a page that does not
/// exist.
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

/// Returns the key of the page that contains a cursor, and the time of its first record,
/// nanoseconds.
fn page_at(files: &Files, cursor: u64) -> (Option<u64>, Option<u64>) {
    let Some(Ok((key, page))) = files.pages.range(..=cursor.to_be_bytes()).next_back() else {
        return (None, None);
    };
    let key = cursor_of(&key).ok();
    let records = Records::new(0, Bytes::copy_from_slice(&page)).ok();
    (key, records.and_then(|records| records.begun_ns()))
}
