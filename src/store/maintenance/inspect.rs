//! Read-only access to a state directory. sled writes to a database that it opens, so databases are
//! opened as copies, one window at a time.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{CACHE_OCTETS, MaintenanceError};
use crate::store::{
    Entry, StateDirectory, StoreError,
    cursor_reservation::CursorReservation,
    disk,
    engine::Engine,
    entries,
    recovery::{newest_kept, state_sequence},
    state::{RESULTS, Trees},
    window,
    windows::Windows,
};

/// Directory for the copies, in the state directory so that only its owner can read them.
const COPIES: &str = "inspect";

/// Databases of a state directory, opened as copies.
pub(super) struct Inspection {
    pub(super) windows: Windows,
    pub(super) trees: Trees,
    pub(super) state: Engine,
    /// Dropped last, so that the databases are closed before the copies are removed.
    copies: Copies,
}

impl Inspection {
    pub(super) fn open(directory: &StateDirectory) -> Result<Self, MaintenanceError> {
        recover(directory.path())?;
        let copies = Copies { state: directory.path().to_owned() };
        let state = copies.open("state")?;
        let trees = Trees::open(&state)?;
        let windows =
            Windows::inspect(&copies.state.join(RESULTS), &trees.meta, &copies.state.join(COPIES))?;
        Ok(Self { windows, trees, state, copies })
    }

    /// Opens the configuration database.
    pub(super) fn config(&self) -> Result<Engine, MaintenanceError> {
        self.copies.open("config")
    }

    /// Returns an error if the end of the log or of the state database is missing.
    pub(super) fn missing_end(&self) -> Result<Option<MaintenanceError>, StoreError> {
        let reserved = CursorReservation::new(&self.copies.state).read();
        let (found, known) = (self.windows.found(), newest_kept(reserved, &self.trees.meta)?);
        if state_sequence(&self.trees.meta)? < reserved.state_sequence {
            return Ok(Some(MaintenanceError::StateGone));
        }
        let is_gone = found < known && !reserved.has_unstored;
        Ok(is_gone.then_some(MaintenanceError::Gone { found, known }))
    }

    /// Visits the readable entries of the log, in ascending order.
    pub(super) fn each_entry(
        &self,
        mut visit: impl FnMut(&Entry) -> Result<(), MaintenanceError>,
    ) -> Result<(), MaintenanceError> {
        let list = window::read(&self.windows.shared());
        let mut after = 0;
        loop {
            let entries = entries::entries(&list, after + 1..=u64::MAX, 4096, 1 << 20, false)?;
            let Some(last) = entries.last() else { return Ok(()) };
            entries.iter().try_for_each(&mut visit)?;
            after = last.cursor;
        }
    }

    /// Logs data that is lost and will be missing in an export or a compacted copy.
    pub(super) fn warn_of_losses(&self) -> Result<(), MaintenanceError> {
        if let Some(gone) = self.missing_end()? {
            tracing::warn!(error = %gone, "end of the stored state is missing");
        }
        let (mut readable, mut newest) = (0, 0);
        self.each_entry(|entry| {
            (readable, newest) = (readable + 1, entry.cursor);
            Ok(())
        })?;
        let (stored, ..) = self.windows.figures();
        if readable != stored {
            tracing::warn!(stored, readable, newest, "some records cannot be read");
        }
        Ok(())
    }
}

/// Directory of the copies.
struct Copies {
    /// State directory that is inspected.
    state: PathBuf,
}

impl Copies {
    /// Opens a copy of a database; an empty one if the database does not exist.
    fn open(&self, name: &str) -> Result<Engine, MaintenanceError> {
        let (from, copy) =
            (self.state.join(name).with_extension("sled"), self.state.join(COPIES).join(name));
        if from.try_exists()? {
            disk::copy(&from, &copy)?;
        }
        Ok(Engine::open_whole(&copy, CACHE_OCTETS)?)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if let Err(error) = recover(&self.state) {
            tracing::warn!(%error, "failed to remove copies of databases");
        }
    }
}

/// Removes the copies of an interrupted inspection.
pub(super) fn recover(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory.join(COPIES)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
