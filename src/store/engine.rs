//! sled databases that report a damaged file as an error instead of panicking, and flush durably.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    StoreError, disk,
    presence::{Presence, WrittenLen},
    reserve,
    schema::SCHEMA,
};

/// Flush interval of sled, milliseconds; sled's garbage collection depends on it.
const FLUSH_INTERVAL_MS: u64 = 2_000;
/// Key that each database has since its creation. sled replaces unreadable data with an empty
/// database, which lacks the key.
pub(super) const MARK: &[u8] = b"schema";
const DATA_FILE: &str = "db";
const SETTINGS_FILE: &str = "conf";
/// File in the directory of a window, written after its [`MARK`]. Without it the database contains
/// no record yet.
const CREATED: &str = "created";
/// Prefix of the files in which sled stores an index of its log, to open a database sooner.
const SNAPSHOT: &str = "snap.";
const UNFINISHED: &str = ".generating";
/// Attempts to lock a database, and the pause between two: 5 s in total.
const LOCK_TRIES: u32 = 100;
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// An open database of sled.
#[derive(Debug)]
pub(super) struct Engine {
    db: sled::Db,
    path: PathBuf,
    /// The data file, opened to sync it: sled's flush does not.
    data: File,
    /// Path to which the damaged database that this one replaces was moved.
    quarantined: Option<PathBuf>,
    presence: Presence,
    written: WrittenLen,
}

