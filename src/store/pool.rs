//! Databases of windows, each in its own directory, opened when they are read. The number of open
//! databases is limited, so that memory use does not grow with the log.

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
};

use prost::Message;

use super::{
    StoreError, Subject, disk,
    engine::{self, Engine},
    layout::{Summary, WindowName},
};

/// Number of databases that stay open after a read, in addition to the one being filled.
const OPEN_DATABASES: usize = 4;
/// Cache size of one database, bytes.
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
    /// Cache of the subjects read so far, by number.
    known: RwLock<HashMap<u32, Arc<Subject>>>,
    /// The copy of which this is the database, if it is a copy; dropped after the database.
    _copy: Option<Copy>,
}

/// Directory with a copy of a database, removed when this value is dropped.
#[derive(Debug)]
pub(super) struct Copy(PathBuf);

impl Copy {
    /// Copies the directory of a database.
    pub(super) fn new(database: &Path, to: PathBuf) -> Result<Self, StoreError> {
        let copy = Self(to);
        disk::copy(database, &copy.0)
            .map_err(|source| StoreError::Directory { path: database.to_owned(), source })?;
        Ok(copy)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            let path = self.0.display();
            tracing::debug!(%error, %path, "failed to remove a copy of a database");
        }
    }
}

impl Files {
    /// Opens a database with `open`. sled panics on some kinds of damage, also after it has opened
    /// the database.
    fn open(open: impl FnOnce() -> Result<Engine, StoreError>) -> Result<Self, StoreError> {
        catch_unwind(AssertUnwindSafe(|| {
            let engine = open()?;
            let (pages, subjects) = (engine.tree("pages")?, engine.tree("subjects")?);
            let (meta, known) = (engine.tree("meta")?, RwLock::default());
            Ok(Self { engine, pages, subjects, meta, known, _copy: None })
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

    /// Returns the numbers and encodings of the stored subjects.
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

    /// Returns the summary of a sealed window; `None` if the window is not sealed.
    pub(super) fn summary(&self) -> Result<Option<Summary>, StoreError> {
        let octets = self.meta.get(SUMMARY)?;
        Ok(octets.and_then(|octets| Summary::decode(octets.as_ref()).ok()))
    }

    /// Seals the window: stores its summary durably. Records must not be added after this.
    pub(super) fn seal(&self, summary: &Summary) -> Result<(), StoreError> {
        self.engine.flush_durably()?;
        self.meta.insert(SUMMARY, summary.encode_to_vec())?;
        self.engine.flush_durably()
    }
}

/// The databases in the directory of the log.
#[derive(Debug)]
pub(super) struct Pool {
    directory: PathBuf,
    /// Directory for copies. If it is set, the log is read-only and databases are opened as copies.
    copies: Option<PathBuf>,
    handles: Mutex<Handles>,
}

/// The database of a window while it is open. A thread that opens it holds this lock and no other.
type Slot = Arc<Mutex<Weak<Files>>>;

#[derive(Debug, Default)]
struct Handles {
    slots: HashMap<WindowName, Slot>,
    /// Databases that were used last, the latest first.
    recent: VecDeque<(WindowName, Arc<Files>)>,
}

impl Handles {
    /// Returns the slot of a window, and removes the slots of closed windows.
    fn slot(&mut self, name: WindowName) -> Slot {
        self.slots.retain(|_, slot| {
            let is_open = |files: MutexGuard<'_, Weak<Files>>| files.strong_count() > 0;
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(is_open)
        });
        self.slots.entry(name).or_default().clone()
    }

    fn remove_recent(&mut self, name: WindowName) -> Option<Arc<Files>> {
        let index = self.recent.iter().position(|(recent, _)| *recent == name)?;
        self.recent.remove(index).map(|(_, files)| files)
    }
}

impl Pool {
    /// Creates the directory if it does not exist, and completes interrupted removals.
    pub(super) fn open(directory: &Path) -> Result<Arc<Self>, StoreError> {
        let pool =
            Self { directory: directory.to_owned(), copies: None, handles: Mutex::default() };
        if !directory.try_exists().map_err(|source| pool.failed(source))? {
            fs::create_dir_all(directory)
                .and_then(|()| directory.parent().map_or(Ok(()), disk::sync_directory))
                .map_err(|source| pool.failed(source))?;
        }
        for entry in fs::read_dir(directory).map_err(|source| pool.failed(source))?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == REMOVED)
                && let Err(error) = fs::remove_dir_all(entry.path())
            {
                let path = entry.path();
                tracing::warn!(%error, path = %path.display(), "failed to remove a window of results");
            }
        }
        Ok(Arc::new(pool))
    }

    /// Opens the directory read-only: databases are opened as copies in the directory `copies`.
    pub(super) fn inspect(directory: &Path, copies: &Path) -> Arc<Self> {
        let (directory, copies) = (directory.to_owned(), Some(copies.to_owned()));
        Arc::new(Self { directory, copies, handles: Mutex::default() })
    }

    /// Returns false if the directory is opened read-only.
    pub(super) fn may_change(&self) -> bool {
        self.copies.is_none()
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::Directory { path: self.directory.clone(), source }
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the directory of the log.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the directory of a window.
    pub(super) fn path(&self, name: WindowName) -> PathBuf {
        self.directory.join(name.to_string())
    }

    /// Returns the names of the windows that have a directory, in ascending order.
    pub(super) fn names(&self) -> Result<Vec<WindowName>, StoreError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| self.failed(source))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|source| self.failed(source))?.file_name();
            names.extend(name.to_str().and_then(|name| name.parse::<WindowName>().ok()));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Returns false if the creation of a window was interrupted: it contains no record.
    pub(super) fn is_created(&self, name: WindowName) -> Result<bool, StoreError> {
        let path = self.path(name);
        if engine::is_created(&path).map_err(|source| self.failed(source))? {
            return Ok(true);
        }
        match self.files(name) {
            // The window was created, but its marker file is missing.
            Ok(_) if self.may_change() => {
                engine::note_created(&path).map_err(|source| self.failed(source))?;
                Ok(true)
            }
            Ok(_) => Ok(true),
            Err(StoreError::Damaged(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the database of an existing window.
    pub(super) fn files(&self, name: WindowName) -> Result<Arc<Files>, StoreError> {
        self.opened(name, |path| Engine::open_window(path, CACHE_OCTETS))
    }

    /// Returns the database of a window, and creates it unless it is open.
    pub(super) fn create(&self, name: WindowName) -> Result<Arc<Files>, StoreError> {
        self.opened(name, |path| Engine::create_window(path, CACHE_OCTETS))
    }

    fn opened(
        &self,
        name: WindowName,
        open: impl FnOnce(&Path) -> Result<Engine, StoreError>,
    ) -> Result<Arc<Files>, StoreError> {
        let slot = self.handles().slot(name);
        let mut open_one = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let files = match (open_one.upgrade(), &self.copies) {
            (Some(files), _) => files,
            (None, None) => Arc::new(Files::open(|| open(&self.path(name)))?),
            (None, Some(copies)) => {
                let copy = Copy::new(&self.path(name), copies.join(name.to_string()))?;
                let files = Files::open(|| open(copy.path()))?;
                Arc::new(Files { _copy: Some(copy), ..files })
            }
        };
        *open_one = Arc::downgrade(&files);
        drop(open_one);
        let mut handles = self.handles();
        let before = handles.remove_recent(name);
        handles.recent.push_front((name, files.clone()));
        let oldest = (handles.recent.len() > OPEN_DATABASES).then(|| handles.recent.pop_back());
        drop(handles);
        // Closing a database writes to the disk, so the lock is released first.
        drop((before, oldest));
        Ok(files)
    }

    /// Closes a database unless it is in use; returns true if it is closed.
    pub(super) fn close(&self, name: WindowName) -> bool {
        let mut handles = self.handles();
        let recent = handles.remove_recent(name);
        let slot = handles.slots.get(&name).cloned();
        drop(handles);
        drop(recent);
        slot.is_none_or(|slot| slot.try_lock().is_ok_and(|files| files.strong_count() == 0))
    }

    /// Removes the directory of a closed window. The next start completes an interrupted removal.
    pub(super) fn remove(&self, name: WindowName) -> Result<(), StoreError> {
        let path = self.path(name);
        let removed = path.with_extension(REMOVED);
        let done = disk::rename(&path, &removed).and_then(|()| fs::remove_dir_all(&removed));
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    /// Returns the size of a window on disk, bytes.
    pub(super) fn disk_bytes(&self, name: WindowName) -> u64 {
        disk::disk_bytes(&self.path(name))
    }
}
