//! Compaction of a database: it is written anew, without what sled has not freed and what was
//! removed or replaced.

use std::{fs, io, path::Path};

use super::{StoreError, disk, engine::Engine};

/// Extensions of a database that is written anew, and of the one that it replaces.
pub(super) const COMPACT: &str = "compact";
pub(super) const OLD: &str = "old";
const CACHE_OCTETS: u64 = 16 << 20;
/// Number of entries after which a database that is being written is flushed.
pub(super) const ENTRIES_PER_FLUSH: u64 = 50_000;

/// Writes a database anew; returns its bytes on the disk before and after. Nobody else may have it
/// open. After an error it is as it was.
pub(super) fn compact(
    whole: &Path,
    open: fn(&Path, u64) -> Result<Engine, StoreError>,
    create: fn(&Path, u64) -> Result<Engine, StoreError>,
) -> Result<(u64, u64), StoreError> {
    let done = replace(whole, open, create);
    if done.is_err() {
        let _ = recover(whole);
    }
    done
}

fn replace(
    whole: &Path,
    open: fn(&Path, u64) -> Result<Engine, StoreError>,
    create: fn(&Path, u64) -> Result<Engine, StoreError>,
) -> Result<(u64, u64), StoreError> {
    let failed = |source| StoreError::Directory { path: whole.to_owned(), source };
    let (small, old) = (whole.with_extension(COMPACT), whole.with_extension(OLD));
    if small.exists() {
        fs::remove_dir_all(&small).map_err(failed)?;
    }
    let (engine, copy) = (open(whole, CACHE_OCTETS)?, create(&small, CACHE_OCTETS)?);
    let (mut items, mut copied) = (0u64, 0u64);
    each::<StoreError>(&engine, |tree, key, value| {
        copy.put(tree, key, value)?;
        items += 1;
        if items.is_multiple_of(ENTRIES_PER_FLUSH) {
            copy.flush()?;
        }
        Ok(())
    })?;
    copy.flush_durably()?;
    each::<StoreError>(&copy, |_, _, _| {
        copied += 1;
        Ok(())
    })?;
    if copied != items {
        return Err(StoreError::Damaged("copy"));
    }
    let bytes = (engine.disk_bytes(), copy.disk_bytes());
    drop((engine, copy));
    disk::rename(whole, &old).map_err(failed)?;
    disk::rename(&small, whole).map_err(failed)?;
    fs::remove_dir_all(&old).map_err(failed)?;
    Ok(bytes)
}

/// Undoes or ends a compaction that was cut short, before the database is opened.
pub(super) fn recover(whole: &Path) -> io::Result<()> {
    let (small, old) = (whole.with_extension(COMPACT), whole.with_extension(OLD));
    if old.exists() {
        if whole.exists() {
            fs::remove_dir_all(&old)?;
        } else {
            fs::rename(&old, whole)?;
        }
    }
    if small.exists() {
        fs::remove_dir_all(&small)?;
    }
    Ok(())
}

/// Visits all entries of all trees of a database.
pub(super) fn each<E: From<StoreError>>(
    engine: &Engine,
    mut visit: impl FnMut(&[u8], &[u8], &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    for name in engine.tree_names() {
        for entry in &engine.tree(&name)? {
            let (key, value) = entry.map_err(StoreError::from)?;
            visit(&name, &key, &value)?;
        }
    }
    Ok(())
}