/// Returns true if a lock is held by another owner. sled reports that only in the error text.
fn is_lock(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

impl Engine {
    /// Opens a database. A damaged database is renamed and replaced with a new one.
    pub(super) fn open(path: &Path, cache_octets: u64) -> Result<Self, StoreError> {
        repair_settings(&path.join(SETTINGS_FILE));
        match Self::open_whole(path, cache_octets) {
            Ok(engine) => Ok(engine),
            Err(error @ StoreError::Directory { .. }) => Err(error),
            // If only the snapshots are damaged, the database opens without them.
            Err(error) => match remove_snapshots(path, ".") {
                true => Self::open_whole(path, cache_octets),
                false => Err(error),
            }
            .or_else(|error| Self::open_replacement(path, cache_octets, &error)),
        }
    }

    /// Renames a damaged database and creates a new one. On a full disk the database is left
    /// unchanged, because the lack of space may be the cause of the error.
    pub(super) fn open_replacement(
        path: &Path,
        cache_octets: u64,
        error: &StoreError,
    ) -> Result<Self, StoreError> {
        reserve::check(path.parent().unwrap_or(path))?;
        let quarantined = quarantine(path)?;
        let kept = quarantined.display();
        tracing::error!(%error, moved_to = %kept, "database damaged, starting an empty one");
        let engine = Self::open_whole(path, cache_octets)?;
        Ok(Self { quarantined: Some(quarantined), ..engine })
    }

    /// Opens a database, and creates it if it does not exist; a damaged database is an error and
    /// left unchanged.
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

    /// Opens the database of an existing window. A file that sled cannot read at all is an error:
    /// sled would replace it with an empty database.
    pub(super) fn open_window(path: &Path, cache_octets: u64) -> Result<Self, StoreError> {
        repair_settings(&path.join(SETTINGS_FILE));
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

    /// Creates the database of a window, and replaces one whose creation was interrupted.
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
        // A start on a full disk leaves unfinished snapshots, which sled reports as damage.
        remove_snapshots(path, UNFINISHED);
        let existed = path.join(DATA_FILE).exists();
        if !existed {
            reserve::check(path.parent().unwrap_or(path))?;
        }
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_octets)
            .flush_every_ms(Some(FLUSH_INTERVAL_MS));
        // sled 0.34 panics on some kinds of damage.
        let open = || catch_unwind(AssertUnwindSafe(|| config.open()));
        let mut opened = open();
        // The threads of sled hold the lock for a moment after the database is dropped, and so does
        // a child process between fork and exec.
        for _ in 0..LOCK_TRIES {
            if !matches!(&opened, Ok(Err(sled::Error::Io(error))) if is_lock(error)) {
                break;
            }
            std::thread::park_timeout(LOCK_RETRY_INTERVAL);
            opened = open();
        }
        let db = match opened {
            Ok(Ok(db)) => db,
            // A file exists in place of a directory, or the reverse.
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
        let presence = Presence::new(&file, &data).map_err(failed)?;
        Ok(Self {
            db,
            path: path.to_owned(),
            data,
            quarantined: None,
            presence,
            written: WrittenLen::default(),
        })
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

    /// Hands all data to the kernel, so that it survives the death of this process.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        Ok(())
    }

    /// Writes all data to the disk, so that it survives a loss of power.
    pub(super) fn flush_durably(&self) -> Result<(), StoreError> {
        self.flush()?;
        self.data
            .sync_data()
            .map_err(|source| StoreError::Directory { path: self.path.clone(), source })
    }

    /// Returns an error if the data file is no longer where it was opened, or was truncated.
    pub(super) fn check_presence(&self) -> Result<(), StoreError> {
        self.presence.check()?;
        match self.written.is_truncated(&self.data) {
            true => Err(self.presence.error()),
            false => Ok(()),
        }
    }

    /// Returns the path to which the damaged database that this one replaces was moved.
    pub(super) fn quarantined(&self) -> Option<&Path> {
        self.quarantined.as_deref()
    }

    /// Returns the size of the database on disk, bytes.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }
}

/// Removes the settings file of a database if its checksum is wrong. sled writes it again; the
/// settings are the same for all databases of this agent.
fn repair_settings(path: &Path) {
    let is_whole = match fs::read(path) {
        Ok(octets) => octets
            .split_last_chunk::<4>()
            .is_some_and(|(settings, sum)| crc32fast::hash(settings) == u32::from_le_bytes(*sum)),
        // The path does not exist, or is a dangling link.
        Err(error) if error.kind() == io::ErrorKind::NotFound => !path.is_symlink(),
        // Opening the database reports the error.
        Err(_) => true,
    };
    if !is_whole {
        let error = fs::remove_file(path).err().map(tracing::field::display);
        tracing::warn!(file = %path.display(), error, "database settings damaged, rewriting");
    }
}

/// Removes snapshots whose names contain `containing`; returns true if one was removed.
fn remove_snapshots(path: &Path, containing: &str) -> bool {
    let names = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let snapshots = names.filter(|name| name.starts_with(SNAPSHOT) && name.contains(containing));
    let removed = snapshots.filter(|name| fs::remove_file(path.join(name)).is_ok()).count();
    removed > 0
}

/// Renames a damaged database, and removes an earlier one of that name; returns the new path.
fn quarantine(path: &Path) -> Result<PathBuf, StoreError> {
    let failed = |source| StoreError::Directory { path: path.to_owned(), source };
    let quarantined = path.with_extension("damaged");
    if quarantined.is_dir() {
        fs::remove_dir_all(&quarantined).map_err(failed)?;
    } else if quarantined.exists() {
        fs::remove_file(&quarantined).map_err(failed)?;
    }
    disk::rename(path, &quarantined).map_err(failed)?;
    Ok(quarantined)
}

/// Returns true if the creation of a window's database was completed.
pub(super) fn is_created(path: &Path) -> io::Result<bool> {
    path.join(CREATED).try_exists()
}

/// Marks the creation of a window's database as completed, durably.
pub(super) fn note_created(path: &Path) -> io::Result<()> {
    File::create(path.join(CREATED))?.sync_all()?;
    sync_entries(path)
}

/// Syncs the directory of a database and its parent directory.
fn sync_entries(path: &Path) -> io::Result<()> {
    disk::sync_directory(path)?;
    path.parent().map_or(Ok(()), disk::sync_directory)
}
