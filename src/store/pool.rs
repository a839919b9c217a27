//! Databases of windows, each in a directory of its own, opened when they are read: a bounded number
//! is open at once, so that memory does not grow with the history.

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
};

use prost::Message;

use super::{
    StoreError, Subject,
    engine::Engine,
    layout::{Summary, WindowName},
};

/// Databases that stay open after they were read, besides the one that is filled.
const OPEN: usize = 4;
/// Cache of one database.
const CACHE_OCTETS: u64 = 2 << 20;
/// Extension of a directory that is being removed.
const REMOVED: &str = "removed";
const SUMMARY: &[u8] = b"summary";

/// The open database of a window.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) engine: Engine,
    pub(super) pages: sled::Tree,
    subjects: sled::Tree,
    meta: sled::Tree,
    /// Subjects that were read.
    known: RwLock<HashMap<u32, Arc<Subject>>>,
}

impl Files {
    fn open(path: &Path) -> Result<Self, StoreError> {
        // sled panics over some kinds of damage, also after its own opening.
        catch_unwind(AssertUnwindSafe(|| {
            let engine = Engine::open_window(path, CACHE_OCTETS)?;
            let (pages, subjects) = (engine.tree("pages")?, engine.tree("subjects")?);
            let (meta, known) = (engine.tree("meta")?, RwLock::default());
            Ok(Self { engine, pages, subjects, meta, known })
        }))
        .unwrap_or(Err(StoreError::Damaged("window of records")))
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
        self.subjects.insert(number.to_be_bytes(), octets)?;
        Ok(())
    }

    /// Summary of a window that gets no more records.
    pub(super) fn summary(&self) -> Result<Option<Summary>, StoreError> {
        let octets = self.meta.get(SUMMARY)?;
        Ok(octets.and_then(|octets| Summary::decode(octets.as_ref()).ok()))
    }

    /// Stores the summary, durably: the window gets no more records.
    pub(super) fn seal(&self, summary: &Summary) -> Result<(), StoreError> {
        self.engine.flush_durably()?;
        self.meta.insert(SUMMARY, summary.encode_to_vec())?;
        self.engine.flush_durably()
    }
}

/// The databases in the directory of the log.
#[derive(Debug)]
pub(super) struct Pool {
    place: PathBuf,
    handles: Mutex<Handles>,
}

#[derive(Debug, Default)]
struct Handles {
    /// All that somebody has open.
    open: HashMap<WindowName, Weak<Files>>,
    /// The latest ones, newest first.
    recent: VecDeque<(WindowName, Arc<Files>)>,
}

impl Pool {
    /// Creates the directory where there is none, and ends removals that were cut short.
    pub(super) fn open(place: &Path) -> Result<Arc<Self>, StoreError> {
        let pool = Self { place: place.to_owned(), handles: Mutex::default() };
        fs::create_dir_all(place).map_err(|source| pool.failed(source))?;
        for entry in fs::read_dir(place).map_err(|source| pool.failed(source))?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == REMOVED) {
                fs::remove_dir_all(entry.path()).map_err(|source| pool.failed(source))?;
            }
        }
        Ok(Arc::new(pool))
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::Directory { path: self.place.clone(), source }
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Directory of the log.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Directory of a window.
    pub(super) fn path(&self, name: WindowName) -> PathBuf {
        self.place.join(name.to_string())
    }

    /// Names of the windows that have a directory, rising.
    pub(super) fn names(&self) -> Result<Vec<WindowName>, StoreError> {
        let entries = fs::read_dir(&self.place).map_err(|source| self.failed(source))?;
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Whether the database of a window has a file.
    pub(super) fn has_file(&self, name: WindowName) -> bool {
        self.path(name).join("db").exists()
    }

    /// The database of a window that exists.
    pub(super) fn files(&self, name: WindowName) -> Result<Arc<Files>, StoreError> {
        if !self.has_file(name) {
            return Err(StoreError::Damaged("window of records"));
        }
        self.open_or_create(name)
    }

    /// The database of a window; a new one where there is none.
    pub(super) fn open_or_create(&self, name: WindowName) -> Result<Arc<Files>, StoreError> {
        let mut handles = self.handles();
        let known = handles.recent.iter().position(|(recent, _)| *recent == name);
        let files = match known.and_then(|index| handles.recent.remove(index)) {
            Some((_, files)) => files,
            None => match handles.open.get(&name).and_then(Weak::upgrade) {
                Some(files) => files,
                None => Arc::new(Files::open(&self.path(name))?),
            },
        };
        handles.open.retain(|_, files| files.strong_count() > 0);
        handles.open.insert(name, Arc::downgrade(&files));
        handles.recent.push_front((name, files.clone()));
        let oldest = (handles.recent.len() > OPEN).then(|| handles.recent.pop_back());
        drop(handles);
        // Closing writes: nobody else waits for that.
        drop(oldest);
        Ok(files)
    }

    /// Closes a database, unless somebody reads it; returns whether it is closed.
    pub(super) fn close(&self, name: WindowName) -> bool {
        let mut handles = self.handles();
        let index = handles.recent.iter().position(|(recent, _)| *recent == name);
        let recent = index.and_then(|index| handles.recent.remove(index));
        drop(handles);
        drop(recent);
        self.handles().open.get(&name).is_none_or(|files| files.strong_count() == 0)
    }

    /// Removes the directory of a window that is closed. A removal that is cut short is ended by the
    /// next start.
    pub(super) fn remove(&self, name: WindowName) -> Result<(), StoreError> {
        let path = self.path(name);
        let removed = path.with_extension(REMOVED);
        let done = fs::rename(&path, &removed).and_then(|()| fs::remove_dir_all(&removed));
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    /// Octets on disk of a window.
    pub(super) fn disk_bytes(&self, name: WindowName) -> u64 {
        super::quarantine::disk_bytes(&self.path(name))
    }
}
