//! Opens sled so that a damaged file is an error and never an abort, and flushes durably.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{StoreError, disk, presence::Presence, reserve, schema::SCHEMA};

/// Interval of the flusher of sled, milliseconds; its garbage collection depends on it.
const FLUSH_EVERY_MS: u64 = 2_000;
/// Key in each database: sled begins anew over what it cannot read, and one that was created has this.
pub(super) const MARK: &[u8] = b"schema";
const DATA_FILE: &str = "db";
const SETTINGS_FILE: &str = "conf";
/// File beside the database of a window, written after its [`MARK`]: without it the database holds no
/// record yet.
const CREATED: &str = "created";
/// Files in which sled notes what it found in its log, to find it sooner the next time.
const SNAPSHOT: &str = "snap.";
const UNFINISHED: &str = ".generating";
/// Attempts to lock a file, and the time between two: 5 s in all.
const LOCK_TRIES: u32 = 100;
const LOCK_AGAIN: Duration = Duration::from_millis(50);

/// An open database of sled.
#[derive(Debug)]
pub(super) struct Engine {
    db: sled::Db,
    path: PathBuf,
    /// The data file, to have the disk write it: sled's flush does not.
    data: File,
    /// New place of the damaged database that this one replaces.
    put_aside: Option<PathBuf>,
    presence: Presence,
}

/// sled tells of its lock by the text alone.
fn is_lock(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

impl Engine {
    /// Opens a database. One that is damaged is renamed and a new one begun.
    pub(super) fn open(path: &Path, cache_octets: u64) -> Result<Self, StoreError> {
        mend_settings(&path.join(SETTINGS_FILE));
        match Self::open_whole(path, cache_octets) {
            Ok(engine) => Ok(engine),
            Err(error @ StoreError::Directory { .. }) => Err(error),
            // Snapshots are all that is damaged where the log of sled is whole.
            Err(error) => match remove_snapshots(path, ".") {
                true => Self::open_whole(path, cache_octets),
                false => Err(error),
            }
            .or_else(|error| Self::open_anew(path, cache_octets, &error)),
        }
    }

    /// Puts a damaged database aside and begins a new one. Without space for that nothing is touched:
    /// the lack of space may be the damage.
    pub(super) fn open_anew(
        path: &Path,
        cache_octets: u64,
        error: &StoreError,
    ) -> Result<Self, StoreError> {
        reserve::check(path.parent().unwrap_or(path))?;
        let aside = quarantine(path)?;
        let kept = aside.display();
        tracing::error!(%error, %kept, "database was damaged; a new one is begun");
        let engine = Self::open_whole(path, cache_octets)?;
        Ok(Self { put_aside: Some(aside), ..engine })
    }

    /// Opens a database as it is; one that is damaged is left alone.
    pub(super) fn open_whole(path: &Path, cache_octets: u64) -> Result<Self, StoreError> {
        let existed = path.join(DATA_FILE).exists();
        let engine = Self::open_unmarked(path, cache_octets)?;
        if engine.db.get(MARK)?.is_none() {
            if existed {
                return Err(StoreError::Damaged("database"));
            }
            engine.db.insert(MARK, &SCHEMA.to_be_bytes())?;
            engine.flush_durably()?;
            sync_entries(path)
                .map_err(|source| StoreError::Directory { path: path.to_owned(), source })?;
        }
        Ok(engine)
    }

    /// Opens the database of a window as it is. sled begins anew over a file of which it can read
    /// nothing: such a one is an error, not an empty window.
    pub(super) fn open_window(path: &Path, cache_octets: u64) -> Result<Self, StoreError> {
        mend_settings(&path.join(SETTINGS_FILE));
        match Self::open_marked(path, cache_octets) {
            Err(StoreError::Damaged(_)) if remove_snapshots(path, ".") => {
                Self::open_marked(path, cache_octets)
            }
            opened => opened,
        }
    }

    fn open_marked(path: &Path, cache_octets: u64) -> Result<Self, StoreError> {
        let exists = path.join(DATA_FILE).try_exists();
        if !exists.map_err(|source| StoreError::Directory { path: path.to_owned(), source })? {
            return Err(StoreError::Damaged("window of records"));
        }
        let engine = Self::open_unmarked(path, cache_octets)?;
        match engine.db.get(MARK)? {
            Some(_) => Ok(engine),
            None => Err(StoreError::Damaged("window of records")),
        }
    }

    /// Creates the database of a window, in the place of one whose creation was cut short.
    pub(super) fn create_window(path: &Path, cache_octets: u64) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Directory { path: path.to_owned(), source };
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let engine = Self::open_unmarked(path, cache_octets)?;
        engine.db.insert(MARK, &SCHEMA.to_be_bytes())?;
        engine.flush_durably()?;
        note_created(path).map_err(failed)?;
        Ok(engine)
    }

    fn open_unmarked(path: &Path, cache_octets: u64) -> Result<Self, StoreError> {
        // A start that found no space leaves these, and sled takes them for damage.
        remove_snapshots(path, UNFINISHED);
        let existed = path.join(DATA_FILE).exists();
        if !existed {
            reserve::check(path.parent().unwrap_or(path))?;
        }
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_octets)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        // sled 0.34 panics over some kinds of damage.
        let open = || catch_unwind(AssertUnwindSafe(|| config.open()));
        let mut opened = open();
        // Its threads hold the file a moment longer than the database that they were of, and so
        // does a child of this process that has yet to become another program.
        for _ in 0..LOCK_TRIES {
            if !matches!(&opened, Ok(Err(sled::Error::Io(error))) if is_lock(error)) {
                break;
            }
            std::thread::park_timeout(LOCK_AGAIN);
            opened = open();
        }
        let db = match opened {
            Ok(Ok(db)) => db,
            // Something else stands in the place of a directory or of a file.
            Ok(Err(sled::Error::Io(error)))
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
                ) =>
            {
                return Err(StoreError::Damaged("database"));
            }
            Ok(Err(sled::Error::Io(source))) => {
                return Err(StoreError::Directory { path: path.to_owned(), source });
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(StoreError::Damaged("database")),
        };
        let failed = |source| StoreError::Directory { path: path.to_owned(), source };
        let file = path.join(DATA_FILE);
        let data = File::open(&file).map_err(failed)?;
        let presence = Presence::of(&file, &data).map_err(failed)?;
        Ok(Self { db, path: path.to_owned(), data, put_aside: None, presence })
    }

    pub(super) fn tree(&self, name: impl AsRef<[u8]>) -> Result<sled::Tree, StoreError> {
        Ok(self.db.open_tree(name)?)
    }

    pub(super) fn put(
        &self,
        tree: &[u8],
        key: impl AsRef<[u8]>,
        value: impl Into<sled::IVec>,
    ) -> Result<(), StoreError> {
        self.tree(tree)?.insert(key, value)?;
        Ok(())
    }

    pub(super) fn tree_names(&self) -> Vec<Vec<u8>> {
        self.db.tree_names().iter().map(|name| name.to_vec()).collect()
    }

    /// Hands everything to the kernel: it survives the death of this process.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        Ok(())
    }

    /// Has the disk write everything: it survives a loss of power.
    pub(super) fn flush_durably(&self) -> Result<(), StoreError> {
        self.flush()?;
        self.data
            .sync_data()
            .map_err(|source| StoreError::Directory { path: self.path.clone(), source })
    }

    /// Returns an error if the data file is no longer where it was opened.
    pub(super) fn check_presence(&self) -> Result<(), StoreError> {
        self.presence.check()
    }

    /// Returns the new place of the damaged database that this one replaces.
    pub(super) fn put_aside(&self) -> Option<&Path> {
        self.put_aside.as_deref()
    }

    /// Returns the octets of the database on the disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }
}

