//! Reads a state directory without a change to it: sled writes into whatever it opens, so databases are
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

/// Directory for the copies, in the state directory: nobody else may look into them.
const COPIES: &str = "inspect";

/// State of an agent, opened as copies.
pub(super) struct Inspection {
    pub(super) windows: Windows,
    pub(super) trees: Trees,
    pub(super) state: Engine,
    /// Removed after all else is closed.
    copies: Copies,
}

impl Inspection {
    pub(super) fn open(directory: &StateDirectory) -> Result<Self, MaintenanceError> {
        recover(directory.path())?;
        let copies = Copies { of: directory.path().to_owned() };
        let state = copies.open("state")?;
        let trees = Trees::open(&state)?;
        let windows =
            Windows::inspect(&copies.of.join(RESULTS), &trees.meta, &copies.of.join(COPIES))?;
        Ok(Self { windows, trees, state, copies })
    }

    /// Opens the database of the configuration.
    pub(super) fn config(&self) -> Result<Engine, MaintenanceError> {
        self.copies.open("config")
    }

    /// Describes what is missing of the end of the log or of the state database.
    pub(super) fn missing_end(&self) -> Result<Option<MaintenanceError>, StoreError> {
        let reserved = CursorReservation::new(&self.copies.of).read();
        let (found, known) = (self.windows.found(), newest_kept(reserved, &self.trees.meta)?);
        if state_sequence(&self.trees.meta)? < reserved.state_sequence {
            return Ok(Some(MaintenanceError::StateGone));
        }
        let is_gone = found < known && !reserved.has_unstored;
        Ok(is_gone.then_some(MaintenanceError::Gone { found, known }))
    }

    /// Visits what can be read of the log, rising.
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

    /// Logs what a copy of the state will not have.
    pub(super) fn warn_of_losses(&self) -> Result<(), MaintenanceError> {
        if let Some(gone) = self.missing_end()? {
            tracing::warn!("{gone}");
        }
        let (mut readable, mut newest) = (0, 0);
        self.each_entry(|entry| {
            (readable, newest) = (readable + 1, entry.cursor);
            Ok(())
        })?;
        let (stored, ..) = self.windows.figures();
        if readable != stored {
            tracing::warn!("{}", MaintenanceError::Unreadable { stored, readable, newest });
        }
        Ok(())
    }
}

/// The directory of the copies.
struct Copies {
    /// The state directory they are made of.
    of: PathBuf,
}

impl Copies {
    /// Opens a copy of a database; an empty one where there is none.
    fn open(&self, name: &str) -> Result<Engine, MaintenanceError> {
        let (from, copy) =
            (self.of.join(name).with_extension("sled"), self.of.join(COPIES).join(name));
        if from.try_exists()? {
            disk::copy(&from, &copy)?;
        }
        Ok(Engine::open_whole(&copy, CACHE_OCTETS)?)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if let Err(error) = recover(&self.of) {
            tracing::warn!(%error, "failed to remove copies of databases");
        }
    }
}

/// Removes copies that an inspection left which was cut short.
pub(super) fn recover(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory.join(COPIES)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
