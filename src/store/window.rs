//! A window of the log: one tree of pages for a span of time or octets, and one beside it of the
//! subjects that they name. Removing records one by one would never give room back; a window goes as
//! a whole.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use prost::Message;

use super::{StoreError, engine::Engine, entries::readable, pages::Pages};
use crate::time::UnixTime;

const PAGES: &[u8] = b"page/";
const SUBJECTS: &[u8] = b"subject/";

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

/// The names of the two trees of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WindowName {
    pub(super) first_cursor: u64,
    /// How often records were taken out of it.
    generation: u32,
}

impl WindowName {
    /// Of a window that begins with this cursor.
    pub(super) fn new(first_cursor: u64) -> Self {
        Self { first_cursor, generation: 0 }
    }

    /// Of a tree of pages; `None` for any other.
    pub(super) fn of(tree: &[u8]) -> Option<Self> {
        let (first_cursor, generation) = tree.strip_prefix(PAGES)?.split_first_chunk()?;
        let generation = match generation {
            [] => 0,
            number => u32::from_be_bytes(number.try_into().ok()?),
        };
        Some(Self { first_cursor: u64::from_be_bytes(*first_cursor), generation })
    }

    /// Whether nothing was ever taken out of it.
    pub(super) fn is_first(self) -> bool {
        self.generation == 0
    }

    pub(super) fn pages(self) -> Vec<u8> {
        self.tree(PAGES)
    }

    fn subjects(self) -> Vec<u8> {
        self.tree(SUBJECTS)
    }

    fn tree(self, prefix: &[u8]) -> Vec<u8> {
        let mut name = [prefix, &self.first_cursor.to_be_bytes()].concat();
        if self.generation > 0 {
            name.extend_from_slice(&self.generation.to_be_bytes());
        }
        name
    }

    /// Removes the trees.
    pub(super) fn remove(self, engine: &Engine) -> Result<(), StoreError> {
        engine.drop_tree(&self.pages())?;
        engine.drop_tree(&self.subjects())
    }
}

/// One window.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) pages: sled::Tree,
    subjects: sled::Tree,
    /// Those that were read.
    known: RwLock<HashMap<u32, Arc<Subject>>>,
    pub(super) name: WindowName,
    first_time_ns: u64,
    last_time_ns: AtomicU64,
    records: AtomicU64,
    octets: AtomicU64,
    /// Some of it cannot be read.
    pub(super) is_damaged: AtomicBool,
    /// Age at which records of connections are to be taken out of it.
    pub(super) trim_at_age_ns: AtomicU64,
}

/// What is known of a window that gets no more records, kept beside the log: a start need not read
/// all that is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Summary {
    pub(super) last_cursor: u64,
    records: u64,
    octets: u64,
    first_time_ns: u64,
    last_time_ns: u64,
}

impl Summary {
    /// Of one that is begun.
    pub(super) fn beginning_at(time: UnixTime) -> Self {
        Self { first_time_ns: time.0, last_time_ns: time.0, ..Self::default() }
    }

    pub(super) fn to_octets(self) -> Vec<u8> {
        let Self { last_cursor, records, octets, first_time_ns, last_time_ns } = self;
        [last_cursor, records, octets, first_time_ns, last_time_ns]
            .iter()
            .flat_map(|field| field.to_be_bytes())
            .collect()
    }

    pub(super) fn from_octets(octets: &[u8]) -> Option<Self> {
        let (fields, []) = octets.as_chunks::<8>() else { return None };
        let [last_cursor, records, octets, first_time_ns, last_time_ns] =
            fields.iter().map(|f| u64::from_be_bytes(*f)).collect::<Vec<_>>().try_into().ok()?;
        Some(Self { last_cursor, records, octets, first_time_ns, last_time_ns })
    }
}

