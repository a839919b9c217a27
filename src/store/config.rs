//! Revisions of the configuration. A revision is written in pieces, and one small key that names
//! the current revision is the commit point: whatever happens between two steps, a start finds the
//! revision before or the one after.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use prost::Message;

use super::{
    MAXIMUM_VALUE_OCTETS, StateDirectory, StoreError, engine::Engine, last_good::LastGood,
};
use crate::{model::limits::REVISIONS_KEPT, proto};

const CACHE_OCTETS: u64 = 4 << 20;
const CURRENT: &[u8] = b"current";
/// Answers kept for requests that come again.
const ANSWERS_KEPT: usize = 256;
const DIGEST_KEY: &[u8] = b"digest-key";
/// The latest revision that was confirmed.
const CONFIRMED: &[u8] = b"confirmed";
const PROLONGED: &[u8] = b"prolonged";

/// A revision as it is kept.
#[derive(Clone, PartialEq, Message)]
pub struct StoredRevision {
    /// Number, author, comment, digest.
    #[prost(message, optional, tag = "1")]
    pub revision: Option<proto::Revision>,
    /// The document.
    #[prost(message, optional, tag = "2")]
    pub config: Option<proto::AgentConfig>,
    /// The answer to the request that made it, for when the request comes again.
    #[prost(message, optional, tag = "3")]
    pub answer: Option<proto::ApplyConfigResponse>,
    /// Of the request that made it.
    #[prost(string, tag = "4")]
    pub request_digest: String,
    /// It is to be rolled back unless it is confirmed.
    #[prost(message, optional, tag = "5")]
    pub unconfirmed: Option<Unconfirmed>,
}

/// What becomes of a revision that is not confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Unconfirmed {
    /// When it is rolled back, nanoseconds since 1970.
    #[prost(uint64, tag = "1")]
    pub until_unix_ns: u64,
    /// The revision whose document then holds again; 0 for an empty one.
    #[prost(uint64, tag = "2")]
    pub rollback_to: u64,
    /// For how long it waits, nanoseconds; 0 where an earlier version did not say.
    #[prost(uint64, tag = "3")]
    pub timeout_ns: u64,
}

/// The answer to a request that made no revision.
#[derive(Clone, PartialEq, Message)]
pub struct StoredAnswer {
    /// Of the request.
    #[prost(string, tag = "1")]
    pub request_id: String,
    /// Of its document.
    #[prost(string, tag = "2")]
    pub digest: String,
    /// The answer.
    #[prost(message, optional, tag = "3")]
    pub answer: Option<proto::ApplyConfigResponse>,
}

/// The configuration database.
#[derive(Debug)]
pub struct ConfigStore {
    engine: Engine,
    meta: sled::Tree,
    pieces: sled::Tree,
    answers: sled::Tree,
    /// One commit at a time.
    current: Mutex<u64>,
    directory: PathBuf,
    /// What was wrong when it was opened, and where it is told no more: behind which revision.
    damage: Option<(String, AtomicU64)>,
    /// Somebody has looked after the damage.
    settled: AtomicBool,
}

impl ConfigStore {
    /// Opens the database in a state directory.
    pub fn open(directory: &StateDirectory) -> Result<Self, StoreError> {
        let path = directory.path().join("config.sled");
        // Both databases are made at the first start.
        let gone = !path.exists() && directory.path().join("results.sled").exists();
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
        if gone && store.damage.is_none() {
            let told = "the configuration database and its copy are gone, though there are results: \
                        apply the configuration again";
            store.damage = Some((told.into(), AtomicU64::new(0)));
        }
        Ok(store)
    }

    /// Opens the database as it is; one that is damaged is left alone.
    pub(super) fn open_whole(directory: &StateDirectory) -> Result<Self, StoreError> {
        let path = directory.path().join("config.sled");
        Self::with(Engine::open_whole(&path, CACHE_OCTETS)?, directory.path())
    }