/// sled has beside its data how that is laid out, which is the same for all that this agent makes: where
/// it is not what its sum says it is, it goes, and sled writes it anew.
fn mend_settings(path: &Path) {
    let is_whole = match fs::read(path) {
        Ok(octets) => octets
            .split_last_chunk::<4>()
            .is_some_and(|(settings, sum)| crc32fast::hash(settings) == u32::from_le_bytes(*sum)),
        // Nothing stands there, but for a link to nothing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => !path.is_symlink(),
        // Opening the database reports it.
        Err(_) => true,
    };
    if !is_whole {
        let removed = fs::remove_file(path);
        tracing::warn!(file = %path.display(), ?removed, "was damaged; it is written anew");
    }
}

/// Removes snapshots whose names contain this; whether there was one.
fn remove_snapshots(path: &Path, containing: &str) -> bool {
    let names = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let snapshots = names.filter(|name| name.starts_with(SNAPSHOT) && name.contains(containing));
    let removed = snapshots.filter(|name| fs::remove_file(path.join(name)).is_ok()).count();
    removed > 0
}

/// Renames a damaged database; an older one that was put aside is removed.
fn quarantine(path: &Path) -> Result<PathBuf, StoreError> {
    let failed = |source| StoreError::Directory { path: path.to_owned(), source };
    let aside = path.with_extension("damaged");
    if aside.is_dir() {
        fs::remove_dir_all(&aside).map_err(failed)?;
    } else if aside.exists() {
        fs::remove_file(&aside).map_err(failed)?;
    }
    disk::rename(path, &aside).map_err(failed)?;
    Ok(aside)
}

/// Returns true when the creation of the database of a window came to its end.
pub(super) fn is_created(path: &Path) -> io::Result<bool> {
    path.join(CREATED).try_exists()
}

/// Notes that the database of a window is created, durably.
pub(super) fn note_created(path: &Path) -> io::Result<()> {
    File::create(path.join(CREATED))?.sync_all()?;
    sync_entries(path)
}

/// Has the disk write the directory of a database, and the entry of that.
fn sync_entries(path: &Path) -> io::Result<()> {
    disk::sync_directory(path)?;
    path.parent().map_or(Ok(()), disk::sync_directory)
}
