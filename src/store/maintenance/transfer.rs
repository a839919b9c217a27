//! A state as a file: `TWAMPDB1` and items: length (4 octets, big-endian), a message, and its CRC-32
//! (4 octets). It knows nothing of sled, and is how a state leaves it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use prost::Message;

use super::{CACHE_OCTETS, DATABASES, MaintenanceError, inspect::Inspection, path};
use crate::store::{
    LOCK_FILE, StateDirectory, StoreError,
    compaction::{FLUSH_EVERY, each},
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
/// Names of the databases in a file.
const CONFIG: &str = "config";
const LOG: &str = "results";
/// Largest item: a key and a value, and names.
const MAXIMUM_ITEM_OCTETS: usize = 1 << 20;
/// Trees of a window in a file, each with the first cursor and the generation, if there is one.
const PAGES: &[u8] = b"page/";
const SUBJECTS: &[u8] = b"subject/";
/// Tree whose keys name the windows that were sealed.
const META: &[u8] = b"meta";
/// Extension of what is being imported; and a file that says that all of it is whole.
const IMPORTING: &str = "import";
const IMPORTED: &str = "imported";
/// Jump of the cursors of an imported log: by more than were given out meanwhile in the place that it
/// came from.
pub(super) const IMPORT_JUMP: u64 = 1 << 40;

/// One item of a file.
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
    /// In the last item alone: how many were before it.
    #[prost(uint64, optional, tag = "5")]
    pub(super) items: Option<u64>,
}

/// Writes everything into a file; how many items.
pub fn export(directory: &StateDirectory, out: &mut impl Write) -> Result<u64, MaintenanceError> {
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

/// The window that a tree is of; `None` for any other tree.
fn window_of(prefix: &[u8], tree: &[u8]) -> Option<WindowName> {
    let (first_cursor, generation) = tree.strip_prefix(prefix)?.split_first_chunk()?;
    let generation = match generation {
        [] => 0,
        number => u32::from_be_bytes(number.try_into().ok()?),
    };
    Some(WindowName { first_cursor: u64::from_be_bytes(*first_cursor), generation })
}

/// Makes a state directory of a file; how many items. What is not whole leaves nothing behind.
pub fn import(directory: &Path, from: &mut impl Read) -> Result<u64, MaintenanceError> {
    // A directory of somebody else is left as it is.
    refuse_content(directory)?;
    let state = StateDirectory::open(directory)?;
    refuse_content(directory)?;
    let imported = import_into(&state, from);
    if imported.is_ok() {
        fs::write(directory.join(IMPORTED), "")?;
        fs::File::open(directory)?.sync_all()?;
    }
    recover(directory)?;
    imported
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

/// An import under way.
struct Import {
    config: Engine,
    state: Engine,
    pool: Arc<Pool>,
    /// Windows that were created, and names of those that are sealed.
    windows: BTreeSet<WindowName>,
    sealed: BTreeSet<WindowName>,
}

fn import_into(directory: &StateDirectory, from: &mut impl Read) -> Result<u64, MaintenanceError> {
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic)
        .ok()
        .filter(|()| magic == MAGIC)
        .ok_or(MaintenanceError::Damaged(0, "it is no export of a state directory"))?;
    let open = |database| {
        let beside = path(directory, database).with_extension(IMPORTING);
        Engine::open_whole(&beside, CACHE_OCTETS)
    };
    let place = directory.path().join(RESULTS).with_extension(IMPORTING);
    let (config, state, pool) = (open("config")?, open("state")?, Pool::open(&place)?);
    let (windows, sealed) = Default::default();
    let mut import = Import { config, state, pool, windows, sealed };
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
        let known = import.put(item, directory.path())?;
        if !known {
            return Err(MaintenanceError::Damaged(items, "it is of an unknown database"));
        }
        items += 1;
        if items.is_multiple_of(FLUSH_EVERY) {
            import.state.flush()?;
        }
    }
    import.finish(&place)?;
    Ok(items)
}

impl Import {
    /// Stores an item; returns whether it is of a database that exists.
    fn put(&mut self, item: Item, directory: &Path) -> Result<bool, MaintenanceError> {
        let Item { database, tree, key, value, .. } = item;
        if key == MARK && tree == sled_default() {
            let found = value.as_slice().try_into().map(u32::from_be_bytes);
            let found = found.map_err(|_| StoreError::Damaged("schema"))?;
            schema::check_version(directory, found)?;
            // The next start migrates all of it.
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

    /// The database of a window, which is created for its first item.
    fn files(&mut self, name: WindowName) -> Result<Arc<Files>, StoreError> {
        if self.windows.insert(name) { self.pool.create(name) } else { self.pool.files(name) }
    }

    /// Seals the windows, and has the disk write everything.
    fn finish(self, place: &Path) -> Result<(), MaintenanceError> {
        let Self { config, state, pool, windows, sealed } = self;
        let mut current = BTreeMap::new();
        for name in &windows {
            // A copy that was not finished does not count.
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
        // The log may have gone on in the place that it came from: no cursor may ever name two records.
        Windows::open(place, &trees.meta, 1)?.jump(IMPORT_JUMP)?;
        config.flush_durably()?;
        state.flush_durably()?;
        Ok(())
    }
}

/// Name of the tree that each database has.
fn sled_default() -> &'static [u8] {
    b"__sled__default"
}

/// Undoes or ends an import that was cut short.
pub(super) fn recover(directory: &Path) -> io::Result<()> {
    let whole = directory.join(IMPORTED).exists();
    let databases = DATABASES.map(|database| directory.join(format!("{database}.sled")));
    for place in databases.into_iter().chain([directory.join(RESULTS)]) {
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