    fn with(engine: Engine, directory: &Path) -> Result<Self, StoreError> {
        // Its layout is as it was.
        engine.set_schema()?;
        let (meta, pieces) = (engine.tree("meta")?, engine.tree("revisions")?);
        let answers = engine.tree("answers")?;
        let current = match meta.get(CURRENT)? {
            Some(value) => number(&value).ok_or(StoreError::Damaged("revision number"))?,
            None => 0,
        };
        let (current, directory) = (Mutex::new(current), directory.to_owned());
        let store = Self {
            engine,
            meta,
            pieces,
            answers,
            current,
            directory,
            damage: None,
            settled: AtomicBool::default(),
        };
        store.check()?;
        Ok(store)
    }

    /// Reads whatever the agent cannot do without.
    fn check(&self) -> Result<(), StoreError> {
        let current = *self.lock();
        self.remove_beyond(current)?;
        if current > 0 && self.revision(current)?.is_none() {
            return Err(StoreError::Damaged("configuration"));
        }
        self.answers()?;
        self.unconfirmed()?;
        self.stored_digest_key()?;
        Ok(())
    }

    /// Where the database has lost its revisions: goes on with the copy.
    fn take_up_copy(&mut self, aside: Option<&Path>) -> Result<(), StoreError> {
        let copy = LastGood::read(&self.directory);
        let current = *self.lock();
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
                if let (Some(waits), Some(rollback)) = (stored.unconfirmed, &copy.rollback) {
                    self.write_pieces(waits.rollback_to, rollback, Step::Prune)?;
                }
                self.commit(revision, &stored)?;
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

    /// Writes the copy, unless it is the same. That it cannot be written costs nothing yet.
    fn save_copy(&self) {
        let current = || -> Result<LastGood, StoreError> {
            let key = self.stored_digest_key()?;
            let stored = self.current()?;
            let waits = self.unconfirmed()?.filter(|(_, waits)| waits.rollback_to > 0);
            let rollback = match waits {
                Some((_, waits)) => self.revision(waits.rollback_to)?,
                None => None,
            };
            Ok(LastGood {
                stored,
                rollback,
                digest_key: key.map(Vec::from).unwrap_or_default(),
                confirmed: self.confirmed()?,
            })
        };
        match current() {
            Ok(copy) if copy.revision() == 0 => {}
            Ok(copy) if LastGood::read(&self.directory).as_ref() == Some(&copy) => {}
            Ok(copy) => {
                if let Err(error) = copy.write(&self.directory) {
                    tracing::warn!(%error, "the copy of the configuration was not written");
                }
            }
            Err(error) => tracing::warn!(%error, "the configuration was not copied"),
        }
    }

    /// What was wrong when the store was opened, as long as nothing is applied after it. Empty
    /// when all is well.
    pub fn damage(&self) -> String {
        let told = self.damage.as_ref();
        let told = told.filter(|(_, revision)| *self.lock() <= revision.load(Relaxed));
        let told = told.filter(|_| !self.settled.load(Relaxed));
        told.map(|(text, _)| text.clone()).unwrap_or_default()
    }

    /// The revision that was just made says nothing of the damage: nobody has looked after it.
    pub fn damage_stands(&self) {
        if let Some((_, revision)) = &self.damage {
            revision.store(*self.lock(), Relaxed);
        }
    }

    /// A document was applied that is the one that there is: it is right.
    pub fn settle(&self) {
        self.settled.store(true, Relaxed);
    }

    /// Remembers the answer to a request that made no revision, for when the request comes again.
    pub fn remember(&self, request_id: &str, answered: &StoredAnswer) -> Result<(), StoreError> {
        let next = match self.answers.last()? {
            Some((key, _)) => number(&key).ok_or(StoreError::Damaged("answers"))? + 1,
            None => 1,
        };
        let answered = StoredAnswer { request_id: request_id.to_owned(), ..answered.clone() };
        let octets = answered.encode_to_vec();
        if octets.len() > MAXIMUM_VALUE_OCTETS {
            // Many warnings: such an answer is remembered until the agent ends.
            return Ok(());
        }
        self.answers.insert(next.to_be_bytes(), octets)?;
        if self.answers.len() > ANSWERS_KEPT {
            self.answers.pop_min()?;
        }
        self.engine.flush_durably()
    }

    /// The remembered answers, oldest first.
    pub fn answers(&self) -> Result<Vec<StoredAnswer>, StoreError> {
        let decode = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            let (_, octets) = entry?;
            StoredAnswer::decode(octets.as_ref()).map_err(|_| StoreError::Damaged("answers"))
        };
        self.answers.iter().map(decode).collect()
    }

