//! What is done to a state directory while no agent runs on it: looked through, written to a file,
//! read from one, and made as small as what is in it.
//!
//! A file is `TWAMPDB1` and items: length (4 octets, big-endian), a message, and its CRC-32 (4
//! octets). It knows nothing of sled, and is how a state leaves it.

use std::{
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use prost::Message;
use thiserror::Error;

use super::{
    Entry, StateDirectory, StoreError,
    config::ConfigStore,
    engine::Engine,
    entries,
    high_water::HighWater,
    results::Trees,
    windows::{self, WindowList, Windows},
};

const MAGIC: &[u8] = b"TWAMPDB1";
const DATABASES: [&str; 2] = ["config", "results"];
const CACHE_OCTETS: u64 = 16 << 20;
/// Largest item: a key and a value, and names.
const MAXIMUM_ITEM_OCTETS: usize = 1 << 20;
/// Entries flushed at once while a database is written.
const FLUSH_EVERY: u64 = 50_000;
/// Extension of a database that is being imported; and a file that says that all of them are whole.
const IMPORTING: &str = "import";
const IMPORTED: &str = "imported";
/// How far cursors jump in what was imported: more than were given out meanwhile where it came from.
const IMPORT_JUMP: u64 = 1 << 40;

/// Why a state directory could not be worked on.
#[derive(Debug, Error)]
pub enum MaintenanceError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file.
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
        /// How many there are to be.
        stored: u64,
        /// How many there are.
        readable: u64,
        /// Cursor of the newest.
        newest: u64,
    },
    /// The end of the log is missing.
    #[error("records behind cursor {found}, up to {known}, are gone")]
    Gone {
        /// Of the newest.
        found: u64,
        /// Of the newest that was ever stored.
        known: u64,
    },
}

/// What is in a file.
#[derive(Clone, PartialEq, Message)]
struct Item {
    #[prost(string, tag = "1")]
    database: String,
    #[prost(bytes = "vec", tag = "2")]
    tree: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    value: Vec<u8>,
    /// In the last item alone: how many were before it.
    #[prost(uint64, optional, tag = "5")]
    items: Option<u64>,
}

