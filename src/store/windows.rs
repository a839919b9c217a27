//! The log as windows, oldest first: which there are, which one is filled, and what retention takes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock, atomic::Ordering::Relaxed},
};

use prost::Message;

use super::{
    Entry, Retention, StoreError, Subject,
    engine::Engine,
    page::PageBuilder,
    trim::Trim,
    window::{Summary, Window, WindowName, cursor_of},
};
use crate::time::UnixTime;

/// No record gets a cursor below this: written before windows go.
const FLOOR: &[u8] = b"cursor-floor";
/// Pages that are copied in one step of taking records out of a window: some 10 ms.
const TRIM_PAGES: usize = 512;

/// The windows that are there, oldest first. Whoever holds a copy of the list may read.
pub(super) type WindowList = Arc<[Arc<Window>]>;

/// The log. Written by one thread; the list of windows is shared with readers.
#[derive(Debug)]
pub(super) struct Windows {
    /// Summaries of windows that get no more records, by tree name; and [`FLOOR`].
    meta: sled::Tree,
    list: Arc<RwLock<WindowList>>,
    /// Out of the list, but a reader still holds them.
    leaving: Vec<Arc<Window>>,
    /// A window that records are taken out of.
    trim: Option<Trim>,
    /// No record up to this cursor is there that is not in its window.
    trimmed_up_to: u64,
    /// The newest window gets no more records, though there is none behind it yet.
    closed: bool,
    /// What is not in a tree yet, of the newest window.
    page: PageBuilder,
    /// Numbers of the subjects in the newest window, where it was begun by this.
    numbers: HashMap<Arc<Subject>, u32>,
    next_cursor: u64,
    newest: u64,
}

impl Windows {
    /// After a failure: with the list that readers share already.
    pub(super) fn reopen(
        engine: &Engine,
        meta: &sled::Tree,
        at_least: u64,
        list: Arc<RwLock<WindowList>>,
    ) -> Result<Self, StoreError> {
        let found = Self::open(engine, meta, at_least)?;
        let windows = read(&found.list);
        let reopened = Self { list, ..found };
        reopened.replace(windows);
        Ok(reopened)
    }

