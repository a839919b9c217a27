//! State that survives a restart. Only this module imports sled, and it exports none of sled's
//! types.
//!
//! A state directory contains:
//!
//! - `schema`: the version of its layout
//! - `config.sled`: the configuration, and `config.last`, a copy of the current revision
//! - `state.sled`: statistics, consumers and states of connections, and `agent-id`, a copy of the
//!   identity
//! - `results`: one database for each window of the log, so that damage to one window does not
//!   affect the others, and `index`, their summaries
//! - `results.last`: the newest cursor
//! - `quarantine`: damaged windows
//!
//! Properties of sled 0.34: `flush` hands data to the kernel but does not make the disk write it,
//! files never shrink, and nodes beyond 128 KiB leak. Therefore the store flushes durably through a
//! file descriptor of its own, removes windows with their files, and limits values to 4 KiB.

mod age_guard;
mod commands;
mod compaction;
mod config;
mod connections;
pub mod content;
mod cursor_reservation;
mod delta;
mod disk;
mod disk_usage;
mod engine;
mod entries;
mod envelope;
mod host;
mod identity;
mod incarnations;
mod index;
mod last_good;
mod layout;
pub mod maintenance;
mod measure;
mod page;
mod pages;
mod pool;
mod presence;
mod quarantine;
mod recovery;
mod reserve;
mod results;
mod retention;
mod revisions;
mod schema;
mod state;
mod times;
mod trim;
mod window;
mod windows;
mod writer;
pub mod zigzag;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;
use tokio::sync::Semaphore;

pub use age_guard::KEEP_ALL_NS;
pub use commands::StoreState;
pub use config::ConfigStore;
pub use connections::{PersistedCompletion, PersistedConnection, PersistedOutage, PersistedStop};
pub use envelope::{StoredAnswer, StoredRevision, Unconfirmed};
pub use host::{Host, HostFindings};
pub use identity::renew as renew_identity;
pub use layout::{Entry, Subject};
pub use page::MAXIMUM_CONTENT_OCTETS;
pub use results::ResultStore;
pub use retention::Retention;
pub use state::{Changed, Snapshot};

use crate::time::Now;
use host::HostNote;
use presence::Presence;

/// Maximum length of a stored value, bytes.
pub const MAXIMUM_VALUE_OCTETS: usize = 4096;
/// File that the running agent locks in its state directory.
const LOCK_FILE: &str = "lock";
/// Attempts to lock a state directory, and the pause between two: 2 s in total.
const LOCK_TRIES: u32 = 40;
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Failure of a store operation.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The maximum number of consumers is stored.
    #[error("limit of {0} consumers reached: delete one that is no longer needed")]
    TooManyConsumers(usize),
    /// Another agent has locked the state directory.
    #[error("state directory {} is in use by another agent", .0.display())]
    Locked(PathBuf),
    /// The state directory cannot be used.
    #[error("state directory {}: {source}", .path.display())]
    Directory {
        /// Path of the directory or the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A newer agent wrote the state directory.
    #[error(
        "{} was written by a newer agent (schema {found}; this version reads up to {}): \
         run the newer version, or start with another state directory", .path.display(), schema::SCHEMA
    )]
    NewerSchema {
        /// Path of the directory or the file.
        path: PathBuf,
        /// Version of its layout.
        found: u32,
    },
    /// An unreleased version wrote the state directory.
    #[error(
        "{} was written by a development version with an unsupported layout: start with \
         another state directory", .0.display()
    )]
    OldSchema(PathBuf),
    /// A file of the running agent was deleted, replaced or truncated; path of the file.
    #[error(
        "{} was deleted, replaced or truncated while the agent runs, and nothing more is stored: stop the \
         agent, put a backup in place if there is one, and start it", .0.display()
    )]
    Removed(PathBuf),
    /// The database reported an error.
    #[error("database: {0}")]
    Database(String),
    /// A stored value cannot be read.
    #[error("stored {0} is damaged")]
    Damaged(&'static str),
    /// The disk has too little free space.
    #[error("state directory {} has {free} bytes free; {} are needed", .path.display(), reserve::RESERVE_OCTETS)]
    Full {
        /// Path of the directory or the file.
        path: PathBuf,
        /// Free space on the disk, bytes.
        free: u64,
    },
    /// The queue to the writer is full, or the writer has ended.
    #[error("the result store is overloaded or has stopped")]
    Unavailable,
}

