//! Maintenance of the state directory of a stopped agent: verification, export, import and
//! compaction.

mod inspect;
mod transfer;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

pub use transfer::{export, import};

use super::{
    Entry, StateDirectory, StoreError, compaction, config::ConfigStore, cursor_reservation,
    engine::Engine, host, identity, incarnations, last_good::LastGood, pool::Pool, state::RESULTS,
};
use inspect::Inspection;

/// Names of the databases other than those of windows.
const DATABASES: [&str; 2] = ["config", "state"];
const CACHE_OCTETS: u64 = 16 << 20;

/// Failure of the maintenance of a state directory.
#[derive(Debug, Error)]
pub enum MaintenanceError {
    /// A store operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file operation failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The imported file is damaged.
    #[error("the file is damaged after {0} items: {1}")]
    Damaged(u64, &'static str),
    /// The target directory of an import is not empty.
    #[error("{} holds a state already: give a directory that does not exist or is empty", .0.display())]
    NotEmpty(PathBuf),
    /// A record cannot be read.
    #[error("record {0}: {1}")]
    Record(u64, StoreError),
    /// Part of the log cannot be read.
    #[error("only {readable} of {stored} records can be read; the newest has cursor {newest}")]
    Unreadable {
        /// Number of records that are stored.
        stored: u64,
        /// Number of records that can be read.
        readable: u64,
        /// Cursor of the newest readable record.
        newest: u64,
    },
    /// An interrupted step is not complete; path of what it left.
    #[error(
        "{} is left by an interrupted step: start the agent, which completes it, and try again",
        .0.display()
    )]
    Interrupted(PathBuf),
    /// Windows cannot be opened, for a reason other than damage.
    #[error("{0} windows of records cannot be opened: see the log, and try again")]
    Unopened(usize),
    /// The end of the state database is missing.
    #[error("the latest changes of statistics and consumers are lost")]
    StateGone,
    /// The end of the log is missing.
    #[error("records after cursor {found} up to {known} are lost")]
    Gone {
        /// Cursor of the newest record that was found.
        found: u64,
        /// Cursor of the newest record that was ever stored.
        known: u64,
    },
}

/// Figures of a verified state directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Number of revisions of the configuration.
    pub revisions: usize,
    /// Number of records of the log.
    pub records: u64,
    /// Earliest and newest cursor of the log; 0 if it is empty.
    pub cursors: (u64, u64),
    /// Number of cursors between them without a record.
    pub missing: u64,
    /// Size of the records, bytes.
    pub live_bytes: u64,
    /// Size of the databases on disk, bytes.
    pub disk_bytes: u64,
}

type IsDamaged = fn(&Path) -> bool;

/// Checks of the files beside the databases, and their names. Each may be missing, as after an import.
const SMALL_FILES: [(IsDamaged, &str); 5] = [
    (LastGood::is_damaged, "copy of the configuration (config.last)"),
    (identity::is_damaged, "copy of the agent id (agent-id)"),
    (incarnations::is_damaged, "copy of the incarnations (incarnations)"),
    (cursor_reservation::is_damaged, "newest cursor (results.last)"),
    (host::is_damaged, "note of the host (host)"),
];

