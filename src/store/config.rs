//! The configuration: its revisions, what was wrong with them at the start, and a copy of the current
//! one. A database that failed is opened anew by the next who needs it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    StateDirectory, StoreError, compaction,
    engine::Engine,
    envelope::{self, StoredAnswer, StoredRevision, Unconfirmed},
    last_good::{self, LastGood},
    reserve,
    revisions::Revisions,
};
use crate::{model::limits::REVISIONS_KEPT, proto};

const CACHE_OCTETS: u64 = 4 << 20;
/// Size of a database that is compacted after each removal of a revision, and the number of
/// removals after which a larger one is.
const SMALL_BYTES: u64 = 8 << 20;
const REMOVALS_OF_LARGE: u64 = 16;

/// Revisions of the configuration, and the copy of the current one.
#[derive(Debug)]
pub struct ConfigStore {
    /// The database; `None` after a failure, until it is needed again.
    database: Mutex<Option<Revisions>>,
    current: AtomicU64,
    directory: PathBuf,
    /// Damage that was found at the start, and the revision up to which it is reported.
    damage: Option<(String, AtomicU64)>,
    /// The damage was dealt with: a document was applied.
    settled: AtomicBool,
    /// Revisions removed since the database was compacted: their secrets are still in its file.
    removals: AtomicU64,
    /// Reason why the copy is not that of the current revision; empty when it is.
    copy_failure: Mutex<String>,
}

impl ConfigStore {
    /// Opens the database in a state directory.
    pub fn open(directory: &StateDirectory) -> Result<Self, StoreError> {
        let path = path(directory.path());
        // Both databases are made at the first start.
        let gone = !path.exists() && directory.path().join("state.sled").exists();
        let engine = Engine::open(&path, CACHE_OCTETS)?;
        let aside = engine.put_aside().map(Path::to_owned);
        // sled panics over some kinds of damage, also later than when it is opened.
        let opened = catch_unwind(AssertUnwindSafe(|| Self::with(engine, directory.path())));
        let (mut store, aside) = match opened.unwrap_or(Err(StoreError::Damaged("database"))) {
            Ok(store) => (store, aside),
            Err(error @ (StoreError::Damaged(_) | StoreError::Database(_))) => {
                let engine = Engine::open_anew(&path, CACHE_OCTETS, &error)?;
                let aside = engine.put_aside().map(Path::to_owned);
                (Self::with(engine, directory.path())?, aside)
            }
            Err(error) => return Err(error),
        };
        store.take_up_copy(aside.as_deref())?;
        store.compact_if_due();
        if gone && store.damage.is_none() {
            let told = "the configuration database and its copy are gone, though there are results: \
                        apply the configuration again";
            store.damage = Some((told.into(), AtomicU64::new(0)));
        }
        Ok(store)
    }

    /// Opens the configuration in a database.
    pub(super) fn with(engine: Engine, directory: &Path) -> Result<Self, StoreError> {
        let revisions = Revisions::open(engine)?;
        let current = revisions.current()?;
        revisions.check(current)?;
        Ok(Self {
            database: Mutex::new(Some(revisions)),
            current: current.into(),
            directory: directory.to_owned(),
            damage: None,
            settled: AtomicBool::default(),
            // Removals of an earlier run are unknown.
            removals: AtomicU64::new((current > REVISIONS_KEPT as u64).into()),
            copy_failure: Mutex::default(),
        })
    }

