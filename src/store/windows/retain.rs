//! What retention takes: windows as a whole, and out of the others the records of connections that are
//! kept for less.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    super::{
        Retention, StoreError,
        engine::Engine,
        trim::Trim,
        window::{Summary, Window},
    },
    FLOOR, Windows, read, remove,
};
use crate::time::UnixTime;

/// Pages that are copied in one step of taking records out of a window: some 10 ms.
const TRIM_PAGES: usize = 512;

impl Windows {
    /// Removes windows that are too old or too much, whole, and trees that nobody reads any more; and
    /// takes records of connections that are kept for less out of the others, a step at a time.
    /// Only where the disk `has_room`: a copy needs some.
    pub(in super::super) fn retain(
        &mut self,
        engine: &Engine,
        retention: &Retention,
        now: UnixTime,
        has_room: bool,
    ) -> Result<(), StoreError> {
        let list = read(&self.list);
        let ages_ns = ages_ns(&list, now);
        // What is being filled goes with the others.
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
            }
            // Where nothing is left that tells, this does: no cursor may ever name two records.
            self.meta.insert(FLOOR, &self.next_cursor.to_be_bytes())?;
            engine.flush_durably()?;
            self.leaving.extend_from_slice(&list[..keep_from]);
            self.replace(list[keep_from..].into());
        }
        drop(list);
        if has_room {
            self.trim(engine, retention, now)?;
        }
        let (free, held): (Vec<_>, Vec<_>) =
            self.leaving.drain(..).partition(|window| Arc::strong_count(window) == 1);
        self.leaving = held;
        for window in free {
            let name = window.name;
            drop(window);
            remove(engine, &self.meta, name)?;
        }
        Ok(())
    }

    /// Whether records are being taken out of a window: there is another step to do.
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
    fn trim(
        &mut self,
        engine: &Engine,
        retention: &Retention,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let mut trim = match self.trim.take() {
            Some(trim) => trim,
            None => match begin_trim(engine, retention, &read(&self.list), now)? {
                Some(trim) => trim,
                None => return Ok(()),
            },
        };
        let is_there = |window| Arc::ptr_eq(window, trim.window());
        if !read(&self.list).iter().any(is_there) {
            // Retention took it as a whole.
            return trim.give_up(engine);
        }
        if trim.copy(TRIM_PAGES)? {
            self.put_in_place(engine, trim)?;
            self.trim = begin_trim(engine, retention, &read(&self.list), now)?;
        } else {
            self.trim = Some(trim);
        }
        Ok(())
    }

    /// A window that records were taken out of stands for the one that had them.
    fn put_in_place(&mut self, engine: &Engine, trim: Trim) -> Result<(), StoreError> {
        let old = trim.window().clone();
        let last_cursor = self.last_cursor(&old)?;
        let new = trim.done();
        new.trim_at_age_ns.store(old.trim_at_age_ns.load(Relaxed), Relaxed);
        // Pages first, then what makes them count.
        engine.flush_durably()?;
        let mut batch = sled::Batch::default();
        batch.insert(new.name.pages(), new.summary(last_cursor).to_octets());
        batch.remove(old.name.pages());
        self.meta.apply_batch(batch)?;
        engine.flush_durably()?;
        self.trimmed_up_to = self.trimmed_up_to.max(last_cursor);
        let new = Arc::new(new);
        let list = read(&self.list);
        let with =
            |window: &Arc<Window>| if Arc::ptr_eq(window, &old) { &new } else { window }.clone();
        self.replace(list.iter().map(with).collect());
        self.leaving.push(old);
        Ok(())
    }

    fn last_cursor(&self, window: &Window) -> Result<u64, StoreError> {
        let summary = self.meta.get(window.name.pages())?;
        let summary = summary.and_then(|octets| Summary::from_octets(&octets));
        Ok(summary.ok_or(StoreError::Damaged("window"))?.last_cursor)
    }
}

/// How long ago the newest record of each window was written. A window from the future is as old as
/// the one behind it: the clock was ahead when it was written.
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
    engine: &Engine,
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
        let begun = Trim::begin(engine, window, retention, age_ns)?;
        if begun.is_some() {
            return Ok(begun);
        }
    }
    Ok(None)
}
