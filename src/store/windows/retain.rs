//! Removes records: windows as a whole, and out of the others the records of connections that are kept
//! for less.

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

/// Pages that are copied in one step of taking records out of a window: some 10 ms.
const TRIM_PAGES: usize = 512;

/// Means of the retention besides the deletion of what exceeds the quota.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct May {
    /// The clock can be believed.
    pub(in super::super) delete_by_age: bool,
    /// The disk has space for a copy of a window.
    pub(in super::super) copy: bool,
}

impl Windows {
    /// Removes windows that are too old or too much, whole, once nobody reads them any more; and
    /// takes records of connections that are kept for less out of the others, a step at a time.
    /// What `may` be done besides; `persist` has the disk write the state.
    pub(in super::super) fn retain(
        &mut self,
        retention: &Retention,
        Now { monotonic, unix: now }: Now,
        may: May,
        persist: impl Fn() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.retry_unopened(monotonic);
        self.give_up_lost(&persist)?;
        let list = read(&self.list);
        let ages_ns = if may.delete_by_age { ages_ns(&list, now) } else { vec![0; list.len()] };
        // The window that is filled goes with the others.
        let mut octets: u64 = list.iter().map(|window| window.octets()).sum();
        let mut keep_from = 0;
        for (window, age_ns) in list.iter().zip(&ages_ns) {
            if *age_ns <= retention.age_ns && octets <= retention.octets {
                break;
            }
            octets -= window.octets();
            keep_from += 1;
        }
        if keep_from > 0 {
            if keep_from == list.len() {
                self.write_page()?;
                self.filled = None;
            }
            // No record may be left that shows which cursors were given out.
            self.jump(0)?;
            persist()?;
            self.leaving.extend_from_slice(&list[..keep_from]);
            self.replace(list[keep_from..].into());
            self.write_index();
        }
        drop(list);
        if may.copy && may.delete_by_age {
            self.trim(retention, now)?;
        }
        let mut held = Vec::new();
        for window in std::mem::take(&mut self.leaving) {
            if Arc::strong_count(&window) > 1 || !self.pool.close(window.name) {
                held.push(window);
            } else if let Err(error) = self.pool.remove(window.name) {
                tracing::warn!(%error, "failed to remove a window of results");
                held.push(window);
            }
        }
        self.leaving = held;
        Ok(())
    }

    /// Puts windows of which nothing can be read into quarantine.
    fn give_up_lost(
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
            tracing::error!(first_cursor, "a window of results is damaged");
            self.quarantine(window.name);
        }
        Ok(())
    }

    /// Returns true while records are taken out of a window: there is another step to do.
    pub(in super::super) fn is_trimming(&self) -> bool {
        self.trim.is_some()
    }

    /// No record up to this cursor is there that is not in its window.
    pub(in super::super) fn trimmed_up_to(&self) -> u64 {
        self.trimmed_up_to
    }

    /// Other connections have their records kept for less.
    pub(in super::super) fn look_for_what_goes(&self) {
        for window in read(&self.list).iter() {
            window.trim_at_age_ns.store(0, Relaxed);
        }
    }

    /// One step of taking records out of a window. What is being filled is left alone.
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
            // Retention took it as a whole.
            return self.abandon(trim);
        }
        match trim.copy(TRIM_PAGES) {
            Ok(true) => {
                self.put_in_place(trim)?;
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

    /// A window that records were taken out of stands for the one that had them.
    fn put_in_place(&mut self, trim: Trim) -> Result<(), StoreError> {
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

/// Returns the age of the newest record of each window. A window from the future is as old as the one
/// after it: the clock was ahead when it was written.
fn ages_ns(list: &[Arc<Window>], now: UnixTime) -> Vec<u64> {
    let mut age_behind_ns = 0;
    let mut ages: Vec<_> = list
        .iter()
        .rev()
        .map(|window| {
            age_behind_ns = now.0.checked_sub(window.last_time().0).unwrap_or(age_behind_ns);
            age_behind_ns
        })
        .collect();
    ages.reverse();
    ages
}

/// Of the first window that has records which go. The last is left alone: it may be filled.
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
