//! Free space on the disk: below [`RESERVE_OCTETS`] nothing more is stored, and what is stored can still
//! be opened, so that a start on a full disk goes on measuring.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::{fcntl::posix_fallocate, sys::statvfs::statvfs};

use super::StoreError;

/// Free octets on the disk below which nothing is written: a database that hits the end of the
/// disk is worse than one that misses records.
pub(super) const RESERVE_OCTETS: u64 = 16 << 20;
/// File that is allocated while there is space, and removed by a start that finds none.
const SET_ASIDE: &str = "reserve";
/// Each of two databases takes up to two segments of 512 KiB when it is opened.
const SET_ASIDE_OCTETS: u64 = 2 << 20;

/// Returns the free octets for this user; `None` where the system does not say.
pub(super) fn free_octets(path: &Path) -> Option<u64> {
    let figures = statvfs(path).ok()?;
    Some(figures.blocks_available() as u64 * figures.fragment_size() as u64)
}

/// Refuses where the disk has too little space to write a database safely.
pub(super) fn check(directory: &Path) -> Result<(), StoreError> {
    match free_octets(directory) {
        Some(free) if free < RESERVE_OCTETS => {
            Err(StoreError::Full { path: directory.to_owned(), free })
        }
        _ => Ok(()),
    }
}

/// Allocates the reserve in a state directory for the start that finds no space, or gives it to this
/// one.
pub(super) fn prepare(directory: &Path) {
    let path = directory.join(SET_ASIDE);
    let Some(free) = free_octets(directory) else { return };
    let done = if free < SET_ASIDE_OCTETS {
        match fs::remove_file(&path) {
            Ok(()) => {
                tracing::warn!(free, "disk full, reserve removed");
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            failed => failed,
        }
    } else if free < RESERVE_OCTETS {
        Ok(())
    } else {
        set_aside(&path)
    };
    if let Err(error) = done {
        tracing::debug!(%error, "failed to allocate the reserve");
    }
}

fn set_aside(path: &Path) -> io::Result<()> {
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    Ok(posix_fallocate(&file, 0, SET_ASIDE_OCTETS as i64)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_set_aside_where_there_is_some() {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        prepare(directory.path());
        let set_aside = fs::metadata(directory.path().join(SET_ASIDE)).unwrap();
        assert_eq!(set_aside.len(), SET_ASIDE_OCTETS);
        check(directory.path()).unwrap();
    }
}
