//! Export of a state directory to a file, and import. The file is `TWAMPDB1` followed by items:
//! length (4 bytes, big-endian), a message, and its CRC-32 (4 bytes). The format does not depend on
//! sled, so that a state can move to another database.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
};

use prost::Message;

use super::{
    CACHE_OCTETS, DATABASES, MaintenanceError, inspect::Inspection, path, refuse_interrupted,
};
use crate::store::{
    LOCK_FILE, StateDirectory, StoreError,
    compaction::{ENTRIES_PER_FLUSH, each},
    engine::{Engine, MARK},
    layout::WindowName,
    measure::measured,
    pool::{Files, Pool},
    schema,
    state::{RESULTS, Trees},
    window,
    windows::Windows,
};

pub(super) const MAGIC: &[u8] = b"TWAMPDB1";
/// Names of the databases in an export.
const CONFIG: &str = "config";
const LOG: &str = "results";
/// Maximum length of an item, bytes: names, a key and a value.
const MAXIMUM_ITEM_OCTETS: usize = 1 << 20;
/// Prefixes of the trees of a window in an export. The first cursor follows and, after the first
/// generation, the generation.
const PAGES: &[u8] = b"page/";
const SUBJECTS: &[u8] = b"subject/";
/// Tree whose keys are the trees of the sealed windows.
const META: &[u8] = b"meta";
/// Extension of a database that is being imported, and name of the file that marks the import as
/// complete.
const IMPORTING: &str = "import";
pub(super) const IMPORTED: &str = "imported";
/// Number of cursors skipped after an imported log, more than the original log can assign after the
/// export.
pub(super) const IMPORT_JUMP: u64 = 1 << 40;

/// Item of an export.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Item {
    #[prost(string, tag = "1")]
    pub(super) database: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) tree: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) value: Vec<u8>,
    /// Number of preceding items; only set in the last item.
    #[prost(uint64, optional, tag = "5")]
    pub(super) items: Option<u64>,
}

/// Exports a state directory; returns the number of items.
pub fn export(directory: &StateDirectory, out: &mut impl Write) -> Result<u64, MaintenanceError> {
    refuse_interrupted(directory.path())?;
    let inspection = Inspection::open(directory)?;
    inspection.warn_of_losses()?;
    out.write_all(MAGIC)?;
    let mut items = 0;
    let mut write = |database: &str, tree: &[u8], key: &[u8], value: &[u8]| {
        let (tree, key, value) = (tree.to_vec(), key.to_vec(), value.to_vec());
        items += 1;
        write_item(out, &Item { database: database.to_owned(), tree, key, value, items: None })
    };
    each(&inspection.config()?, |tree, key, value| write(CONFIG, tree, key, value))?;
    each(&inspection.state, |tree, key, value| write(LOG, tree, key, value))?;
    for window in window::read(&inspection.windows.shared()).iter() {
        let name = window.name;
        write(LOG, META, &tree_name(PAGES, name), &[])?;
        let files = window.files()?;
        for entry in &files.pages {
            let (key, value) = entry.map_err(StoreError::from)?;
            write(LOG, &tree_name(PAGES, name), &key, &value)?;
        }
        for entry in files.stored_subjects() {
            let (number, value) = entry?;
            write(LOG, &tree_name(SUBJECTS, name), &number.to_be_bytes(), &value)?;
        }
    }
    write_item(out, &Item { items: Some(items), ..Item::default() })?;
    out.flush()?;
    Ok(items)
}

fn tree_name(prefix: &[u8], name: WindowName) -> Vec<u8> {
    let mut tree = [prefix, &name.first_cursor.to_be_bytes()].concat();
    if !name.is_first() {
        tree.extend_from_slice(&name.generation.to_be_bytes());
    }
    tree
}

/// Returns the window of a tree; `None` for other trees.
fn window_of(prefix: &[u8], tree: &[u8]) -> Option<WindowName> {
    let (first_cursor, generation) = tree.strip_prefix(prefix)?.split_first_chunk()?;
    let generation = match generation {
        [] => 0,
        number => u32::from_be_bytes(number.try_into().ok()?),
    };
    Some(WindowName { first_cursor: u64::from_be_bytes(*first_cursor), generation })
}

