//! The log in windows: one tree of pages for each span of time or octets, and one beside it of the
//! subjects that they name. Removing records one by one would never give room back; a window goes as
//! a whole.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use prost::Message;

use super::{Retention, StoreError, engine::Engine, entries::records_of, page::PageBuilder};
use crate::time::{NANOS_PER_SECOND, UnixTime};

const PAGES: &[u8] = b"page/";
const SUBJECTS: &[u8] = b"subject/";
/// No record gets a cursor below this: written before windows go.
const FLOOR: &[u8] = b"cursor-floor";
/// Windows that the retention age and the quota are divided into: what goes at once is a sixteenth.
const WINDOWS: u64 = 16;
const SHORTEST_WINDOW_NS: u64 = 10 * NANOS_PER_SECOND;

/// To whom a record belongs.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Subject {
    /// Name of the connection; empty for the agent as a whole.
    #[prost(string, tag = "1")]
    pub connection: String,
    /// Name of the session; empty for a connection.
    #[prost(string, tag = "2")]
    pub session: String,
    /// What its records carry.
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: std::collections::BTreeMap<String, String>,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub cursor: u64,
    /// When it was made; whole microseconds are kept.
    pub time: UnixTime,
    /// To whom it belongs.
    pub subject: Arc<Subject>,
    /// What its content is; the store does not look at it.
    pub kind: u8,
    /// At most [`super::MAXIMUM_CONTENT_OCTETS`].
    pub content: Bytes,
}

/// One tree of the log.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) pages: sled::Tree,
    subjects: sled::Tree,
    /// Those that were read.
    known: RwLock<HashMap<u32, Arc<Subject>>>,
    pub(super) first_cursor: u64,
    first_time_ns: u64,
    last_time_ns: AtomicU64,
    records: AtomicU64,
    octets: AtomicU64,
}

/// What is known of a window that gets no more records, kept beside the log: a start need not read
/// all that is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Summary {
    last_cursor: u64,
    records: u64,
    octets: u64,
    first_time_ns: u64,
    last_time_ns: u64,
}

impl Summary {
    fn to_octets(self) -> Vec<u8> {
        let Self { last_cursor, records, octets, first_time_ns, last_time_ns } = self;
        [last_cursor, records, octets, first_time_ns, last_time_ns]
            .iter()
            .flat_map(|field| field.to_be_bytes())
            .collect()
    }

    fn from_octets(octets: &[u8]) -> Option<Self> {
        let (fields, []) = octets.as_chunks::<8>() else { return None };
        let [last_cursor, records, octets, first_time_ns, last_time_ns] =
            fields.iter().map(|f| u64::from_be_bytes(*f)).collect::<Vec<_>>().try_into().ok()?;
        Some(Self { last_cursor, records, octets, first_time_ns, last_time_ns })
    }
}

impl Window {
    fn new(engine: &Engine, first_cursor: u64, summary: Summary) -> Result<Self, StoreError> {
        Ok(Self {
            pages: engine.tree(tree_name(PAGES, first_cursor))?,
            subjects: engine.tree(tree_name(SUBJECTS, first_cursor))?,
            known: RwLock::default(),
            first_cursor,
            first_time_ns: summary.first_time_ns,
            last_time_ns: summary.last_time_ns.into(),
            records: summary.records.into(),
            octets: summary.octets.into(),
        })
    }

    fn summary(&self, last_cursor: u64) -> Summary {
        Summary {
            last_cursor,
            records: self.records.load(Relaxed),
            octets: self.octets.load(Relaxed),
            first_time_ns: self.first_time_ns,
            last_time_ns: self.last_time_ns.load(Relaxed),
        }
    }

    /// Reads the trees to know what is in them: of the newest window, when the log is opened.
    fn measured(engine: &Engine, first_cursor: u64) -> Result<(Self, u64), StoreError> {
        let mut window = Self::new(engine, first_cursor, Summary::default())?;
        let (mut records, mut octets, mut last) = (0, 0, first_cursor.saturating_sub(1));
        let mut times = None;
        for entry in &window.pages {
            let (key, value) = entry?;
            octets += (key.len() + value.len()) as u64;
            for record in records_of(&key, &value)? {
                let record = record?;
                last = record.cursor;
                let (first, _) = times.unwrap_or((record.time.0, record.time.0));
                times = Some((first, record.time.0));
                records += 1;
            }
        }
        for entry in &window.subjects {
            let (key, value) = entry?;
            octets += (key.len() + value.len()) as u64;
        }
        let (first_time_ns, last_time_ns) = times.unwrap_or_default();
        window.first_time_ns = first_time_ns;
        window.last_time_ns = last_time_ns.into();
        (window.records, window.octets) = (AtomicU64::new(records), AtomicU64::new(octets));
        Ok((window, last))
    }