/// What was found.
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
    /// Octets of them.
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
    let config = ConfigStore::open_whole(directory)?;
    let revisions = config.revisions()?;
    for revision in &revisions {
        config.revision(revision.revision)?;
    }
    config.answers()?;
    let engine = Engine::open_whole(&path(directory, "results"), CACHE_OCTETS)?;
    let trees = Trees::open(&engine)?;
    let windows = Windows::open(&engine, &trees.meta, 1)?;
    let list = windows::read(&windows.shared());
    let (records, live_bytes, _) = windows.figures();
    let mut found = Verified {
        revisions: revisions.len(),
        live_bytes,
        disk_bytes: engine.disk_bytes(),
        ..Verified::default()
    };
    each_entry(&list, |entry| {
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
    if let Some(gone) = gone(directory, &trees, &windows)? {
        return Err(gone);
    }
    for kept in &trees.statistics {
        let (key, value) = kept.map_err(StoreError::from)?;
        if !is_key(&key) || value.len() < size_of::<u64>() {
            return Err(StoreError::Damaged("statistics").into());
        }
    }
    for consumer in &trees.consumers {
        let (name, _) = consumer.map_err(StoreError::from)?;
        let name = String::from_utf8(name.to_vec()).map_err(|_| StoreError::Damaged("consumer"))?;
        super::results::position(&trees.consumers, &name)?;
    }
    Ok(found)
}

/// What is missing of the end of the log.
fn gone(
    directory: &StateDirectory,
    trees: &Trees,
    windows: &Windows,
) -> Result<Option<MaintenanceError>, StoreError> {
    let told = HighWater::new(directory.path()).read();
    let (found, known) = (windows.found(), told.newest_kept(&trees.meta)?);
    let is_gone = found < known && !told.not_stored;
    Ok(is_gone.then_some(MaintenanceError::Gone { found, known }))
}

/// Tells of what a copy of a database will not have.
fn tell_gone(directory: &StateDirectory, engine: &Engine) -> Result<(), MaintenanceError> {
    let trees = Trees::open(engine)?;
    let windows = Windows::open(engine, &trees.meta, 1)?;
    if let Some(gone) = gone(directory, &trees, &windows)? {
        tracing::warn!("{gone}");
    }
    let list = windows::read(&windows.shared());
    let (mut readable, mut newest) = (0, 0);
    each_entry(&list, |entry| {
        (readable, newest) = (readable + 1, entry.cursor);
        Ok(())
    })?;
    let (stored, ..) = windows.figures();
    if readable != stored {
        tracing::warn!("{}", MaintenanceError::Unreadable { stored, readable, newest });
    }
    Ok(())
}

/// Visits what can be read of the log, rising.
fn each_entry(
    list: &WindowList,
    mut visit: impl FnMut(&Entry) -> Result<(), MaintenanceError>,
) -> Result<(), MaintenanceError> {
    let mut after = 0;
    loop {
        let entries = entries::entries(list, after + 1..=u64::MAX, 4096, 1 << 20, false)?;
        let Some(last) = entries.last() else { return Ok(()) };
        entries.iter().try_for_each(&mut visit)?;
        after = last.cursor;
    }
}

/// Writes everything into a file; how many items.
pub fn export(directory: &StateDirectory, out: &mut impl Write) -> Result<u64, MaintenanceError> {
    out.write_all(MAGIC)?;
    let mut items = 0;
    for database in DATABASES {
        let engine = Engine::open_whole(&path(directory, database), CACHE_OCTETS)?;
        if database == "results" {
            tell_gone(directory, &engine)?;
        }
        each(&engine, |tree, key, value| {
            let (tree, key, value) = (tree.to_vec(), key.to_vec(), value.to_vec());
            let item = Item { database: database.to_owned(), tree, key, value, items: None };
            items += 1;
            write_item(out, &item)
        })?;
    }
    write_item(out, &Item { items: Some(items), ..Item::default() })?;
    out.flush()?;
    Ok(items)
}

/// Makes a state directory of a file; how many items. What is not whole leaves nothing behind.
pub fn import(directory: &Path, from: &mut impl Read) -> Result<u64, MaintenanceError> {
    let state = StateDirectory::open(directory)?;
    // The file that holds other agents off is there in any case.
    let mut names = fs::read_dir(directory)?.filter_map(Result::ok).map(|entry| entry.file_name());
    if names.any(|name| name != super::LOCK_FILE) {
        return Err(MaintenanceError::NotEmpty(directory.to_owned()));
    }
    let imported = import_into(&state, from);
    if imported.is_ok() {
        fs::write(directory.join(IMPORTED), "")?;
        fs::File::open(directory)?.sync_all()?;
    }
    settle(directory)?;
    imported
}

fn import_into(directory: &StateDirectory, from: &mut impl Read) -> Result<u64, MaintenanceError> {
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic)
        .ok()
        .filter(|()| magic == MAGIC)
        .ok_or(MaintenanceError::Damaged(0, "it is no export of a state directory"))?;
    let mut engines = Vec::new();
    for database in DATABASES {
        let beside = path(directory, database).with_extension(IMPORTING);
        engines.push((database, Engine::open_whole(&beside, CACHE_OCTETS)?));
    }
    let mut items = 0;
    loop {
        let item = read_item(from, items)?;
        if let Some(count) = item.items {
            if count != items {
                return Err(MaintenanceError::Damaged(items, "some are missing"));
            }
            if from.read(&mut [0])? > 0 {
                return Err(MaintenanceError::Damaged(items, "something follows its end"));
            }
            break;
        }
        let engine = engines.iter().find(|(name, _)| *name == item.database);
        let (_, engine) =
            engine.ok_or(MaintenanceError::Damaged(items, "it is of an unknown database"))?;
        engine.put(&item.tree, item.key, item.value)?;
        items += 1;
        if items.is_multiple_of(FLUSH_EVERY) {
            engine.flush()?;
        }
    }
    for (name, engine) in &engines {
        // It is that of what was exported now.
        engine.check_schema(true)?;
        if *name == "results" {
            // Where the log came from it may have gone on: no cursor may ever name two records.
            let trees = Trees::open(engine)?;
            Windows::open(engine, &trees.meta, 1)?.jump(IMPORT_JUMP)?;
        }
        engine.flush_durably()?;
    }
    Ok(items)
}