/// Creates a state directory from an export; returns the number of items. A damaged file leaves
/// nothing in the directory.
pub fn import(directory: &Path, from: &mut impl Read) -> Result<u64, MaintenanceError> {
    // A directory of somebody else is left as it is.
    refuse_content(directory)?;
    let before = Before::note(directory);
    let state = StateDirectory::open(directory)?;
    refuse_content(directory)?;
    let imported = import_into(&state, from);
    if imported.is_ok() {
        fs::write(directory.join(IMPORTED), "")?;
        fs::File::open(directory)?.sync_all()?;
    }
    recover(directory)?;
    if imported.is_err() {
        // Still under the lock, so that no agent that starts now loses its files.
        before.restore(directory)?;
    }
    imported
}

/// A directory before an import that may fail.
struct Before {
    /// Its mode; `None` if it did not exist.
    mode: Option<u32>,
    /// Files that do not count as content, and did not exist.
    absent: Vec<&'static str>,
}

impl Before {
    fn note(directory: &Path) -> Self {
        let mode = fs::metadata(directory).ok().map(|found| found.permissions().mode());
        let absent = [LOCK_FILE, schema::NAME].into_iter();
        Self { mode, absent: absent.filter(|name| !directory.join(name).exists()).collect() }
    }

    fn restore(self, directory: &Path) -> io::Result<()> {
        for name in self.absent {
            match fs::remove_file(directory.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match self.mode {
            Some(mode) => fs::set_permissions(directory, fs::Permissions::from_mode(mode)),
            None => fs::remove_dir(directory),
        }
    }
}

/// Refuses a directory with anything in it except the lock and the version, which do not count.
fn refuse_content(directory: &Path) -> Result<(), MaintenanceError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if name != LOCK_FILE && name != schema::NAME {
            return Err(MaintenanceError::NotEmpty(directory.to_owned()));
        }
    }
    Ok(())
}

/// Import of a state directory in progress.
struct Import {
    config: Engine,
    state: Engine,
    pool: Arc<Pool>,
    /// Windows that were created, and windows that the export lists as sealed.
    windows: BTreeSet<WindowName>,
    sealed: BTreeSet<WindowName>,
}

fn import_into(directory: &StateDirectory, from: &mut impl Read) -> Result<u64, MaintenanceError> {
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic)
        .ok()
        .filter(|()| magic == MAGIC)
        .ok_or(MaintenanceError::Damaged(0, "not an export of a state directory"))?;
    let open = |database| {
        let beside = path(directory, database).with_extension(IMPORTING);
        Engine::open_whole(&beside, CACHE_OCTETS)
    };
    let log_path = directory.path().join(RESULTS).with_extension(IMPORTING);
    let (config, state, pool) = (open("config")?, open("state")?, Pool::open(&log_path)?);
    let (windows, sealed) = Default::default();
    let mut import = Import { config, state, pool, windows, sealed };
    let mut items = 0;
    loop {
        let item = read_item(from, items)?;
        if let Some(count) = item.items {
            if count != items {
                return Err(MaintenanceError::Damaged(items, "items are missing"));
            }
            if from.read(&mut [0])? > 0 {
                return Err(MaintenanceError::Damaged(items, "data after the last item"));
            }
            break;
        }
        let known = import.put(item, directory.path())?;
        if !known {
            return Err(MaintenanceError::Damaged(items, "item of an unknown database"));
        }
        items += 1;
        if items.is_multiple_of(ENTRIES_PER_FLUSH) {
            import.state.flush()?;
        }
    }
    import.finish(&log_path)?;
    Ok(items)
}

