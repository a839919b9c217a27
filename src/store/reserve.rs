//! Disk space that is kept free. Below [`RESERVE_OCTETS`] of free space nothing is stored. The
//! databases can still be opened, so that an agent can start on a full disk and measure.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::{fcntl::posix_fallocate, sys::statvfs::statvfs};

use super::StoreError;

/// Free disk space below which nothing is written, bytes: an interrupted write would damage a
/// database, which is worse than missing records.
pub(super) const RESERVE_OCTETS: u64 = 16 << 20;
/// File that is allocated while there is free space, and removed by a start on a full disk.
const FILE: &str = "reserve";
/// Size of the file, bytes: opening each of two databases needs up to two segments of 512 KiB.
const FILE_OCTETS: u64 = 2 << 20;

/// Returns the free disk space for this user, bytes; `None` if it is unknown.
pub(super) fn free_octets(path: &Path) -> Option<u64> {
    let figures = statvfs(path).ok()?;
    Some(figures.blocks_available() as u64 * figures.fragment_size() as u64)
}

/// Returns an error if the disk has too little space to write a database safely.
pub(super) fn check(directory: &Path) -> Result<(), StoreError> {
    match free_octets(directory) {
        Some(free) if free < RESERVE_OCTETS => {
            Err(StoreError::Full { path: directory.to_owned(), free })
        }
        _ => Ok(()),
    }
}

/// Allocates the reserve in a state directory, or removes it if the disk is full, so that this
/// start can open the databases.
pub(super) fn prepare(directory: &Path) {
    let path = directory.join(FILE);
    let Some(free) = free_octets(directory) else { return };
    let done = if free < FILE_OCTETS {
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
        allocate(&path)
    };
    if let Err(error) = done {
        tracing::debug!(%error, "failed to allocate the reserve");
    }
}

fn allocate(path: &Path) -> io::Result<()> {
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    Ok(posix_fallocate(&file, 0, FILE_OCTETS as i64)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_is_allocated_while_there_is_space() {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        prepare(directory.path());
        let reserve = fs::metadata(directory.path().join(FILE)).unwrap();
        assert_eq!(reserve.len(), FILE_OCTETS);
        check(directory.path()).unwrap();
    }
}