    /// The key of digests that stand for secrets: `fresh`, random, where there is none yet.
    pub fn digest_key(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        if let Some(stored) = self.stored_digest_key()? {
            return Ok(stored);
        }
        self.meta.insert(DIGEST_KEY, &fresh)?;
        self.engine.flush_durably()?;
        Ok(fresh)
    }

    fn stored_digest_key(&self) -> Result<Option<[u8; 32]>, StoreError> {
        let stored = self.meta.get(DIGEST_KEY)?;
        let key = stored.map(|stored| stored.as_ref().try_into());
        key.transpose().map_err(|_| StoreError::Damaged("digest key"))
    }

    /// The current revision; `None` where nothing was ever committed.
    pub fn current(&self) -> Result<Option<StoredRevision>, StoreError> {
        let current = *self.lock();
        if current == 0 { Ok(None) } else { self.revision(current) }
    }

    /// A kept revision.
    pub fn revision(&self, revision: u64) -> Result<Option<StoredRevision>, StoreError> {
        let mut octets = Vec::new();
        for piece in self.pieces.scan_prefix(revision.to_be_bytes()) {
            octets.extend_from_slice(&piece?.1);
        }
        if octets.is_empty() {
            return Ok(None);
        }
        StoredRevision::decode(octets.as_slice())
            .map(Some)
            .map_err(|_| StoreError::Damaged("configuration"))
    }

    /// The kept revisions without their documents, newest first. One that does not read back is
    /// left out.
    pub fn revisions(&self) -> Result<Vec<proto::Revision>, StoreError> {
        let current = *self.lock();
        let oldest = current.saturating_sub(REVISIONS_KEPT as u64 - 1).max(1);
        let mut revisions = Vec::new();
        for number in (oldest..=current).rev() {
            match self.revision(number) {
                Ok(stored) => revisions.extend(stored.and_then(|stored| stored.revision)),
                Err(error @ StoreError::Damaged(_)) => tracing::warn!(%error, number),
                Err(error) => return Err(error),
            }
        }
        Ok(revisions)
    }

    /// The current revision, where it waits to be confirmed.
    pub fn unconfirmed(&self) -> Result<Option<(u64, Unconfirmed)>, StoreError> {
        let current = *self.lock();
        if current == 0 || self.confirmed()? >= current {
            return Ok(None);
        }
        let unconfirmed = self.revision(current)?.and_then(|stored| stored.unconfirmed);
        let Some(unconfirmed) = unconfirmed else { return Ok(None) };
        Ok(Some((current, self.prolonged(current)?.unwrap_or(unconfirmed))))
    }

    fn prolonged(&self, current: u64) -> Result<Option<Unconfirmed>, StoreError> {
        let Some(value) = self.meta.get(PROLONGED)? else { return Ok(None) };
        let damaged = StoreError::Damaged("confirmation");
        let (revision, message) = value.split_at_checked(8).ok_or(damaged)?;
        let of_current = number(revision) == Some(current);
        let unconfirmed = Unconfirmed::decode(message);
        let unconfirmed = unconfirmed.map_err(|_| StoreError::Damaged("confirmation"))?;
        Ok(of_current.then_some(unconfirmed))
    }

    /// The current revision, which is `revision` and waits to be confirmed, waits for another time.
    /// That is on the disk when this returns.
    pub fn prolong(&self, revision: u64, unconfirmed: Unconfirmed) -> Result<(), StoreError> {
        let value = [&revision.to_be_bytes()[..], &unconfirmed.encode_to_vec()].concat();
        self.meta.insert(PROLONGED, value)?;
        self.engine.flush_durably()
    }