impl Import {
    /// Stores an item; returns false if its database is unknown.
    fn put(&mut self, item: Item, directory: &Path) -> Result<bool, MaintenanceError> {
        let Item { database, tree, key, value, .. } = item;
        if key == MARK && tree == sled_default() {
            let found = value.as_slice().try_into().map(u32::from_be_bytes);
            let found = found.map_err(|_| StoreError::Damaged("schema"))?;
            schema::check_version(directory, found)?;
            // The next start migrates the state.
            schema::write(directory, found)?;
            return Ok([CONFIG, LOG].contains(&database.as_str()));
        }
        match database.as_str() {
            CONFIG => self.config.put(&tree, key, value)?,
            LOG => {
                if let Some(name) = window_of(PAGES, &tree) {
                    self.files(name)?.pages.insert(key, value).map_err(StoreError::from)?;
                } else if let Some(name) = window_of(SUBJECTS, &tree) {
                    let number = key.as_slice().try_into().map(u32::from_be_bytes);
                    let number = number.map_err(|_| StoreError::Damaged("subject of a record"))?;
                    self.files(name)?.put_subject(number, value)?;
                } else if let Some(name) = window_of(PAGES, &key).filter(|_| tree == META) {
                    self.sealed.insert(name);
                } else {
                    self.state.put(&tree, key, value)?;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Returns the database of a window, which is created for its first item.
    fn files(&mut self, name: WindowName) -> Result<Arc<Files>, StoreError> {
        if self.windows.insert(name) { self.pool.create(name) } else { self.pool.files(name) }
    }

    /// Seals the windows, and syncs all databases.
    fn finish(self, log_path: &Path) -> Result<(), MaintenanceError> {
        let Self { config, state, pool, windows, sealed } = self;
        let mut current = BTreeMap::new();
        for name in &windows {
            // Unfinished copies of windows are ignored.
            if sealed.contains(name) || name.is_first() {
                current.insert(name.first_cursor, *name);
            }
        }
        for name in windows {
            if current.get(&name.first_cursor) == Some(&name) {
                let window = measured(&pool, name)?;
                window.seal(&*window.files()?, window.last_cursor())?;
            } else {
                pool.close(name);
                pool.remove(name)?;
            }
        }
        drop(pool);
        let trees = Trees::open(&state)?;
        // The original log may have continued: a cursor must never identify two records.
        Windows::open(log_path, &trees.meta, 1)?.jump(IMPORT_JUMP)?;
        config.flush_durably()?;
        state.flush_durably()?;
        Ok(())
    }
}

/// Returns the name of sled's default tree, which each database has.
fn sled_default() -> &'static [u8] {
    b"__sled__default"
}

/// Undoes or completes an interrupted import.
pub(super) fn recover(directory: &Path) -> io::Result<()> {
    let whole = directory.join(IMPORTED).exists();
    let databases = DATABASES.map(|database| directory.join(format!("{database}.sled")));
    for path in databases.into_iter().chain([directory.join(RESULTS)]) {
        let beside = path.with_extension(IMPORTING);
        match beside.exists() {
            true if whole => fs::rename(&beside, &path)?,
            true => fs::remove_dir_all(&beside)?,
            false => {}
        }
    }
    if whole {
        fs::File::open(directory)?.sync_all()?;
        fs::remove_file(directory.join(IMPORTED))?;
    }
    Ok(())
}

pub(super) fn write_item(out: &mut impl Write, item: &Item) -> Result<(), MaintenanceError> {
    let octets = item.encode_to_vec();
    out.write_all(&(octets.len() as u32).to_be_bytes())?;
    out.write_all(&octets)?;
    out.write_all(&crc32fast::hash(&octets).to_be_bytes())?;
    Ok(())
}

pub(super) fn read_item(from: &mut impl Read, items: u64) -> Result<Item, MaintenanceError> {
    let cut = |_| MaintenanceError::Damaged(items, "unexpected end of file");
    let mut number = [0; 4];
    from.read_exact(&mut number).map_err(cut)?;
    let length = u32::from_be_bytes(number) as usize;
    if length > MAXIMUM_ITEM_OCTETS {
        return Err(MaintenanceError::Damaged(items, "an item is too long"));
    }
    let mut octets = vec![0; length];
    from.read_exact(&mut octets).map_err(cut)?;
    from.read_exact(&mut number).map_err(cut)?;
    let whole = crc32fast::hash(&octets) == u32::from_be_bytes(number);
    let item = Item::decode(octets.as_slice()).ok().filter(|_| whole);
    item.ok_or(MaintenanceError::Damaged(items, "a checksum is wrong"))
}