impl StoreError {
    /// Returns the error for a panic of sled.
    fn database_panicked() -> Self {
        Self::Database("panicked, reopening".into())
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        if matches!(error, sled::Error::Corruption { .. }) {
            return Self::Damaged("database");
        }
        Self::Database(error.to_string())
    }
}

/// Runs a step that waits for the disk on a thread for blocking work. Async code accesses the
/// databases only through this function.
pub async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(step).await.map_err(|_| StoreError::Unavailable)?
}

/// Reads that run at a time, each with up to some megabytes.
const READS: usize = 4;

/// Limit on reads for callers that may give up. A read that runs cannot be stopped: without a limit,
/// thousands of cancelled requests would hold the memory of all their answers.
#[derive(Clone, Debug)]
pub struct ReadLimit(Arc<Semaphore>);

impl Default for ReadLimit {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(READS)))
    }
}

impl ReadLimit {
    /// Runs a step that waits for the disk, off the workers of the runtime, when it is its turn. A
    /// caller that gives up before costs nothing.
    pub async fn blocking<T: Send + 'static>(
        &self,
        step: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.0.clone().acquire_owned().await;
        let permit = permit.map_err(|_| StoreError::Unavailable)?;
        blocking(move || {
            let _permit = permit;
            step()
        })
        .await
    }
}

/// Locks a file of a state directory. A killed agent holds the lock until its last thread has ended.
fn lock(path: &Path, file: fs::File) -> Result<Flock<fs::File>, StoreError> {
    let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    for _ in 0..LOCK_TRIES {
        locked = match locked {
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                std::thread::park_timeout(LOCK_RETRY_INTERVAL);
                Flock::lock(file, FlockArg::LockExclusiveNonblock)
            }
            done => done,
        };
    }
    locked.map_err(|(_, errno)| {
        let path = path.to_owned();
        if errno == nix::errno::Errno::EWOULDBLOCK {
            StoreError::Locked(path)
        } else {
            StoreError::Directory { path, source: errno.into() }
        }
    })
}

/// A state directory, locked against other agents until this value is dropped.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    host: Mutex<Option<HostNote>>,
    presence: Presence,
    _lock: Flock<fs::File>,
}

impl StateDirectory {
    /// Creates the directory if it does not exist, and locks it. Only its owner may read it,
    /// because it holds secrets.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Directory { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        if let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(0o700)) {
            tracing::debug!(%error, path = %path.display(), "failed to set permissions");
        }
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK_FILE))
            .map_err(failed)?;
        let lock = lock(path, file)?;
        let version = schema::check(path)?;
        maintenance::recover(path).map_err(failed)?;
        schema::migrate(path, version)?;
        let presence = Presence::new(&path.join(LOCK_FILE), &lock).map_err(failed)?;
        Ok(Self { path: path.to_owned(), host: Mutex::default(), presence, _lock: lock })
    }

    /// Locks an existing directory to read it. Nothing in it is created, repaired or migrated.
    pub fn inspect(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Directory { path: path.to_owned(), source };
        // The directory stands in for a lock that was deleted.
        let (place, file) = match fs::File::open(path.join(LOCK_FILE)) {
            Ok(file) => (path.join(LOCK_FILE), file),
            Err(_) => (path.to_owned(), fs::File::open(path).map_err(failed)?),
        };
        let lock = lock(path, file)?;
        schema::inspect(path)?;
        let presence = Presence::new(&place, &lock).map_err(failed)?;
        Ok(Self { path: path.to_owned(), host: Mutex::default(), presence, _lock: lock })
    }

    /// Compares the host with that of the previous start, and stores it. After a large clock step
    /// the store deletes nothing by age for [`KEEP_ALL_NS`]. The monotonic clock of `now` counts
    /// from the boot of the host.
    pub fn note_host(&self, host: Host, now: Now) -> HostFindings {
        let (mut note, findings) = HostNote::compare(&self.path, host, now);
        let keep_all_ns = if findings.step_ns == 0 { note.keep_all_ns() } else { KEEP_ALL_NS };
        note.write(&self.path, now, keep_all_ns);
        *self.host.lock().unwrap_or_else(PoisonError::into_inner) = Some(note);
        findings
    }

    /// Returns the state directory and the note of the host; `None` before [`Self::note_host`].
    fn host(&self) -> Option<(PathBuf, HostNote)> {
        let note = self.host.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some((self.path.clone(), note?))
    }

    /// Allocates the disk reserve, or releases it if the disk is full.
    pub fn prepare_reserve(&self) {
        reserve::prepare(&self.path);
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
