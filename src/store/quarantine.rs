//! Quarantine of damaged databases, kept for diagnosis within a quota.

use std::{fs, io, path::Path};

use super::disk::{self, disk_bytes};

/// Name of the directory in the state directory.
pub(super) const NAME: &str = "quarantine";
/// Maximum size of the quarantine, bytes; the newest database is kept even if it is larger.
const QUOTA_OCTETS: u64 = 64 << 20;

/// Moves a database to quarantine, and removes the oldest ones beyond the quota.
pub(super) fn put(state: &Path, database: &Path) -> io::Result<()> {
    let directory = state.join(NAME);
    fs::create_dir_all(&directory)?;
    let name = database.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let numbers = entries(&directory)?.into_iter().map(|(number, _)| number);
    let number = numbers.max().map_or(1, |newest| newest + 1);
    disk::rename(database, &directory.join(format!("{number}-{name}")))?;
    trim(&directory, QUOTA_OCTETS)
}

/// Removes the oldest databases until at least `octets` are free; returns the freed bytes.
pub(super) fn free(state: &Path, octets: u64) -> io::Result<u64> {
    let place = state.join(NAME);
    let mut freed = 0;
    let entries = match entries(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    for (_, name) in entries {
        if freed >= octets {
            break;
        }
        let path = place.join(name);
        freed += disk_bytes(&path);
        fs::remove_dir_all(path)?;
    }
    Ok(freed)
}

/// Removes the oldest databases beyond a quota.
fn trim(directory: &Path, quota: u64) -> io::Result<()> {
    let mut kept = 0;
    for (index, (_, name)) in entries(directory)?.into_iter().rev().enumerate() {
        kept += disk_bytes(&directory.join(&name));
        if index > 0 && kept > quota {
            fs::remove_dir_all(directory.join(name))?;
        }
    }
    Ok(())
}

/// Returns numbers and names of the databases in quarantine, oldest first.
fn entries(directory: &Path) -> io::Result<Vec<(u64, String)>> {
    let names =
        fs::read_dir(directory)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let number = |name: &str| name.split('-').next()?.parse().ok();
    let mut entries: Vec<(u64, String)> =
        names.filter_map(|name| Some((number(&name)?, name))).collect();
    entries.sort_unstable();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_databases_beyond_the_quota_are_removed() {
        let state = tempfile::tempdir().unwrap();
        for number in 1..=12 {
            let database = state.path().join("window");
            fs::create_dir(&database).unwrap();
            fs::write(database.join("db"), vec![1; 40_000]).unwrap();
            put(state.path(), &database).unwrap();
            assert!(!database.exists());
            let kept = entries(&state.path().join(NAME)).unwrap();
            assert_eq!(kept.last().unwrap(), &(number, format!("{number}-window")));
        }
        let directory = state.path().join(NAME);
        trim(&directory, 150_000).unwrap();
        let numbers: Vec<u64> = entries(&directory).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(numbers, [10, 11, 12]);
        trim(&directory, 1).unwrap();
        assert_eq!(entries(&directory).unwrap().len(), 1, "the newest is kept");
    }
}
