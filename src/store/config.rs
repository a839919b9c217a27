//! Store of the configuration: its revisions, a copy of the current one, and a description of
//! damage that was found at the start. A database that failed is reopened by the next access.

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
    presence::{Mark, Presence},
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
    /// The database; `None` after a failure, until the next access reopens it.
    database: Mutex<Option<Revisions>>,
    current: AtomicU64,
    directory: PathBuf,
    /// The state directory; `None` for a copy that is inspected.
    presence: Option<Presence>,
    /// Description of damage that was found at the start, and the last revision for which it is
    /// reported.
    damage: Option<(String, AtomicU64)>,
    /// True once a document was applied after the damage.
    settled: AtomicBool,
    /// Number of revisions removed since the database was compacted: their secrets are still in its
    /// file.
    removals: AtomicU64,
    /// Error of the last attempt to write the copy; empty if the copy is up to date.
    copy_failure: Mutex<String>,
    /// Mark of the copy that was written or found last.
    copy_mark: Mutex<Option<Mark>>,
}

impl ConfigStore {
    /// Opens the database in a state directory.
    pub fn open(directory: &StateDirectory) -> Result<Self, StoreError> {
        let path = path(directory.path());
        // Both databases are created at the first start.
        let is_missing = !path.exists() && directory.path().join("state.sled").exists();
        let engine = Engine::open(&path, CACHE_OCTETS)?;
        let quarantined = engine.quarantined().map(Path::to_owned);
        // sled panics on some kinds of damage, also after it has opened the database.
        let opened = catch_unwind(AssertUnwindSafe(|| Self::with(engine, directory.path())));
        let (mut store, quarantined) = match opened.unwrap_or(Err(StoreError::Damaged("database")))
        {
            Ok(store) => (store, quarantined),
            Err(error @ (StoreError::Damaged(_) | StoreError::Database(_))) => {
                let engine = Engine::open_replacement(&path, CACHE_OCTETS, &error)?;
                let quarantined = engine.quarantined().map(Path::to_owned);
                (Self::with(engine, directory.path())?, quarantined)
            }
            Err(error) => return Err(error),
        };
        store.presence = Some(directory.presence.clone());
        store.restore_copy(quarantined.as_deref())?;
        store.compact_if_due();
        if is_missing && store.damage.is_none() {
            let damage = "the configuration database and its copy are missing although results \
                          exist: apply the configuration again";
            store.damage = Some((damage.into(), AtomicU64::new(0)));
        }
        Ok(store)
    }

    /// Opens the store on a database, and checks the current revision.
    pub(super) fn with(engine: Engine, directory: &Path) -> Result<Self, StoreError> {
        let revisions = Revisions::open(engine)?;
        let current = revisions.current()?;
        revisions.check(current)?;
        Ok(Self {
            database: Mutex::new(Some(revisions)),
            current: current.into(),
            directory: directory.to_owned(),
            presence: None,
            damage: None,
            settled: AtomicBool::default(),
            // Removals of an earlier run are unknown.
            removals: AtomicU64::new((current > REVISIONS_KEPT as u64).into()),
            copy_failure: Mutex::default(),
            copy_mark: Mutex::default(),
        })
    }

