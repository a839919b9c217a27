//! Opens the log at a start: finds the cursor to go on with, and describes what is lost.

use std::{fs, path::Path};

use super::{
    StoreError,
    cursor_reservation::{MAXIMUM_UNSTORED, Reserved},
    state::{KERNEL_BOOT, NEXT_CURSOR, SEQUENCE, cursor_value},
    windows::Windows,
};

/// Jump of the cursors beyond all known ones where records that readers may have seen are gone: by more
/// than a window has.
pub(super) const CURSOR_JUMP: u64 = 1 << 24;
/// Jump of the cursors after a crash of the host: readers may have seen cursors that the disk has not. A
/// disk that took nothing before the crash lost its notes of those as well.
pub(super) const CRASH_JUMP: u64 = 2 * MAXIMUM_UNSTORED;

/// The log after a start.
pub(super) struct Recovered {
    pub(super) windows: Windows,
    /// Description of the damage; empty without any.
    pub(super) damage: String,
    /// Number of the state database.
    pub(super) state_sequence: u64,
}

/// Opens the log in a directory, next to a state database that replaces a damaged one
/// `quarantined`.
pub(super) fn recover(
    place: &Path,
    meta: &sled::Tree,
    reserved: Reserved,
    quarantined: Option<&Path>,
) -> Result<Recovered, StoreError> {
    let known = newest_kept(reserved, meta)?;
    let state_sequence = state_sequence(meta)?;
    let mut windows = Windows::open(place, meta, first_cursor(place, meta)?)?;
    let found = windows.found();
    let damage = match quarantined {
        Some(aside) => format!(
            "the database of statistics and consumers was damaged and is put aside in {}: \
             consumers have no position, and statistics are counted from the stored results",
            aside.display()
        ),
        None if state_sequence < reserved.state_sequence => {
            "the database of statistics and consumers was damaged: its latest changes are gone, \
             consumers may get records again"
                .to_owned()
        }
        None if windows.unopened() > 0 => format!(
            "{} windows of results cannot be opened: they are left in {} and tried again",
            windows.unopened(),
            place.display()
        ),
        None if found < known && !reserved.has_unstored => format!(
            "the results were damaged: records behind cursor {found}, up to {known} and \
             perhaps some seconds more, are gone"
        ),
        None if windows.was_damaged() => format!(
            "the results were damaged: of the records up to cursor {found} some cannot be read"
        ),
        None => String::new(),
    };
    let lost_unstored = reserved.has_unstored && found < known;
    if !damage.is_empty() {
        tracing::error!("{damage}");
    } else if lost_unstored {
        tracing::warn!(found, "records that could not be stored are gone, cursors jump");
    }
    if !damage.is_empty() || lost_unstored {
        let beyond = windows.next_cursor().max(reserved.up_to) + CURSOR_JUMP;
        // The databases are closed before they are opened again.
        drop(windows);
        windows = Windows::open(place, meta, beyond)?;
    }
    if !damage.is_empty() {
        windows.seal_newest()?;
    }
    if windows.next_cursor() > windows.found() + 1 {
        // The cursors between have no records that could be gone.
        windows.jump(0)?;
    }
    let state_sequence = state_sequence.max(reserved.state_sequence);
    meta.insert(SEQUENCE, &state_sequence.to_be_bytes())?;
    Ok(Recovered { windows, damage, state_sequence })
}

/// Returns the number of the state database; 0 for a new one.
pub(super) fn state_sequence(meta: &sled::Tree) -> Result<u64, StoreError> {
    meta.get(SEQUENCE)?.map_or(Ok(0), |number| cursor_value(&number))
}

/// Returns the cursor from which on none was ever given out. After a clean end it is stored. After the
/// death of the process alone all records that were seen are found. After a crash of the host records
/// that were seen may be missing, and cursors jump: a cursor never names two records.
fn first_cursor(place: &Path, meta: &sled::Tree) -> Result<u64, StoreError> {
    let went_down = host_went_down(meta)?;
    meta.insert(KERNEL_BOOT, kernel_boot().as_bytes())?;
    match meta.remove(NEXT_CURSOR)? {
        Some(next) => cursor_value(&next),
        None if went_down => {
            let found = Windows::open(place, meta, 1)?.next_cursor();
            tracing::warn!(found, "the host went down while results were written; cursors jump");
            Ok(found + CRASH_JUMP)
        }
        None => Ok(1),
    }
}

/// Returns true when the host went down while the database was open.
fn host_went_down(meta: &sled::Tree) -> Result<bool, StoreError> {
    let last = meta.get(KERNEL_BOOT)?.filter(|last| last.as_ref() != kernel_boot().as_bytes());
    Ok(last.is_some() && meta.get(NEXT_CURSOR)?.is_none())
}

fn kernel_boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// Returns the newest cursor whose record is to be there.
pub(super) fn newest_kept(reserved: Reserved, meta: &sled::Tree) -> Result<u64, StoreError> {
    Ok(if host_went_down(meta)? { reserved.durable } else { reserved.up_to })
}
