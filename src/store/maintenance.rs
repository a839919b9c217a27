//! Maintenance of a state directory while no agent runs on it: verified, written to a file, read from
//! one, and made as small as what is in it.

mod inspect;
mod transfer;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

pub use transfer::{export, import};

use super::{
    Entry, StateDirectory, StoreError, compaction, config::ConfigStore, engine::Engine,
    last_good::LastGood, pool::Pool, state::RESULTS,
};
use inspect::Inspection;

/// Databases beside those of windows, by their files.
const DATABASES: [&str; 2] = ["config", "state"];
const CACHE_OCTETS: u64 = 16 << 20;

/// Why a state directory could not be worked on.
#[derive(Debug, Error)]
pub enum MaintenanceError {
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An error of a file.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is not what it should be.
    #[error("the file is damaged behind {0} items: {1}")]
    Damaged(u64, &'static str),
    /// There is something already.
    #[error("{} holds a state already: give a directory that does not exist or is empty", .0.display())]
    NotEmpty(PathBuf),
    /// A record that cannot be read.
    #[error("record {0}: {1}")]
    Record(u64, StoreError),
    /// Some of the log cannot be read.
    #[error("of {stored} records {readable} can be read, the newest of them {newest}")]
    Unreadable {
        /// Number of records that are stored.
        stored: u64,
        /// Number of records that can be read.
        readable: u64,
        /// Cursor of the newest readable record.
        newest: u64,
    },
    /// Windows that cannot be opened, and not because of damage.
    #[error("{0} windows of records cannot be opened: see the log, and try again")]
    Unopened(usize),
    /// The end of the state database is missing.
    #[error("the latest changes of statistics and consumers are gone")]
    StateGone,
    /// The end of the log is missing.
    #[error("records behind cursor {found}, up to {known}, are gone")]
    Gone {
        /// Cursor of the newest record.
        found: u64,
        /// Cursor of the newest record that was ever stored.
        known: u64,
    },
}

/// Figures of a state directory that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Revisions of the configuration.
    pub revisions: usize,
    /// Records of the log.
    pub records: u64,
    /// Their earliest and newest cursor; 0 where there is none.
    pub cursors: (u64, u64),
    /// Cursors between those that have no record.
    pub missing: u64,
    /// Octets of the records.
    pub live_bytes: u64,
    /// Octets of the files.
    pub disk_bytes: u64,
}

/// Reads everything that is stored; `check` reads the content of a record, and `is_key` whether a key
/// of statistics is one.
pub fn verify(
    directory: &StateDirectory,
    check: impl Fn(&Entry) -> Result<(), StoreError>,
    is_key: impl Fn(&[u8]) -> bool,
) -> Result<Verified, MaintenanceError> {
    let inspection = Inspection::open(directory)?;
    let Inspection { windows, trees, state, .. } = &inspection;
    let config = ConfigStore::with(inspection.config()?, directory.path())?;
    let revisions = config.revisions()?;
    for revision in &revisions {
        config.revision(revision.revision)?;
    }
    config.answers()?;
    // An imported state has no copy before its first start.
    if LastGood::is_damaged(directory.path()) {
        return Err(StoreError::Damaged("copy of the configuration (config.last)").into());
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

/// Writes each database anew, without what sled has not freed; octets before and after.
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

/// Undoes or ends a step that was cut short, before anything is opened.
pub(super) fn recover(directory: &Path) -> io::Result<()> {
    transfer::recover(directory)?;
    inspect::recover(directory)?;
    let databases = DATABASES.map(|database| directory.join(format!("{database}.sled")));
    let windows = fs::read_dir(directory.join(RESULTS)).into_iter().flatten().flatten();
    // Extensions name a window of which a copy was being made.
    let windows = windows.map(|entry| entry.path()).filter(|path| path.extension().is_some());
    for whole in databases.into_iter().chain(windows.map(|path| path.with_extension(""))) {
        compaction::recover(&whole)?;
    }
    Ok(())
}

fn path(directory: &StateDirectory, database: &str) -> PathBuf {
    directory.path().join(format!("{database}.sled"))
}

#[cfg(test)]
mod tests;