    /// Runs `work` on the database, with the number of the current revision. After a disk error
    /// sled accepts no more writes, so the database is closed and reopened by the next access.
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
                    open.keep_current(current)?;
                    Ok::<_, StoreError>(open)
                }));
                let open = opened.unwrap_or(Err(StoreError::Damaged("database")))?;
                tracing::info!("configuration database reopened");
                open
            }
        };
        // sled panics on some disk errors.
        let done = catch_unwind(AssertUnwindSafe(|| work(&open, current)));
        let done = done.unwrap_or_else(|_| Err(StoreError::database_panicked()));
        match &done {
            Err(error @ (StoreError::Database(_) | StoreError::Directory { .. })) => {
                tracing::error!(%error, "configuration database failed, reopening");
                // Closing the database writes once more, which may fail as well.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
            }
            _ => *database = Some(open),
        }
        done
    }

    /// Runs a step that writes, unless a file that it would write to was deleted or replaced.
    fn write_database<T>(
        &self,
        work: impl FnOnce(&Revisions, u64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.check_directory_presence()?;
        self.with_database(|database, current| {
            database.check_presence()?;
            work(database, current)
        })
    }

    /// Returns an error if the state directory or the database is no longer what was opened: nothing
    /// that they hold may be acknowledged.
    pub fn check_presence(&self) -> Result<(), StoreError> {
        self.check_directory_presence()?;
        self.check_database_presence()
    }

    fn check_directory_presence(&self) -> Result<(), StoreError> {
        self.presence.as_ref().map_or(Ok(()), Presence::check)
    }

    /// A database in use is not waited for: whoever writes to it checks it.
    fn check_database_presence(&self) -> Result<(), StoreError> {
        let database = self.database.try_lock();
        let open = database.as_ref().ok().and_then(|database| database.as_ref());
        open.map_or(Ok(()), Revisions::check_presence)
    }

    /// Reopens a database that failed, and writes a copy that is missing or was touched. Until this succeeds, a restart
    /// may find a revision whose commit was reported as failed.
    pub fn mend(&self) -> Result<(), StoreError> {
        let failed = self.database.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        if failed {
            self.with_database(|_, _| Ok(()))?;
        }
        // A directory that was replaced gets no copy.
        self.check_directory_presence()?;
        let mark = *self.copy_mark.lock().unwrap_or_else(PoisonError::into_inner);
        let is_touched =
            mark.is_some() && mark != Mark::read(&self.directory.join(last_good::NAME));
        if is_touched && self.copy_failure().is_empty() {
            tracing::warn!(
                file = last_good::NAME,
                "copy of the configuration was deleted or changed, writing it again"
            );
        }
        if is_touched || !self.copy_failure().is_empty() {
            self.save_copy();
        }
        Ok(())
    }

    fn copy_failure(&self) -> MutexGuard<'_, String> {
        self.copy_failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Restores the current revision from its copy if the database has lost it. `quarantined` is
    /// the path of a damaged database that was replaced.
    fn restore_copy(&mut self, quarantined: Option<&Path>) -> Result<(), StoreError> {
        let copy = LastGood::read(&self.directory);
        let current = self.current.load(Relaxed);
        let cause = match quarantined {
            Some(path) => {
                let path = path.display();
                format!("the configuration database was damaged and was moved to {path}")
            }
            None if current == 0 => "the configuration database is missing".to_owned(),
            // sled returns to the latest intact state.
            None => format!("the configuration database was damaged after revision {current}"),
        };
        match copy.as_ref().map(|copy| (copy, copy.revision())) {
            // The copy is written after the database: a newer copy shows a loss in the database.
            Some((copy, revision)) if revision > current => {
                if let Ok(key) = <[u8; 32]>::try_from(copy.digest_key.as_slice()) {
                    self.digest_key(key)?;
                }
                let stored = copy.stored.clone().unwrap_or_default();
                if let (Some(pending), Some(rollback)) = (stored.unconfirmed(), &copy.rollback) {
                    self.with_database(|database, _| {
                        database.write(pending.rollback_to, rollback)
                    })?;
                }
                self.commit(revision, &stored.open()?)?;
                if copy.confirmed > 0 {
                    self.confirm(copy.confirmed)?;
                }
                let damage = format!("{cause}: revision {revision} was recovered from its copy");
                tracing::error!(revision, %damage, "configuration recovered from its copy");
                self.damage = Some((damage, revision.into()));
            }
            _ if quarantined.is_some() => {
                let damage = format!("{cause}: apply the configuration again");
                self.damage = Some((damage, AtomicU64::new(0)));
            }
            _ => self.save_copy(),
        }
        Ok(())
    }

    /// Writes the copy unless it is up to date. An error is logged and reported by
    /// [`Self::damage`]: the database still has the revision.
    fn save_copy(&self) {
        let copy = self.with_database(|database, current| {
            let pending = database.unconfirmed(current)?;
            let pending = pending.filter(|(_, pending)| pending.rollback_to > 0);
            let rollback = match pending {
                Some((_, pending)) => database.revision(pending.rollback_to)?,
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
            let is_current = || LastGood::read(&self.directory).as_ref() == Some(&copy);
            if copy.revision() == 0 || is_current() {
                return Ok(());
            }
            copy.write(&self.directory).map_err(|error| error.to_string())
        });
        let error = written.err();
        if error.is_none() {
            let mark = Mark::read(&self.directory.join(last_good::NAME));
            *self.copy_mark.lock().unwrap_or_else(PoisonError::into_inner) = mark;
        }
        let failure = error.as_ref().map_or_else(String::new, |error| {
            format!("failed to write the copy of the configuration ({}): {error}", last_good::NAME)
        });
        let before = std::mem::replace(&mut *self.copy_failure(), failure.clone());
        if let Some(error) = error.filter(|_| failure != before) {
            tracing::warn!(error, "failed to write the copy of the configuration");
        }
    }

    /// Returns a description of damage that was found at the start, until a later document is
    /// applied, or of an error of the copy. Empty if there is neither.
    pub fn damage(&self) -> String {
        if let Err(error) = self.check_presence() {
            return error.to_string();
        }
        let damage = self.damage.as_ref();
        let damage =
            damage.filter(|(_, revision)| self.current.load(Relaxed) <= revision.load(Relaxed));
        let damage = damage.filter(|_| !self.settled.load(Relaxed));
        damage.map_or_else(|| self.copy_failure().clone(), |(text, _)| text.clone())
    }

    /// Keeps reporting the damage after an automatic rollback has made the current revision.
    pub fn damage_stands(&self) {
        if let Some((_, revision)) = &self.damage {
            revision.store(self.current.load(Relaxed), Relaxed);
        }
    }

    /// Stops reporting the damage, because the current document was applied.
    pub fn settle(&self) {
        self.settled.store(true, Relaxed);
    }

    /// Stores the answer to a request that made no revision, to return it if the request is
    /// repeated.
    pub fn remember(&self, request_id: &str, answered: &StoredAnswer) -> Result<(), StoreError> {
        self.write_database(|database, _| database.remember(request_id, answered))
    }

    /// Returns the stored answers, oldest first.
    pub fn answers(&self) -> Result<Vec<StoredAnswer>, StoreError> {
        self.with_database(|database, _| database.answers())
    }

    /// Returns the key for digests of secrets. If none is stored yet, stores and returns `fresh`,
    /// which must be random.
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

    /// Returns a revision; `None` if it is not kept.
    pub fn revision(&self, revision: u64) -> Result<Option<StoredRevision>, StoreError> {
        let found = self.with_database(|database, _| database.revision(revision));
        let found = found.or_else(|error| {
            let matches = |stored: &envelope::Revision| stored.number() == revision;
            let kept = self
                .copy()
                .and_then(|copy| [copy.stored, copy.rollback].into_iter().flatten().find(matches));
            kept.map(Some).ok_or(error)
        })?;
        found.map(|stored| stored.open()).transpose()
    }

    /// Returns the copy if it has the current revision. It serves readers while the database fails.
    fn copy(&self) -> Option<LastGood> {
        let current = self.current.load(Relaxed);
        LastGood::read(&self.directory).filter(|copy| current > 0 && copy.revision() == current)
    }

    /// Returns the kept revisions without their documents, newest first. Unreadable revisions are
    /// left out.
    pub fn revisions(&self) -> Result<Vec<proto::Revision>, StoreError> {
        self.with_database(Revisions::revisions)
    }

    /// Returns the current revision if it is pending.
    pub fn unconfirmed(&self) -> Result<Option<(u64, Unconfirmed)>, StoreError> {
        let found = self.with_database(Revisions::unconfirmed);
        found.or_else(|error| {
            let copy = self.copy().ok_or(error)?;
            let revision = copy.revision();
            let pending = copy.stored.and_then(|stored| stored.unconfirmed());
            Ok(pending.filter(|_| copy.confirmed < revision).map(|pending| (revision, pending)))
        })
    }

    /// Changes the time limit for confirming the current revision, which must be `revision`. The
    /// change is durable when this returns.
    pub fn prolong(&self, revision: u64, unconfirmed: Unconfirmed) -> Result<(), StoreError> {
        self.write_database(|database, _| database.prolong(revision, unconfirmed))?;
        self.save_copy();
        Ok(())
    }

    /// Confirms the current revision, which must be `revision`. The confirmation is durable when
    /// this returns.
    pub fn confirm(&self, revision: u64) -> Result<(), StoreError> {
        self.write_database(|database, _| database.confirm(revision))?;
        self.save_copy();
        Ok(())
    }

    /// Makes `stored` the current revision. The commit is durable when this returns.
    pub fn commit(&self, revision: u64, stored: &StoredRevision) -> Result<(), StoreError> {
        reserve::check(&self.directory)?;
        self.write_database(|database, current| {
            let whole = stored.into();
            let written = database.write(revision, &whole);
            let made = written.and_then(|()| database.make_current(revision));
            if let Err(error) = made.and_then(|()| database.check_presence()) {
                // The disk may already name the new revision, so the old one is restored.
                let _ = database.keep_current(current);
                return Err(error);
            }
            self.current.store(revision, Relaxed);
            match database.prune(revision, &whole, stored.unconfirmed) {
                Ok(is_removed) => drop(self.removals.fetch_add(is_removed.into(), Relaxed)),
                // The commit is valid; the next one removes the old revisions.
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
            // sled locks the file: the compaction opens it itself.
            drop(database.take());
            compaction::compact(&path, Engine::open_whole, Engine::open_whole)?;
            let open = Revisions::open(Engine::open_whole(&path, CACHE_OCTETS)?)?;
            open.keep_current(self.current.load(Relaxed))?;
            Ok::<_, StoreError>(open)
        }));
        match compacted.unwrap_or_else(|_| Err(StoreError::database_panicked())) {
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