    fn confirmed(&self) -> Result<u64, StoreError> {
        let value = self.meta.get(CONFIRMED)?;
        value.map_or(Ok(0), |value| number(&value).ok_or(StoreError::Damaged("confirmation")))
    }

    /// The current revision, which is `revision`, stays. That is on the disk when this returns.
    pub fn confirm(&self, revision: u64) -> Result<(), StoreError> {
        self.meta.insert(CONFIRMED, &revision.to_be_bytes())?;
        self.engine.flush_durably()?;
        self.save_copy();
        Ok(())
    }

    /// Makes `stored` the current revision. It is on the disk when this returns.
    pub fn commit(&self, revision: u64, stored: &StoredRevision) -> Result<(), StoreError> {
        self.commit_until(revision, stored, Step::Prune)
    }

    fn commit_until(
        &self,
        revision: u64,
        stored: &StoredRevision,
        last: Step,
    ) -> Result<(), StoreError> {
        let mut current = self.lock();
        super::check_room(self.engine.path())?;
        let result = (|| {
            self.write_pieces(revision, stored, last)?;
            if last == Step::HalfWritten {
                return Ok(());
            }
            self.engine.flush_durably()?;
            if last == Step::Written {
                return Ok(());
            }
            self.meta.insert(CURRENT, &revision.to_be_bytes())?;
            self.engine.flush_durably()
        })();
        if let Err(error) = result {
            // The disk may or may not name the new revision now; make it the old one again.
            let _ = self.meta.insert(CURRENT, &current.to_be_bytes());
            let _ = self.remove_beyond(*current);
            return Err(error);
        }
        if last < Step::Named {
            return Ok(());
        }
        *current = revision;
        drop(current);
        if last == Step::Prune
            && let Some(old) = revision.checked_sub(REVISIONS_KEPT as u64)
            && let Err(error) = self.remove_up_to(old, stored.unconfirmed)
        {
            // The commit stands; what is left over goes with the next one.
            tracing::warn!(%error, old, "cannot remove an old revision");
        }
        if last == Step::Prune {
            self.save_copy();
        }
        Ok(())
    }

    fn write_pieces(
        &self,
        revision: u64,
        stored: &StoredRevision,
        last: Step,
    ) -> Result<(), StoreError> {
        let octets = stored.encode_to_vec();
        for (index, piece) in octets.chunks(MAXIMUM_VALUE_OCTETS).enumerate() {
            self.pieces.insert(piece_key(revision, index as u32), piece)?;
            if last == Step::HalfWritten {
                break;
            }
        }
        Ok(())
    }

    /// Removes old revisions, but for the one that may be gone back to.
    fn remove_up_to(
        &self,
        oldest: u64,
        unconfirmed: Option<Unconfirmed>,
    ) -> Result<(), StoreError> {
        let kept = unconfirmed.map(|unconfirmed| unconfirmed.rollback_to.to_be_bytes());
        for piece in self.pieces.range(..piece_key(oldest + 1, 0)) {
            let key = piece?.0;
            if !kept.is_some_and(|kept| key.starts_with(&kept)) {
                self.pieces.remove(key)?;
            }
        }
        Ok(())
    }

    /// Removes what a commit left that did not come to its end.
    fn remove_beyond(&self, current: u64) -> Result<(), StoreError> {
        for piece in self.pieces.range(piece_key(current + 1, 0)..) {
            self.pieces.remove(piece?.0)?;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Steps of a commit, in order; a test ends a commit behind each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(test), allow(dead_code))]
enum Step {
    HalfWritten,
    Written,
    Named,
    Prune,
}

fn piece_key(revision: u64, index: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&revision.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

fn number(value: &[u8]) -> Option<u64> {
    value.try_into().map(u64::from_be_bytes).ok()
}

#[cfg(test)]
mod tests;
