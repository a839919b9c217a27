//! Removes old records: whole windows, and from the others the records of connections with a
//! shorter retention age.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    super::{
        Retention, StoreError,
        page::PageBuilder,
        trim::Trim,
        window::{Window, read},
    },
    Windows,
};
use crate::time::{Now, UnixTime};

/// Number of pages copied in one step of a removal from a window, some 10 ms.
const TRIM_PAGES: usize = 512;

/// Kinds of removal that are allowed in addition to the removal of records beyond the quota.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Allowed {
    /// Removal by age; false after a large clock step.
    pub(in super::super) delete_by_age: bool,
    /// Copying of windows; false if the disk is full or fails.
    pub(in super::super) copy: bool,
    /// Bytes on disk by which the state directory exceeds its quota.
    pub(in super::super) disk_excess: u64,
}

impl Windows {
    /// Removes windows beyond the age or the quota as soon as no reader uses them. From the others,
    /// removes the records of connections with a shorter retention age, in steps. `persist` must
    /// write the state database durably.
    pub(in super::super) fn retain(
        &mut self,
        retention: &Retention,
        Now { monotonic, unix: now }: Now,
        allowed: Allowed,
        persist: impl Fn() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.retry_unopened(monotonic);
        self.quarantine_lost(&persist)?;
        let list = read(&self.list);
        let ages_ns = if allowed.delete_by_age { ages_ns(&list, now) } else { vec![0; list.len()] };
        // The newest window is removed like the others.
        let mut octets: u64 = list.iter().map(|window| window.octets()).sum();
        let (mut keep_from, mut freed) = (0, 0);
        for (window, age_ns) in list.iter().zip(&ages_ns) {
            // Without results, only other data is left to exceed the quota of the disk.
            let is_excess = freed < allowed.disk_excess && keep_from + 1 < list.len();
            if *age_ns <= retention.age_ns && octets <= retention.octets && !is_excess {
                break;
            }
            octets -= window.octets();
            freed += window.disk_bytes();
            keep_from += 1;
        }
        if keep_from > 0 {
            self.remove_unopened_before(list[keep_from - 1].name.first_cursor);
            if keep_from == list.len() {
                self.write_page()?;
                self.filled = None;
            }
            // Possibly no record remains from which a start could determine the assigned cursors.
            self.jump(0)?;
            persist()?;
            self.leaving.extend_from_slice(&list[..keep_from]);
            self.replace(list[keep_from..].into());
            self.write_index();
        }
        drop(list);
        if allowed.copy && allowed.delete_by_age {
            self.trim(retention, now)?;
        }
        let mut in_use = Vec::new();
        for window in std::mem::take(&mut self.leaving) {
            if Arc::strong_count(&window) > 1 || !self.pool.close(window.name) {
                in_use.push(window);
            } else if let Err(error) = self.pool.remove(window.name) {
                tracing::warn!(%error, "failed to remove a window of results");
                in_use.push(window);
            }
        }
        self.leaving = in_use;
        Ok(())
    }

    /// Moves lost windows to quarantine.
    fn quarantine_lost(
        &mut self,
        persist: &impl Fn() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let list = read(&self.list);
        if !list.iter().any(|window| window.is_lost()) {
            return Ok(());
        }
        self.jump(0)?;
        persist()?;
        if list.last().is_some_and(|window| window.is_lost()) {
            self.filled = None;
            self.page = PageBuilder::default();
            self.numbers.clear();
        }
        let (lost, kept): (Vec<_>, Vec<_>) =
            list.iter().cloned().partition(|window| window.is_lost());
        self.replace(kept.into());
        self.write_index();
        for window in lost {
            let first_cursor = window.name.first_cursor;
            tracing::error!(first_cursor, "window of results damaged");
            self.quarantine(window.name);
        }
        Ok(())
    }

    /// Returns true while a removal of records from a window is in progress.
    pub(in super::super) fn is_trimming(&self) -> bool {
        self.trim.is_some()
    }

    /// Returns the cursor up to which records of some connections may have been removed.
    pub(in super::super) fn trimmed_up_to(&self) -> u64 {
        self.trimmed_up_to
    }

    /// Checks all windows again after a change of the retention ages of connections.
    pub(in super::super) fn reset_trim_ages(&self) {
        for window in read(&self.list).iter() {
            window.trim_at_age_ns.store(0, Relaxed);
        }
    }

    /// Runs one step of the removal of records from a sealed window.
    fn trim(&mut self, retention: &Retention, now: UnixTime) -> Result<(), StoreError> {
        let mut trim = match self.trim.take() {
            Some(trim) => trim,
            None => match begin_trim(retention, &read(&self.list), now)? {
                Some(trim) => trim,
                None => return Ok(()),
            },
        };
        let is_there = |window| Arc::ptr_eq(window, trim.window());
        if !read(&self.list).iter().any(is_there) {
            // The window was removed as a whole meanwhile.
            return self.abandon(trim);
        }
        match trim.copy(TRIM_PAGES) {
            Ok(true) => {
                self.replace_window(trim)?;
                self.trim = begin_trim(retention, &read(&self.list), now)?;
            }
            Ok(false) => self.trim = Some(trim),
            Err(error @ StoreError::Damaged(_)) => {
                trim.window().lose(&error);
                return self.abandon(trim);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn abandon(&self, trim: Trim) -> Result<(), StoreError> {
        let name = trim.abandon();
        self.pool.close(name);
        self.pool.remove(name)
    }

    /// Replaces a window with its copy from which records were removed.
    fn replace_window(&mut self, trim: Trim) -> Result<(), StoreError> {
        let old = trim.window().clone();
        let new = trim.finish()?;
        new.trim_at_age_ns.store(old.trim_at_age_ns.load(Relaxed), Relaxed);
        self.trimmed_up_to = self.trimmed_up_to.max(old.last_cursor());
        let new = Arc::new(new);
        let list = read(&self.list);
        let with =
            |window: &Arc<Window>| if Arc::ptr_eq(window, &old) { &new } else { window }.clone();
        self.replace(list.iter().map(with).collect());
        self.write_index();
        self.leaving.push(old);
        Ok(())
    }
}

/// Returns the age of the newest record of each window, nanoseconds. A window with a time in the
/// future, which was written while the clock was ahead, is as old as the next window.
fn ages_ns(list: &[Arc<Window>], now: UnixTime) -> Vec<u64> {
    let mut next_age_ns = 0;
    let mut ages: Vec<_> = list
        .iter()
        .rev()
        .map(|window| {
            next_age_ns = now.0.checked_sub(window.last_time().0).unwrap_or(next_age_ns);
            next_age_ns
        })
        .collect();
    ages.reverse();
    ages
}

/// Begins the removal from the first window with records to remove. The last window is skipped,
/// because it may not be sealed.
fn begin_trim(
    retention: &Retention,
    list: &[Arc<Window>],
    now: UnixTime,
) -> Result<Option<Trim>, StoreError> {
    let closed = list.len().saturating_sub(1);
    for (window, age_ns) in list.iter().zip(ages_ns(list, now)).take(closed) {
        if retention.keeps_all(age_ns) || age_ns < window.trim_at_age_ns.load(Relaxed) {
            continue;
        }
        window.trim_at_age_ns.store(retention.next_age_ns(age_ns), Relaxed);
        match Trim::begin(window, retention, age_ns) {
            Ok(None) => {}
            Err(error @ StoreError::Damaged(_)) => window.lose(&error),
            begun => return begun,
        }
    }
    Ok(None)
}