    pub(super) fn subject(&self, number: u32) -> Result<Arc<Subject>, StoreError> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(subject) = known.get(&number) {
            return Ok(subject.clone());
        }
        drop(known);
        let damaged = || StoreError::Damaged("subject of a record");
        let octets = self.subjects.get(number.to_be_bytes())?.ok_or_else(damaged)?;
        let subject = Arc::new(Subject::decode(octets.as_ref()).map_err(|_| damaged())?);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        Ok(known.entry(number).or_insert(subject).clone())
    }
}

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
        let mut firsts: Vec<u64> = engine
            .tree_names()
            .iter()
            .filter_map(|name| name.strip_prefix(PAGES)?.try_into().ok().map(u64::from_be_bytes))
            .collect();
        firsts.sort_unstable();
        let (mut windows, mut newest) = (Vec::new(), 0);
        for first in firsts {
            let name = tree_name(PAGES, first);
            let summary = meta.get(&name)?.and_then(|octets| Summary::from_octets(&octets));
            let (window, last) = match summary {
                Some(summary) => (Window::new(engine, first, summary)?, summary.last_cursor),
                None => Window::measured(engine, first)?,
            };
            if window.records.load(Relaxed) == 0 {
                drop(window);
                engine.drop_tree(&name)?;
                engine.drop_tree(&tree_name(SUBJECTS, first))?;
                continue;
            }
            newest = last;
            windows.push(Arc::new(window));
        }
        Ok(Self {
            list: Arc::new(RwLock::new(windows.into())),
            next_cursor: at_least.max(newest + 1),
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
            self.meta.insert(tree_name(PAGES, full.first_cursor), summary.to_octets())?;
        }
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
        retention: Retention,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        if !self.page.takes(entry) {
            self.write_page()?;
        }
        let window = self.window(engine, retention, entry)?;
        let subject = self.number(&window, &entry.subject)?;
        self.page.push(entry, subject);
        self.next_cursor = entry.cursor + 1;
        window.last_time_ns.fetch_max(entry.time.0, Relaxed);
        Ok(())
    }

    /// Puts what was taken into a tree.
    pub(super) fn write_page(&mut self) -> Result<(), StoreError> {
        if self.page.is_empty() {
            return Ok(());
        }
        let list = read(&self.list);
        let Some(window) = list.last() else { return Ok(()) };
        let (first, records, page) = self.page.take();
        let octets = (size_of::<u64>() + page.len()) as u64;
        window.pages.insert(first.to_be_bytes(), page)?;
        self.newest = first + records - 1;
        window.records.fetch_add(records, Relaxed);
        window.octets.fetch_add(octets, Relaxed);
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
            for entry in &window.subjects {
                let number = entry?.0.as_ref().try_into().map(u32::from_be_bytes);
                let number = number.map_err(|_| StoreError::Damaged("subject of a record"))?;
                self.numbers.insert(window.subject(number)?, number);
            }
            if let Some(number) = self.numbers.get(subject) {
                return Ok(*number);
            }
        }
        let number = self.numbers.values().max().map_or(0, |most| most + 1);
        let octets = subject.encode_to_vec();
        window.octets.fetch_add((size_of::<u32>() + octets.len()) as u64, Relaxed);
        window.subjects.insert(number.to_be_bytes(), octets)?;
        self.numbers.insert(subject.clone(), number);
        Ok(number)
    }

    /// The newest window, or a new one where that has had its share.
    fn window(
        &mut self,
        engine: &Engine,
        retention: Retention,
        entry: &Entry,
    ) -> Result<Arc<Window>, StoreError> {
        let list = read(&self.list);
        let span_ns = (retention.age_ns / WINDOWS).max(SHORTEST_WINDOW_NS);
        if let Some(window) = list.last()
            && entry.time.0.saturating_sub(window.first_time_ns) < span_ns
            && window.octets.load(Relaxed) < retention.octets / WINDOWS
        {
            return Ok(window.clone());
        }
        self.write_page()?;
        self.summarise()?;
        let (first_time_ns, last_time_ns) = (entry.time.0, entry.time.0);
        let summary = Summary { first_time_ns, last_time_ns, ..Summary::default() };
        let window = Arc::new(Window::new(engine, entry.cursor, summary)?);
        self.numbers.clear();
        let longer = list.iter().cloned().chain([window.clone()]).collect();
        self.replace(longer);
        Ok(window)
    }

    /// Removes windows that are too old or too much, whole, and trees that nobody reads any more.
    pub(super) fn retain(
        &mut self,
        engine: &Engine,
        retention: Retention,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let list = read(&self.list);
        // What is being filled goes with the others.
        let mut octets: u64 = list.iter().map(|window| window.octets.load(Relaxed)).sum();
        let outdated = |window: &Window| {
            now.0.saturating_sub(window.last_time_ns.load(Relaxed)) > retention.age_ns
        };
        let mut keep_from = 0;
        for window in list.iter() {
            if !outdated(window) && octets <= retention.octets {
                break;
            }
            octets -= window.octets.load(Relaxed);
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
        let (free, held): (Vec<_>, Vec<_>) =
            self.leaving.drain(..).partition(|window| Arc::strong_count(window) == 1);
        self.leaving = held;
        for window in free {
            let first = window.first_cursor;
            drop(window);
            let name = tree_name(PAGES, first);
            engine.drop_tree(&name)?;
            engine.drop_tree(&tree_name(SUBJECTS, first))?;
            self.meta.remove(name)?;
        }
        Ok(())
    }

    /// Records and octets that are stored, and the earliest cursor.
    pub(super) fn figures(&self) -> (u64, u64, Option<u64>) {
        let list = read(&self.list);
        (
            list.iter().map(|window| window.records.load(Relaxed)).sum(),
            list.iter().map(|window| window.octets.load(Relaxed)).sum(),
            list.first().map(|window| window.first_cursor),
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

fn tree_name(prefix: &[u8], first_cursor: u64) -> Vec<u8> {
    [prefix, &first_cursor.to_be_bytes()].concat()
}

pub(super) fn cursor_of(key: &[u8]) -> Result<u64, StoreError> {
    key.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Damaged("cursor"))
}