/// Reads all stored data. `check` decodes the content of a record, and `is_key` checks a key of
/// statistics.
pub fn verify(
    directory: &StateDirectory,
    check: impl Fn(&Entry) -> Result<(), StoreError>,
    is_key: impl Fn(&[u8]) -> bool,
) -> Result<Verified, MaintenanceError> {
    refuse_interrupted(directory.path())?;
    let inspection = Inspection::open(directory)?;
    let Inspection { windows, trees, state, .. } = &inspection;
    let config = ConfigStore::with(inspection.config()?, directory.path())?;
    let revisions = config.revisions()?;
    for revision in &revisions {
        config.revision(revision.revision)?;
    }
    config.answers()?;
    if let Some((_, file)) = SMALL_FILES.iter().find(|(is_damaged, _)| is_damaged(directory.path()))
    {
        return Err(StoreError::Damaged(file).into());
    }
    if windows.unopened() > 0 {
        return Err(MaintenanceError::Unopened(windows.unopened()));
    }
    let (records, live_bytes, _) = windows.figures();
    let mut found = Verified {
        revisions: revisions.len(),
        live_bytes,
        disk_bytes: state.disk_bytes() + windows.disk_bytes(),
        ..Verified::default()
    };
    inspection.each_entry(|entry| {
        check(entry).map_err(|error| MaintenanceError::Record(entry.cursor, error))?;
        let (first, newest) = found.cursors;
        if newest > 0 {
            found.missing += entry.cursor - newest - 1;
        }
        found.cursors = (if first == 0 { entry.cursor } else { first }, entry.cursor);
        found.records += 1;
        Ok(())
    })?;
    if found.records != records || windows.was_damaged() {
        let (readable, newest) = (found.records, found.cursors.1);
        return Err(MaintenanceError::Unreadable { stored: records, readable, newest });
    }
    if let Some(gone) = inspection.missing_end()? {
        return Err(gone);
    }
    for kept in &trees.statistics {
        let (key, value) = kept.map_err(StoreError::from)?;
        if !is_key(&key) {
            return Err(StoreError::Damaged("statistics").into());
        }
        super::state::snapshot(&key, &value)?;
    }
    for consumer in &trees.consumers {
        let (name, _) = consumer.map_err(StoreError::from)?;
        let name = String::from_utf8(name.to_vec()).map_err(|_| StoreError::Damaged("consumer"))?;
        super::state::position(&trees.consumers, &name)?;
    }
    Ok(found)
}

/// Rewrites each database without the space that sled has not freed. Returns the sizes before and
/// after, bytes.
pub fn compact(directory: &StateDirectory) -> Result<(u64, u64), MaintenanceError> {
    Inspection::open(directory)?.warn_of_losses()?;
    let (mut before, mut after) = (0, 0);
    let mut add = |(old, new): (u64, u64)| (before, after) = (before + old, after + new);
    for database in DATABASES {
        add(compaction::compact(
            &path(directory, database),
            Engine::open_whole,
            Engine::open_whole,
        )?);
    }
    let pool = Pool::open(&directory.path().join(RESULTS))?;
    for name in pool.names()? {
        if pool.is_created(name)? {
            pool.close(name);
            add(compaction::compact(&pool.path(name), Engine::open_window, Engine::create_window)?);
        }
    }
    Ok((before, after))
}

/// Undoes or completes an interrupted step. Must be called before a database is opened.
pub(super) fn recover(directory: &Path) -> io::Result<()> {
    transfer::recover(directory)?;
    inspect::recover(directory)?;
    let databases = DATABASES.map(|database| directory.join(format!("{database}.sled")));
    let windows = fs::read_dir(directory.join(RESULTS)).into_iter().flatten().flatten();
    // An extension marks a window whose compaction was interrupted.
    let windows = windows.map(|entry| entry.path()).filter(|path| path.extension().is_some());
    for whole in databases.into_iter().chain(windows.map(|path| path.with_extension(""))) {
        compaction::recover(&whole)?;
    }
    Ok(())
}

/// Refuses a directory in which a step was interrupted between two renames. Other remains of steps are
/// not part of the state.
fn refuse_interrupted(directory: &Path) -> Result<(), MaintenanceError> {
    let databases =
        DATABASES.map(|database| directory.join(format!("{database}.{}", compaction::OLD)));
    let windows = fs::read_dir(directory.join(RESULTS)).into_iter().flatten().flatten();
    let windows = windows.map(|entry| entry.path());
    let is_old = |path: &PathBuf| path.extension().is_some_and(|found| found == compaction::OLD);
    let mut replaced = databases
        .into_iter()
        .map(|old| (old.with_extension("sled"), old))
        .chain(windows.filter(is_old).map(|old| (old.with_extension(""), old)));
    if let Some((_, old)) = replaced.find(|(whole, old)| old.exists() && !whole.exists()) {
        return Err(MaintenanceError::Interrupted(old));
    }
    match directory.join(transfer::IMPORTED) {
        mark if mark.exists() => Err(MaintenanceError::Interrupted(mark)),
        _ => Ok(()),
    }
}

fn path(directory: &StateDirectory, database: &str) -> PathBuf {
    directory.path().join(format!("{database}.sled"))
}

#[cfg(test)]
mod tests;
