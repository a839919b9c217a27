//! State that survives a restart. The only module that imports sled, and no type of it is seen outside.
//!
//! A state directory has `schema` (its version), `config.sled` with its copy `config.last`, `state.sled`
//! (statistics, consumers, states of connections) with the copy `agent-id`, and `results`: one
//! database for each window of the log, so that damage to one costs no other, and `index`, their
//! summaries. `results.last` holds the newest cursor, `quarantine` holds damaged windows.
//!
//! sled 0.34 in short: `flush` hands data to the kernel but does not make the disk write it, files
//! never shrink, and nodes beyond 128 KiB leak. Hence durable flushes through a descriptor of our
//! own, windows that are removed with their files, and values of at most 4 KiB.

mod commands;
mod compaction;
mod config;
mod connections;
pub mod content;
mod cursor_reservation;
mod delta;
mod disk;
mod engine;
mod entries;
mod envelope;
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
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

pub use commands::StoreState;
pub use config::ConfigStore;
pub use connections::{PersistedCompletion, PersistedConnection, PersistedOutage, PersistedStop};
pub use envelope::{StoredAnswer, StoredRevision, Unconfirmed};
pub use layout::{Entry, Subject};
pub use page::MAXIMUM_CONTENT_OCTETS;
pub use results::ResultStore;
pub use retention::Retention;
pub use state::{Changed, Snapshot};

/// Largest value of the store, octets.
pub const MAXIMUM_VALUE_OCTETS: usize = 4096;
/// In a state directory, held by the agent that runs on it.
const LOCK_FILE: &str = "lock";
/// Attempts to lock a state directory, and the time between two: 2 s in all.
const LOCK_TRIES: u32 = 40;
const LOCK_AGAIN: Duration = Duration::from_millis(50);

/// Reason why the store did not do a thing.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No more consumers can be remembered.
    #[error("{0} consumers are stored, and no more can be: delete one that is no longer needed")]
    TooManyConsumers(usize),
    /// Another agent runs on this state directory.
    #[error("state directory {} is in use by another agent", .0.display())]
    Locked(PathBuf),
    /// The state directory cannot be used.
    #[error("state directory {}: {source}", .path.display())]
    Directory {
        /// Path of the directory or the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Written by a newer agent.
    #[error(
        "{} was written by a newer agent (schema {found}; this one knows up to {}): \
         run that version, or start with another state directory", .path.display(), schema::SCHEMA
    )]
    NewerSchema {
        /// Path of the directory or the file.
        path: PathBuf,
        /// Version of its layout.
        found: u32,
    },
    /// Written by a version that was never released.
    #[error(
        "{} was written by a development version whose layout this agent does not read: start with \
         another state directory", .0.display()
    )]
    OldSchema(PathBuf),
    /// An error of the database.
    #[error("database: {0}")]
    Database(String),
    /// A stored value does not read back.
    #[error("stored {0} is damaged")]
    Damaged(&'static str),
    /// Too little space on the disk.
    #[error("state directory {} has {free} octets free; {} are needed", .path.display(), reserve::RESERVE_OCTETS)]
    Full {
        /// Path of the directory or the file.
        path: PathBuf,
        /// Octets that are free.
        free: u64,
    },
    /// The queue to the writer is full, or the writer has ended.
    #[error("the result store does not keep up or has ended")]
    Unavailable,
}

impl StoreError {
    /// Error that stands for a panic of sled.
    fn gave_up() -> Self {
        Self::Database("it gave up; it is to be opened anew".into())
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

/// Runs a step that waits for the disk, off the workers of the runtime. All steps of the databases that
/// async code asks for go through this.
pub async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(step).await.map_err(|_| StoreError::Unavailable)?
}

/// A state directory, held against other agents for as long as this lives.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    _lock: Flock<fs::File>,
}

impl StateDirectory {
    /// Makes the directory if it is not there, and locks it. It holds secrets: nobody else may look
    /// into it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Directory { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        if let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(0o700)) {
            tracing::debug!(%error, path = %path.display(), "permissions stay as they are");
        }
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK_FILE))
            .map_err(failed)?;
        let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        // An agent that was killed holds it until the last of its threads is gone.
        for _ in 0..LOCK_TRIES {
            locked = match locked {
                Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                    std::thread::park_timeout(LOCK_AGAIN);
                    Flock::lock(file, FlockArg::LockExclusiveNonblock)
                }
                done => done,
            };
        }
        match locked {
            Ok(lock) => {
                let version = schema::check(path)?;
                maintenance::recover(path).map_err(failed)?;
                schema::migrate(path, version)?;
                Ok(Self { path: path.to_owned(), _lock: lock })
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StoreError::Locked(path.to_owned())),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// Allocates the reserve for a start that finds no space, or gives it to this one.
    pub fn prepare_reserve(&self) {
        reserve::prepare(&self.path);
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
