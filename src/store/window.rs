//! The log in windows: one tree for each span of time or octets. Removing records one by one would
//! never give room back; a window goes as a whole.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{Retention, StoreError, engine::Engine};
use crate::time::{NANOS_PER_SECOND, UnixTime};

const PREFIX: &[u8] = b"log/";
/// No record gets a cursor below this: written before windows go.
const FLOOR: &[u8] = b"cursor-floor";
/// Windows that the retention age and the quota are divided into: what goes at once is a sixteenth.
const WINDOWS: u64 = 16;
const SHORTEST_WINDOW_NS: u64 = 10 * NANOS_PER_SECOND;
const TIME_OCTETS: usize = 8;

/// An entry of the log to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it was made.
    pub time: UnixTime,
    /// What it holds; at most [`super::MAXIMUM_VALUE_OCTETS`].
    pub octets: Vec<u8>,
}

/// One tree of the log.
#[derive(Debug)]
pub(super) struct Window {
    tree: sled::Tree,
    first_cursor: u64,
    first_time_ns: u64,
    last_time_ns: AtomicU64,
    records: AtomicU64,
    octets: AtomicU64,
}

/// What is known of a window that gets no more records, kept beside the log: a start need not read
/// all that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    fn summarised(tree: sled::Tree, first_cursor: u64, summary: Summary) -> (Self, u64) {
        let window = Self {
            tree,
            first_cursor,
            first_time_ns: summary.first_time_ns,
            last_time_ns: summary.last_time_ns.into(),
            records: summary.records.into(),
            octets: summary.octets.into(),
        };
        (window, summary.last_cursor)
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

    /// Reads a tree to know what is in it: the newest one, when the log is opened.
    fn measured(tree: sled::Tree, first_cursor: u64) -> Result<(Self, u64), StoreError> {
        let (mut records, mut octets, mut last) = (0, 0, first_cursor.saturating_sub(1));
        let mut times = None;
        for entry in &tree {
            let (key, value) = entry?;
            last = cursor_of(&key)?;
            let time = time_of(&value)?;
            let (first, _) = times.unwrap_or((time, time));
            times = Some((first, time));
            records += 1;
            octets += (key.len() + value.len()) as u64;
        }
        let (first_time_ns, last_time_ns) = times.unwrap_or_default();
        let window = Self {
            tree,
            first_cursor,
            first_time_ns,
            last_time_ns: last_time_ns.into(),
            records: records.into(),
            octets: octets.into(),
        };
        Ok((window, last))
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
    next_cursor: u64,
    newest: u64,
}

impl Windows {
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
            .filter_map(|name| name.strip_prefix(PREFIX)?.try_into().ok().map(u64::from_be_bytes))
            .collect();
        firsts.sort_unstable();
        let (mut windows, mut newest) = (Vec::new(), 0);
        for first in firsts {
            let (name, tree) = (tree_name(first), engine.tree(tree_name(first))?);
            let summary = meta.get(&name)?.and_then(|octets| Summary::from_octets(&octets));
            let (window, last) = match summary {
                Some(summary) => Window::summarised(tree, first, summary),
                None => Window::measured(tree, first)?,
            };
            if window.records.load(Relaxed) == 0 {
                engine.drop_tree(&name)?;
                continue;
            }
            newest = last;
            windows.push(Arc::new(window));
        }
        Ok(Self {
            meta: meta.clone(),
            list: Arc::new(RwLock::new(windows.into())),
            leaving: Vec::new(),
            next_cursor: at_least.max(newest + 1),
            newest: newest.max(at_least.saturating_sub(1)),
        })
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

    /// Writes an entry and returns its cursor.
    pub(super) fn append(
        &mut self,
        engine: &Engine,
        retention: Retention,
        entry: &Entry,
    ) -> Result<u64, StoreError> {
        let window = self.window(engine, retention, entry.time)?;
        let cursor = self.next_cursor;
        let mut value = Vec::with_capacity(TIME_OCTETS + entry.octets.len());
        value.extend_from_slice(&entry.time.0.to_be_bytes());
        value.extend_from_slice(&entry.octets);
        let octets = (size_of::<u64>() + value.len()) as u64;
        window.tree.insert(cursor.to_be_bytes(), value)?;
        self.newest = cursor;
        self.next_cursor += 1;
        window.last_time_ns.fetch_max(entry.time.0, Relaxed);
        window.records.fetch_add(1, Relaxed);
        window.octets.fetch_add(octets, Relaxed);
        Ok(cursor)
    }

    /// The newest window, or a new one where that has had its share.
    fn window(
        &mut self,
        engine: &Engine,
        retention: Retention,
        time: UnixTime,
    ) -> Result<Arc<Window>, StoreError> {
        let list = read(&self.list);
        let span_ns = (retention.age_ns / WINDOWS).max(SHORTEST_WINDOW_NS);
        if let Some(window) = list.last()
            && time.0.saturating_sub(window.first_time_ns) < span_ns
            && window.octets.load(Relaxed) < retention.octets / WINDOWS
        {
            return Ok(window.clone());
        }
        if let Some(full) = list.last() {
            let summary = full.summary(self.newest);
            self.meta.insert(tree_name(full.first_cursor), summary.to_octets())?;
        }
        let window = Arc::new(Window {
            tree: engine.tree(tree_name(self.next_cursor))?,
            first_cursor: self.next_cursor,
            first_time_ns: time.0,
            last_time_ns: time.0.into(),
            records: 0.into(),
            octets: 0.into(),
        });
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
            let name = tree_name(window.first_cursor);
            engine.drop_tree(&name)?;
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

/// Entries with cursors in `range`, at most so many records and octets; the newest of them, in
/// falling order, with `backwards`. At least one where there is one.
pub(super) fn entries(
    list: &WindowList,
    range: std::ops::RangeInclusive<u64>,
    records: usize,
    octets: usize,
    backwards: bool,
) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
    let (first, last) = (range.start().to_be_bytes(), range.end().to_be_bytes());
    let mut found = Vec::new();
    let mut size = 0;
    let mut take = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
        let (key, value) = entry?;
        size += value.len();
        if !found.is_empty() && (size > octets || found.len() >= records) {
            return Ok(false);
        }
        let content = value.get(TIME_OCTETS..).ok_or(StoreError::Damaged("record"))?;
        found.push((cursor_of(&key)?, content.to_vec()));
        Ok::<bool, StoreError>(true)
    };
    let mut through = |window: &Arc<Window>| -> Result<bool, StoreError> {
        let mut range = window.tree.range(first..=last);
        while let Some(entry) = if backwards { range.next_back() } else { range.next() } {
            if !take(entry)? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    if range.is_empty() {
        return Ok(found);
    }
    // Windows in front of the one that the range begins in hold nothing of it.
    let from = list.partition_point(|window| window.first_cursor <= *range.start()).max(1) - 1;
    let windows = list.get(from..).unwrap_or_default();
    if backwards {
        for window in windows.iter().rev() {
            if !through(window)? {
                break;
            }
        }
    } else {
        for window in windows {
            if !through(window)? {
                break;
            }
        }
    }
    Ok(found)
}

fn tree_name(first_cursor: u64) -> Vec<u8> {
    [PREFIX, &first_cursor.to_be_bytes()].concat()
}

fn cursor_of(key: &[u8]) -> Result<u64, StoreError> {
    key.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Damaged("cursor"))
}

fn time_of(value: &[u8]) -> Result<u64, StoreError> {
    value
        .first_chunk()
        .map(|octets| u64::from_be_bytes(*octets))
        .ok_or(StoreError::Damaged("record"))
}
