//! The log as windows, oldest first: which there are, which one is filled, and what retention takes.

mod retain;

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

/// No record gets a cursor below this: written before windows go.
const FLOOR: &[u8] = b"cursor-floor";
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
    /// When they were opened: the newest cursor of which there was a record, or to be none.
    found: u64,
    /// When they were opened: some of the newest window could not be read.
    was_damaged: bool,
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
        let (mut windows, mut newest) = (Vec::new(), 0);
        let (mut closed, mut was_damaged) = (false, false);
        for names in generations.into_values() {
            let current = current(meta, &names)?;
            let is_current = |name| current.is_some_and(|(current, _)| current == name);
            for other in names.into_iter().filter(|name| !is_current(*name)) {
                remove(engine, meta, other)?;
            }
            let Some((name, summary)) = current else { continue };
            let is_filled = summary.is_none();
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
            was_damaged = window.is_damaged.load(Relaxed);
            closed = !is_filled || was_damaged;
            windows.push(Arc::new(window));
        }
        Ok(Self {
            list: Arc::new(RwLock::new(windows.into())),
            next_cursor: at_least.max(newest + 1),
            closed,
            newest: newest.max(at_least.saturating_sub(1)),
            found: newest.max(floor - 1),
            was_damaged,
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
            found: 0,
            was_damaged: false,
        }
    }

    /// The newest window gets no more records: what is put behind something that cannot be read may
    /// not be found again.
    pub(super) fn close_newest(&mut self) -> Result<(), StoreError> {
        self.summarise()?;
        self.closed = true;
        Ok(())
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

    /// The newest cursor of which a record was found when they were opened, or was not to be.
    pub(super) fn found(&self) -> u64 {
        self.found
    }

    /// Whether some of the newest window could not be read when they were opened.
    pub(super) fn was_damaged(&self) -> bool {
        self.was_damaged
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
