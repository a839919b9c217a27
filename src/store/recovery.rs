//! Opens the log at a start: determines the next cursor, and describes lost data.

use std::{fs, path::Path};

use super::{
    StoreError,
    cursor_reservation::{MAXIMUM_UNSTORED, Reserved},
    state::{KERNEL_BOOT, NEXT_CURSOR, SEQUENCE, cursor_value},
    windows::Windows,
};

/// Number of cursors skipped after all known ones if records that readers may have seen are lost;
/// more than a window can have.
pub(super) const CURSOR_JUMP: u64 = 1 << 24;
/// Number of cursors skipped after a crash of the host, because readers may have seen records that
/// were not durable. If the disk had rejected writes, the reservation in memory is lost as well.
pub(super) const CRASH_JUMP: u64 = 2 * MAXIMUM_UNSTORED;

/// Log that was opened at a start.
pub(super) struct Recovered {
    pub(super) windows: Windows,
    /// Description of the damage; empty if there is none.
    pub(super) damage: String,
    /// Sequence number of the state database.
    pub(super) state_sequence: u64,
}

/// Opens the log in a directory. `quarantined` is the path of a damaged state database that was
/// replaced.
pub(super) fn recover(
    log_path: &Path,
    meta: &sled::Tree,
    reserved: Reserved,
    quarantined: Option<&Path>,
) -> Result<Recovered, StoreError> {
    let known = newest_kept(reserved, meta)?;
    let state_sequence = state_sequence(meta)?;
    let mut windows = Windows::open(log_path, meta, first_cursor(log_path, meta)?)?;
    let found = windows.found();
    let damage = match quarantined {
        Some(path) => format!(
            "the database of statistics and consumers was damaged and was moved to {}: \
             consumers have no position, and statistics are rebuilt from the stored results",
            path.display()
        ),
        None if state_sequence < reserved.state_sequence => {
            "the database of statistics and consumers was damaged: its latest changes are lost; \
             consumers may receive records twice"
                .to_owned()
        }
        None if windows.unopened() > 0 => format!(
            "{} windows of results cannot be opened: they stay in {} and are retried",
            windows.unopened(),
            log_path.display()
        ),
        None if found < known && !reserved.has_unstored => format!(
            "the results were damaged: records after cursor {found} are lost, up to {known} and \
             perhaps some seconds more"
        ),
        None if windows.was_damaged() => {
            format!("the results were damaged: some records up to cursor {found} cannot be read")
        }
        None => String::new(),
    };
    let lost_unstored = reserved.has_unstored && found < known;
    if !damage.is_empty() {
        tracing::error!(%damage, "stored results damaged");
    } else if lost_unstored {
        tracing::warn!(found, "records that were never stored are lost, skipping cursors");
    }
    if !damage.is_empty() || lost_unstored {
        let beyond = windows.next_cursor().max(reserved.up_to) + CURSOR_JUMP;
        // The databases must be closed before they are reopened.
        drop(windows);
        windows = Windows::open(log_path, meta, beyond)?;
    }
    if !damage.is_empty() {
        windows.seal_newest()?;
    }
    if windows.next_cursor() > windows.found() + 1 {
        // The skipped cursors must not be reported as lost records.
        windows.jump(0)?;
    }
    let state_sequence = state_sequence.max(reserved.state_sequence);
    meta.insert(SEQUENCE, &state_sequence.to_be_bytes())?;
    Ok(Recovered { windows, damage, state_sequence })
}

/// Returns the sequence number of the state database; 0 for a new one.
pub(super) fn state_sequence(meta: &sled::Tree) -> Result<u64, StoreError> {
    meta.get(SEQUENCE)?.map_or(Ok(0), |number| cursor_value(&number))
}

/// Returns the first cursor that was never assigned, or 1 if it follows from the stored records. A
/// clean end stores it. After the death of the process, all records that readers have seen are
/// stored. After a crash of the host some of them may be lost, so cursors are skipped: a cursor
/// never identifies two records.
fn first_cursor(log_path: &Path, meta: &sled::Tree) -> Result<u64, StoreError> {
    let has_crashed = host_crashed(meta)?;
    meta.insert(KERNEL_BOOT, kernel_boot().as_bytes())?;
    match meta.remove(NEXT_CURSOR)? {
        Some(next) => cursor_value(&next),
        None if has_crashed => {
            let found = Windows::open(log_path, meta, 1)?.next_cursor();
            tracing::warn!(found, "host stopped while results were written, skipping cursors");
            Ok(found + CRASH_JUMP)
        }
        None => Ok(1),
    }
}

/// Returns true if the host crashed or was stopped while the database was open.
fn host_crashed(meta: &sled::Tree) -> Result<bool, StoreError> {
    let last = meta.get(KERNEL_BOOT)?.filter(|last| last.as_ref() != kernel_boot().as_bytes());
    Ok(last.is_some() && meta.get(NEXT_CURSOR)?.is_none())
}

fn kernel_boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// Returns the newest cursor whose record must be stored.
pub(super) fn newest_kept(reserved: Reserved, meta: &sled::Tree) -> Result<u64, StoreError> {
    Ok(if host_crashed(meta)? { reserved.durable } else { reserved.up_to })
}