    /// Finds what is stored. Cursors go on at `at_least`, or behind the newest record that there is
    /// or was.
    pub(super) fn open(
        engine: &Engine,
        meta: &sled::Tree,
        at_least: u64,
    ) -> Result<Self, StoreError> {
        let floor = meta.get(FLOOR)?.map_or(Ok(1), |floor| cursor_of(&floor))?;
        let at_least = at_least.max(floor);
        let mut generations: BTreeMap<u64, Vec<WindowName>> = BTreeMap::new();
        for name in engine.tree_names().iter().filter_map(|tree| WindowName::of(tree)) {
            generations.entry(name.first_cursor).or_default().push(name);
        }
        let (mut windows, mut newest, mut closed) = (Vec::new(), 0, false);
        for names in generations.into_values() {
            let current = current(meta, &names)?;
            let is_current = |name| current.is_some_and(|(current, _)| current == name);
            for other in names.into_iter().filter(|name| !is_current(*name)) {
                remove(engine, meta, other)?;
            }
            let Some((name, summary)) = current else { continue };
            closed = summary.is_some();
            let (window, last) = match summary {
                Some(summary) => match Window::open(engine, name, summary) {
                    Ok(window) => (window, summary.last_cursor),
                    Err(error @ StoreError::Damaged(_)) => {
                        tracing::error!(%error, first = name.first_cursor, "some results are gone");
                        newest = summary.last_cursor;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
                None => Window::measured(engine, name)?,
            };
            if window.records() == 0 {
                drop(window);
                remove(engine, meta, name)?;
                continue;
            }
            newest = last;
            windows.push(Arc::new(window));
        }
        Ok(Self {
            list: Arc::new(RwLock::new(windows.into())),
            next_cursor: at_least.max(newest + 1),
            closed,
            newest: newest.max(at_least.saturating_sub(1)),
            ..Self::beginning(meta.clone())
        })
    }

    /// With nothing yet; what is appended begins a window.
    pub(super) fn beginning(meta: sled::Tree) -> Self {
        Self {
            meta,
            list: Arc::default(),
            leaving: Vec::new(),
            trim: None,
            trimmed_up_to: 0,
            closed: false,
            page: PageBuilder::default(),
            numbers: HashMap::new(),
            next_cursor: 1,
            newest: 0,
        }
    }

    /// The newest window gets no more records.
    pub(super) fn summarise(&self) -> Result<(), StoreError> {
        if let Some(full) = read(&self.list).last() {
            let summary = full.summary(self.newest);
            self.meta.insert(full.name.pages(), summary.to_octets())?;
        }
        Ok(())
    }

    /// No record gets one of the next so many cursors.
    pub(super) fn jump(&self, cursors: u64) -> Result<(), StoreError> {
        self.meta.insert(FLOOR, &(self.next_cursor + cursors).to_be_bytes())?;
        Ok(())
    }

    /// What readers share.
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

    /// Takes an entry; it is in a tree once [`Self::write_page`] was called. Its cursor is not below
    /// [`Self::next_cursor`].
    pub(super) fn append(
        &mut self,
        engine: &Engine,
        retention: &Retention,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        if !self.page.takes(entry) {
            self.write_page()?;
        }
        let window = self.window(engine, retention, entry)?;
        let subject = self.number(&window, &entry.subject)?;
        self.page.push(entry, subject);
        self.next_cursor = entry.cursor + 1;
        window.saw(entry.time);
        Ok(())
    }

    /// Puts what was taken into a tree.
    pub(super) fn write_page(&mut self) -> Result<(), StoreError> {
        if self.page.is_empty() {
            return Ok(());
        }
        let list = read(&self.list);
        let Some(window) = list.last() else { return Ok(()) };
        let page @ (first_cursor, records, _) = self.page.take();
        window.put_page(page)?;
        self.newest = first_cursor + records - 1;
        Ok(())
    }

    /// A cursor that has no record.
    pub(super) fn pass(&mut self, cursor: u64) {
        self.next_cursor = self.next_cursor.max(cursor + 1);
        self.newest = self.newest.max(cursor);
    }

    fn number(&mut self, window: &Window, subject: &Arc<Subject>) -> Result<u32, StoreError> {
        if let Some(number) = self.numbers.get(subject) {
            return Ok(*number);
        }
        if self.numbers.is_empty() {
            // It was begun before this agent was.
            for stored in window.stored_subjects() {
                let (number, _) = stored?;
                self.numbers.insert(window.subject(number)?, number);
            }
            if let Some(number) = self.numbers.get(subject) {
                return Ok(*number);
            }
        }
        let number = self.numbers.values().max().map_or(0, |most| most + 1);
        window.put_subject(number, subject.encode_to_vec())?;
        self.numbers.insert(subject.clone(), number);
        Ok(number)
    }

    /// The newest window, or a new one where that has had its share.
    fn window(
        &mut self,
        engine: &Engine,
        retention: &Retention,
        entry: &Entry,
    ) -> Result<Arc<Window>, StoreError> {
        let list = read(&self.list);
        if let Some(window) = list.last()
            && !self.closed
            && window.is_within(entry.time, retention.window_span_ns())
            && window.octets() < retention.window_octets()
        {
            return Ok(window.clone());
        }
        self.write_page()?;
        self.summarise()?;
        let (name, summary) = (WindowName::new(entry.cursor), Summary::beginning_at(entry.time));
        let window = Arc::new(Window::open(engine, name, summary)?);
        self.numbers.clear();
        self.closed = false;
        let longer = list.iter().cloned().chain([window.clone()]).collect();
        self.replace(longer);
        Ok(window)
    }

    /// Removes windows that are too old or too much, whole, and trees that nobody reads any more; and
    /// takes records of connections that are kept for less out of the others, a step at a time.
    /// Only where the disk `has_room`: a copy needs some.
    pub(super) fn retain(
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
    pub(super) fn is_trimming(&self) -> bool {
        self.trim.is_some()
    }

    /// No record up to this cursor is there that is not in its window.
    pub(super) fn trimmed_up_to(&self) -> u64 {
        self.trimmed_up_to
    }

    /// Other connections have their records kept for less.
    pub(super) fn look_for_what_goes(&self) {
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

    /// Records and octets that are stored, and the earliest cursor.
    pub(super) fn figures(&self) -> (u64, u64, Option<u64>) {
        let list = read(&self.list);
        (
            list.iter().map(|window| window.records()).sum(),
            list.iter().map(|window| window.octets()).sum(),
            list.first().map(|window| window.name.first_cursor),
        )
    }

    fn replace(&self, list: WindowList) {
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = list;
    }
}

/// The list as it is now.
pub(super) fn read(list: &RwLock<WindowList>) -> WindowList {
    list.read().unwrap_or_else(PoisonError::into_inner).clone()
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
        if age_ns < window.trim_at_age_ns.load(Relaxed) {
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

/// Of the generations of a window the one that counts: the newest that is whole, or the first, while
/// it is filled; `None` where there is neither.
fn current(
    meta: &sled::Tree,
    names: &[WindowName],
) -> Result<Option<(WindowName, Option<Summary>)>, StoreError> {
    let mut whole = None;
    for name in names {
        let summary = meta.get(name.pages())?.and_then(|octets| Summary::from_octets(&octets));
        whole = whole.max(summary.map(|summary| (*name, summary)));
    }
    let filled = names.iter().find(|name| name.is_first()).map(|name| (*name, None));
    Ok(whole.map(|(name, summary)| (name, Some(summary))).or(filled))
}

fn remove(engine: &Engine, meta: &sled::Tree, name: WindowName) -> Result<(), StoreError> {
    name.remove(engine)?;
    meta.remove(name.pages())?;
    Ok(())
}