    /// Runs a step on the database, with the number of the current revision. After an error of the disk
    /// sled takes nothing more: only a database that is opened anew does.
    fn with_database<T>(
        &self,
        work: impl FnOnce(&Revisions, u64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load(Relaxed);
        let open = match database.take() {
            Some(open) => open,
            None => {
                let opened = catch_unwind(AssertUnwindSafe(|| {
                    let path = path(&self.directory);
                    compaction::recover(&path)
                        .map_err(|source| StoreError::Directory { path: path.clone(), source })?;
                    let open = Revisions::open(Engine::open_whole(&path, CACHE_OCTETS)?)?;
                    open.stay_at(current)?;
                    Ok::<_, StoreError>(open)
                }));
                let open = opened.unwrap_or(Err(StoreError::Damaged("database")))?;
                tracing::info!("the configuration is stored again");
                open
            }
        };
        // sled panics over some failures of the disk.
        let done = catch_unwind(AssertUnwindSafe(|| work(&open, current)));
        let done = done.unwrap_or_else(|_| Err(StoreError::gave_up()));
        match &done {
            Err(error @ (StoreError::Database(_) | StoreError::Directory { .. })) => {
                tracing::error!(%error, "the configuration database failed; it is to be opened anew");
                // It writes once more, which may fail as well.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
            }
            _ => *database = Some(open),
        }
        done
    }

    /// Opens a database that failed as soon as the disk takes it: until then a start may find a document
    /// that was refused.
    pub fn mend(&self) -> Result<(), StoreError> {
        let failed = self.database.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        if failed {
            self.with_database(|_, _| Ok(()))?;
        }
        if !self.copy_failure().is_empty() {
            self.save_copy();
        }
        Ok(())
    }

    fn copy_failure(&self) -> MutexGuard<'_, String> {
        self.copy_failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with the copy where the database has lost its revisions.
    fn take_up_copy(&mut self, aside: Option<&Path>) -> Result<(), StoreError> {
        let copy = LastGood::read(&self.directory);
        let current = self.current.load(Relaxed);
        let place = |aside: &Path| format!(" and is put aside in {}", aside.display());
        let what = match aside {
            Some(aside) => format!("the configuration database was damaged{}", place(aside)),
            None if current == 0 => "the configuration database was gone".to_owned(),
            // sled goes back to the latest state that it finds whole.
            None => format!("the configuration database was damaged behind revision {current}"),
        };
        match copy.as_ref().map(|copy| (copy, copy.revision())) {
            // It is written after the database: where it is ahead, the database has lost something.
            Some((copy, revision)) if revision > current => {
                if let Ok(key) = <[u8; 32]>::try_from(copy.digest_key.as_slice()) {
                    self.digest_key(key)?;
                }
                let stored = copy.stored.clone().unwrap_or_default();
                if let (Some(waits), Some(rollback)) = (stored.unconfirmed(), &copy.rollback) {
                    self.with_database(|database, _| database.write(waits.rollback_to, rollback))?;
                }
                self.commit(revision, &stored.open()?)?;
                if copy.confirmed > 0 {
                    self.confirm(copy.confirmed)?;
                }
                let went_on = format!("{what}: revision {revision} was taken from its copy");
                tracing::error!("{went_on}");
                self.damage = Some((went_on, revision.into()));
            }
            _ if aside.is_some() => {
                let told = format!("{what}: apply the configuration again");
                self.damage = Some((told, AtomicU64::new(0)));
            }
            _ => self.save_copy(),
        }
        Ok(())
    }

    /// Writes the copy, unless it is the same. A failure costs nothing yet.
    fn save_copy(&self) {
        let copy = self.with_database(|database, current| {
            let waits = database.unconfirmed(current)?;
            let waits = waits.filter(|(_, waits)| waits.rollback_to > 0);
            let rollback = match waits {
                Some((_, waits)) => database.revision(waits.rollback_to)?,
                None => None,
            };
            Ok(LastGood {
                stored: database.revision(current)?,
                rollback,
                digest_key: database.stored_digest_key()?.map(Vec::from).unwrap_or_default(),
                confirmed: database.confirmed()?,
            })
        });
        let written = copy.map_err(|error| error.to_string()).and_then(|copy| {
            let is_there = || LastGood::read(&self.directory).as_ref() == Some(&copy);
            if copy.revision() == 0 || is_there() {
                return Ok(());
            }
            copy.write(&self.directory).map_err(|error| error.to_string())
        });
        let failure = written.err().map(|error| {
            format!("the copy of the configuration ({}) is not written: {error}", last_good::NAME)
        });
        let before =
            std::mem::replace(&mut *self.copy_failure(), failure.clone().unwrap_or_default());
        if let Some(failure) = failure.filter(|failure| *failure != before) {
            tracing::warn!("{failure}");
        }
    }

    /// Describes damage that was found at the start, as long as nothing is applied after it, or why
    /// there is no copy of the current revision. Empty without either.
    pub fn damage(&self) -> String {
        let told = self.damage.as_ref();
        let told =
            told.filter(|(_, revision)| self.current.load(Relaxed) <= revision.load(Relaxed));
        let told = told.filter(|_| !self.settled.load(Relaxed));
        told.map_or_else(|| self.copy_failure().clone(), |(text, _)| text.clone())
    }

    /// Keeps the damage reported over the revision that was just made: it was no answer to it.
    pub fn damage_stands(&self) {
        if let Some((_, revision)) = &self.damage {
            revision.store(self.current.load(Relaxed), Relaxed);
        }
    }

    /// Ends the report of damage: the document that is current was applied.
    pub fn settle(&self) {
        self.settled.store(true, Relaxed);
    }

    /// Stores the answer to a request that made no revision, for a repetition of the request.
    pub fn remember(&self, request_id: &str, answered: &StoredAnswer) -> Result<(), StoreError> {
        self.with_database(|database, _| database.remember(request_id, answered))
    }

    /// Returns the stored answers, oldest first.
    pub fn answers(&self) -> Result<Vec<StoredAnswer>, StoreError> {
        self.with_database(|database, _| database.answers())
    }

    /// Returns the key of digests that stand for secrets: `fresh`, random, where there is none yet.
    pub fn digest_key(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        self.with_database(|database, _| database.digest_key(fresh))
    }

    /// Returns the current revision; `None` before the first commit.
    pub fn current(&self) -> Result<Option<StoredRevision>, StoreError> {
        let found = self.with_database(Revisions::revision);
        let found = found.or_else(|error| {
            let copy = self.copy().map(|copy| copy.stored);
            copy.ok_or(error)
        })?;
        found.map(|stored| stored.open()).transpose()
    }

    /// Returns a kept revision; `None` where it is not kept.
    pub fn revision(&self, revision: u64) -> Result<Option<StoredRevision>, StoreError> {
        let found = self.with_database(|database, _| database.revision(revision));
        let found = found.or_else(|error| {
            let is_it = |stored: &envelope::Revision| stored.number() == revision;
            let kept = self
                .copy()
                .and_then(|copy| [copy.stored, copy.rollback].into_iter().flatten().find(is_it));
            kept.map(Some).ok_or(error)
        })?;
        found.map(|stored| stored.open()).transpose()
    }

    /// Reads the copy, if it is of the current revision: it serves readers while the database fails.
    fn copy(&self) -> Option<LastGood> {
        let current = self.current.load(Relaxed);
        LastGood::read(&self.directory).filter(|copy| current > 0 && copy.revision() == current)
    }

    /// Lists the kept revisions without their documents, newest first. One that does not read back is
    /// left out.
    pub fn revisions(&self) -> Result<Vec<proto::Revision>, StoreError> {
        self.with_database(Revisions::revisions)
    }

    /// Returns the current revision, where it is not confirmed yet.
    pub fn unconfirmed(&self) -> Result<Option<(u64, Unconfirmed)>, StoreError> {
        let found = self.with_database(Revisions::unconfirmed);
        found.or_else(|error| {
            let copy = self.copy().ok_or(error)?;
            let revision = copy.revision();
            let waits = copy.stored.and_then(|stored| stored.unconfirmed());
            Ok(waits.filter(|_| copy.confirmed < revision).map(|waits| (revision, waits)))
        })
    }

    /// Gives the current revision, `revision`, another time to be confirmed. It is on the disk when this
    /// returns.
    pub fn prolong(&self, revision: u64, unconfirmed: Unconfirmed) -> Result<(), StoreError> {
        self.with_database(|database, _| database.prolong(revision, unconfirmed))?;
        self.save_copy();
        Ok(())
    }

    /// Confirms the current revision, `revision`. It is on the disk when this returns.
    pub fn confirm(&self, revision: u64) -> Result<(), StoreError> {
        self.with_database(|database, _| database.confirm(revision))?;
        self.save_copy();
        Ok(())
    }

    /// Makes `stored` the current revision. It is on the disk when this returns.
    pub fn commit(&self, revision: u64, stored: &StoredRevision) -> Result<(), StoreError> {
        reserve::check(&self.directory)?;
        self.with_database(|database, current| {
            let whole = stored.into();
            let written = database.write(revision, &whole);
            if let Err(error) = written.and_then(|()| database.make_current(revision)) {
                // The disk may or may not name the new revision now; make it the old one again.
                let _ = database.stay_at(current);
                return Err(error);
            }
            self.current.store(revision, Relaxed);
            match database.prune(revision, &whole, stored.unconfirmed) {
                Ok(is_removed) => drop(self.removals.fetch_add(is_removed.into(), Relaxed)),
                // The commit stands; the next one removes what was left.
                Err(error) => tracing::warn!(%error, revision, "failed to remove old revisions"),
            }
            Ok(())
        })?;
        self.save_copy();
        self.compact_if_due();
        Ok(())
    }

    /// Writes the database anew if revisions were removed: sled keeps them, with their secrets, in
    /// its file. A failure costs nothing but that.
    fn compact_if_due(&self) {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bytes) = database.as_ref().map(Revisions::disk_bytes) else { return };
        let least = if bytes > SMALL_BYTES { REMOVALS_OF_LARGE } else { 1 };
        if self.removals.load(Relaxed) < least || reserve::check(&self.directory).is_err() {
            return;
        }
        let path = path(&self.directory);
        let compacted = catch_unwind(AssertUnwindSafe(|| {
            // Nobody else may have it open meanwhile.
            drop(database.take());
            compaction::compact(&path, Engine::open_whole, Engine::open_whole)?;
            let open = Revisions::open(Engine::open_whole(&path, CACHE_OCTETS)?)?;
            open.stay_at(self.current.load(Relaxed))?;
            Ok::<_, StoreError>(open)
        }));
        match compacted.unwrap_or_else(|_| Err(StoreError::gave_up())) {
            Ok(open) => {
                *database = Some(open);
                self.removals.store(0, Relaxed);
            }
            // The next who needs the database opens it.
            Err(error) => tracing::warn!(%error, "failed to compact the configuration database"),
        }
    }
}

fn path(directory: &Path) -> PathBuf {
    directory.join("config.sled")
}

#[cfg(test)]
mod tests;