impl Window {
    pub(super) fn open(
        engine: &Engine,
        name: WindowName,
        summary: Summary,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            pages: engine.tree(name.pages())?,
            subjects: engine.tree(name.subjects())?,
            known: RwLock::default(),
            name,
            first_time_ns: summary.first_time_ns,
            last_time_ns: summary.last_time_ns.into(),
            records: summary.records.into(),
            octets: summary.octets.into(),
            is_damaged: AtomicBool::default(),
            trim_at_age_ns: AtomicU64::default(),
        })
    }

    /// An empty one that is to take the place of this.
    pub(super) fn successor(&self, engine: &Engine) -> Result<Self, StoreError> {
        let generation = self.name.generation + 1;
        let name = WindowName { generation, ..self.name };
        // What is there of it was not finished.
        name.remove(engine)?;
        let times = Summary { records: 0, octets: 0, ..self.summary(0) };
        Self::open(engine, name, times)
    }

    pub(super) fn summary(&self, last_cursor: u64) -> Summary {
        Summary {
            last_cursor,
            records: self.records.load(Relaxed),
            octets: self.octets.load(Relaxed),
            first_time_ns: self.first_time_ns,
            last_time_ns: self.last_time_ns.load(Relaxed),
        }
    }

    /// Reads the trees to know what is in them: of the newest window, when the log is opened. What
    /// cannot be read is left out, and the window is damaged then.
    pub(super) fn measured(engine: &Engine, name: WindowName) -> Result<(Self, u64), StoreError> {
        let mut window = Self::open(engine, name, Summary::default())?;
        let (mut records, mut octets, mut last) = (0, 0, name.first_cursor.saturating_sub(1));
        let (mut times, mut used) = (None, HashSet::new());
        for entry in Pages::of(&window, name.first_cursor, u64::MAX) {
            let (key, value) = entry?;
            octets += (size_of_val(&key) + value.len()) as u64;
            for record in readable(key, &value, &window) {
                last = record.cursor;
                used.insert(record.subject);
                let (first, _) = times.unwrap_or((record.time.0, record.time.0));
                times = Some((first, record.time.0));
                records += 1;
            }
        }
        for entry in window.stored_subjects() {
            match entry {
                Ok((number, value)) => {
                    octets += (size_of_val(&number) + value.len()) as u64;
                    used.remove(&number);
                }
                Err(StoreError::Damaged(_)) => {
                    window.is_damaged.store(true, Relaxed);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        // The number of one that is gone must not become that of another.
        window.is_damaged.fetch_or(!used.is_empty(), Relaxed);
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

    /// The subjects as they are stored, with their numbers.
    pub(super) fn stored_subjects(
        &self,
    ) -> impl Iterator<Item = Result<(u32, sled::IVec), StoreError>> {
        self.subjects.iter().map(|entry| {
            let (key, octets) = entry?;
            let number = key.as_ref().try_into().map(u32::from_be_bytes);
            Ok((number.map_err(|_| StoreError::Damaged("subject of a record"))?, octets))
        })
    }

    pub(super) fn put_subject(&self, number: u32, octets: Vec<u8>) -> Result<(), StoreError> {
        self.octets.fetch_add((size_of::<u32>() + octets.len()) as u64, Relaxed);
        self.subjects.insert(number.to_be_bytes(), octets)?;
        Ok(())
    }

    /// Stores a page that begins with a cursor and has so many records.
    pub(super) fn put_page(
        &self,
        (first_cursor, records, page): (u64, u64, Vec<u8>),
    ) -> Result<(), StoreError> {
        let octets = (size_of::<u64>() + page.len()) as u64;
        self.pages.insert(first_cursor.to_be_bytes(), page)?;
        self.records.fetch_add(records, Relaxed);
        self.octets.fetch_add(octets, Relaxed);
        Ok(())
    }

    /// Some of it cannot be read, near this cursor: logged once.
    pub(super) fn tell_damage(&self, error: &StoreError, near: u64) {
        if !self.is_damaged.swap(true, Relaxed) {
            tracing::error!(%error, near, "stored results cannot be read; the rest goes on");
        }
    }

    /// Notes the time of a record.
    pub(super) fn saw(&self, time: UnixTime) {
        self.last_time_ns.fetch_max(time.0, Relaxed);
    }

    /// Whether a record of a time is so near the first one, before or behind it.
    pub(super) fn is_within(&self, time: UnixTime, span_ns: u64) -> bool {
        time.0.abs_diff(self.first_time_ns) < span_ns
    }

    pub(super) fn last_time(&self) -> UnixTime {
        UnixTime(self.last_time_ns.load(Relaxed))
    }

    pub(super) fn records(&self) -> u64 {
        self.records.load(Relaxed)
    }

    pub(super) fn octets(&self) -> u64 {
        self.octets.load(Relaxed)
    }
}

pub(super) fn cursor_of(key: &[u8]) -> Result<u64, StoreError> {
    key.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Damaged("cursor"))
}
