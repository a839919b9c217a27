//! Computes the figures of an unsealed window from its records.

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{
    StoreError,
    entries::readable,
    layout::{Summary, WindowName},
    pages::Pages,
    pool::Pool,
    window::Window,
};
use crate::time::UnixTime;

/// Reads all records of a window and returns it with its figures. If some records are unreadable,
/// they are left out and the window is marked as damaged.
pub(super) fn measured(pool: &Arc<Pool>, name: WindowName) -> Result<Window, StoreError> {
    // sled panics on some kinds of damage.
    catch_unwind(AssertUnwindSafe(|| read(pool, name)))
        .unwrap_or(Err(StoreError::Damaged("window of records")))
}

fn read(pool: &Arc<Pool>, name: WindowName) -> Result<Window, StoreError> {
    let scratch = Window::new(pool.clone(), name, Summary::default());
    let files = scratch.files()?;
    let mut summary =
        Summary { last_cursor: name.first_cursor.saturating_sub(1), ..Summary::default() };
    let mut used = HashSet::new();
    for entry in Pages::rising(&scratch, &files, name.first_cursor, u64::MAX) {
        let (key, value) = entry?;
        summary.octets += (size_of_val(&key) + value.len()) as u64;
        for record in readable(key, &value, &scratch) {
            let UnixTime(at) = record.time;
            if summary.records == 0 {
                (summary.begun_ns, summary.earliest_ns, summary.latest_ns) = (at, at, at);
            }
            let earlier_ns = summary.latest_ns.saturating_sub(at);
            summary.disorder_ns = summary.disorder_ns.max(earlier_ns);
            summary.earliest_ns = summary.earliest_ns.min(at);
            summary.latest_ns = summary.latest_ns.max(at);
            summary.last_cursor = record.cursor;
            summary.records += 1;
            used.insert(record.subject);
        }
    }
    let mut is_damaged = scratch.is_damaged.load(Relaxed);
    for entry in files.stored_subjects() {
        match entry {
            Ok((number, value)) => {
                summary.octets += (size_of_val(&number) + value.len()) as u64;
                used.remove(&number);
            }
            Err(StoreError::Damaged(_)) => {
                is_damaged = true;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    let window = Window::new(pool.clone(), name, summary);
    // A damaged window gets no new subject, so the number of a lost subject is not reused.
    window.is_damaged.store(is_damaged || !used.is_empty(), Relaxed);
    Ok(window)
}