/// Writes each database anew, without what sled has not given back; octets before and after.
pub fn compact(directory: &StateDirectory) -> Result<(u64, u64), MaintenanceError> {
    let (mut before, mut after) = (0, 0);
    for database in DATABASES {
        let whole = path(directory, database);
        let (small, old) = (whole.with_extension("compact"), whole.with_extension("old"));
        if small.exists() {
            fs::remove_dir_all(&small)?;
        }
        let engine = Engine::open_whole(&whole, CACHE_OCTETS)?;
        if database == "results" {
            tell_gone(directory, &engine)?;
        }
        before += engine.disk_bytes();
        let copy = Engine::open_whole(&small, CACHE_OCTETS)?;
        let (mut items, mut copied) = (0u64, 0u64);
        each(&engine, |tree, key, value| {
            copy.put(tree, key, value)?;
            items += 1;
            if items.is_multiple_of(FLUSH_EVERY) {
                copy.flush()?;
            }
            Ok(())
        })?;
        copy.flush_durably()?;
        each(&copy, |_, _, _| {
            copied += 1;
            Ok(())
        })?;
        if copied != items {
            return Err(StoreError::Damaged("copy").into());
        }
        after += copy.disk_bytes();
        drop((engine, copy));
        fs::rename(&whole, &old)?;
        fs::rename(&small, &whole)?;
        fs::File::open(directory.path())?.sync_all()?;
        fs::remove_dir_all(&old)?;
    }
    Ok((before, after))
}

/// A step that was cut short is undone or ended, before anything is opened.
pub(super) fn settle(directory: &Path) -> io::Result<()> {
    let whole = directory.join(IMPORTED).exists();
    for database in DATABASES {
        let place = directory.join(format!("{database}.sled"));
        let beside = place.with_extension(IMPORTING);
        match beside.exists() {
            true if whole => fs::rename(&beside, &place)?,
            true => fs::remove_dir_all(&beside)?,
            false => {}
        }
    }
    if whole {
        fs::File::open(directory)?.sync_all()?;
        fs::remove_file(directory.join(IMPORTED))?;
    }
    for database in DATABASES {
        let whole = directory.join(format!("{database}.sled"));
        let old = whole.with_extension("old");
        if old.exists() {
            if whole.exists() {
                fs::remove_dir_all(&old)?;
            } else {
                fs::rename(&old, &whole)?;
            }
        }
    }
    Ok(())
}

fn path(directory: &StateDirectory, database: &str) -> PathBuf {
    directory.path().join(format!("{database}.sled"))
}

fn each(
    engine: &Engine,
    mut visit: impl FnMut(&[u8], &[u8], &[u8]) -> Result<(), MaintenanceError>,
) -> Result<(), MaintenanceError> {
    for name in engine.tree_names() {
        for entry in &engine.tree(&name)? {
            let (key, value) = entry.map_err(StoreError::from)?;
            visit(&name, &key, &value)?;
        }
    }
    Ok(())
}

fn write_item(out: &mut impl Write, item: &Item) -> Result<(), MaintenanceError> {
    let octets = item.encode_to_vec();
    out.write_all(&(octets.len() as u32).to_be_bytes())?;
    out.write_all(&octets)?;
    out.write_all(&crc32fast::hash(&octets).to_be_bytes())?;
    Ok(())
}

fn read_item(from: &mut impl Read, items: u64) -> Result<Item, MaintenanceError> {
    let cut = |_| MaintenanceError::Damaged(items, "it ends too early");
    let mut number = [0; 4];
    from.read_exact(&mut number).map_err(cut)?;
    let length = u32::from_be_bytes(number) as usize;
    if length > MAXIMUM_ITEM_OCTETS {
        return Err(MaintenanceError::Damaged(items, "an item is longer than any can be"));
    }
    let mut octets = vec![0; length];
    from.read_exact(&mut octets).map_err(cut)?;
    from.read_exact(&mut number).map_err(cut)?;
    let whole = crc32fast::hash(&octets) == u32::from_be_bytes(number);
    let item = Item::decode(octets.as_slice()).ok().filter(|_| whole);
    item.ok_or(MaintenanceError::Damaged(items, "a checksum is wrong"))
}

#[cfg(test)]
mod tests;
