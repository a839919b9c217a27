//! Database of the revisions of the configuration. A revision is written in pieces. The commit
//! point is one small key with the number of the current revision: after an interruption at any
//! step, a start finds either the old or the new revision.

use prost::Message;

use super::{
    MAXIMUM_VALUE_OCTETS, StoreError,
    engine::Engine,
    envelope::{Answer, Revision, StoredAnswer, Unconfirmed},
};
use crate::{model::limits::REVISIONS_KEPT, proto};

const CURRENT: &[u8] = b"current";
/// Number of answers kept for repeated requests.
const ANSWERS_KEPT: usize = 256;
const DIGEST_KEY: &[u8] = b"digest-key";
/// Key of the latest confirmed revision.
const CONFIRMED: &[u8] = b"confirmed";
const PROLONGED: &[u8] = b"prolonged";
/// Revisions whose numbers are multiples of this are stored whole, others as differences to the
/// next one. This limits the length of a chain of differences.
const WHOLE_EVERY: u64 = 16;
/// Maximum size of all revisions, bytes; the current one and that of a rollback are kept in any
/// case.
const MAXIMUM_OCTETS: usize = 64 << 20;

/// Open database of the revisions.
#[derive(Debug)]
pub(super) struct Revisions {
    engine: Engine,
    meta: sled::Tree,
    pieces: sled::Tree,
    answers: sled::Tree,
}

impl Revisions {
    /// Opens the trees of a database.
    pub(super) fn open(engine: Engine) -> Result<Self, StoreError> {
        let (meta, pieces) = (engine.tree("meta")?, engine.tree("revisions")?);
        let answers = engine.tree("answers")?;
        Ok(Self { engine, meta, pieces, answers })
    }

    /// Returns an error if the database is no longer where it was opened.
    pub(super) fn check_presence(&self) -> Result<(), StoreError> {
        self.engine.check_presence()
    }

    /// Returns the number of the current revision; 0 before the first commit.
    pub(super) fn current(&self) -> Result<u64, StoreError> {
        let stored = self.meta.get(CURRENT)?;
        stored.map_or(Ok(0), |value| number(&value).ok_or(StoreError::Damaged("revision number")))
    }

    /// Checks that all data the agent needs can be read.
    pub(super) fn check(&self, current: u64) -> Result<(), StoreError> {
        self.remove_beyond(current)?;
        if current > 0 {
            self.revision(current)?.ok_or(StoreError::Damaged("configuration"))?.open()?;
        }
        self.answers()?;
        self.unconfirmed(current)?;
        self.stored_digest_key()?;
        Ok(())
    }

    /// Keeps `current` as the current revision, whatever a failed commit has written.
    pub(super) fn keep_current(&self, current: u64) -> Result<(), StoreError> {
        if self.current()? != current {
            self.meta.insert(CURRENT, &current.to_be_bytes())?;
        }
        self.remove_beyond(current)
    }

    /// Stores the answer to a request that made no revision, to return it if the request is
    /// repeated.
    pub(super) fn remember(
        &self,
        request_id: &str,
        answered: &StoredAnswer,
    ) -> Result<(), StoreError> {
        let next = match self.answers.last()? {
            Some((key, _)) => number(&key).ok_or(StoreError::Damaged("answers"))? + 1,
            None => 1,
        };
        let answered = StoredAnswer { request_id: request_id.to_owned(), ..answered.clone() };
        let octets = Answer::from(answered).encode_to_vec();
        if octets.len() > MAXIMUM_VALUE_OCTETS {
            // An answer with many warnings is kept in memory only.
            return Ok(());
        }
        self.answers.insert(next.to_be_bytes(), octets)?;
        if self.answers.len() > ANSWERS_KEPT {
            self.answers.pop_min()?;
        }
        self.engine.flush_durably()
    }

    /// Returns the stored answers, oldest first.
    pub(super) fn answers(&self) -> Result<Vec<StoredAnswer>, StoreError> {
        let decode = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            let (_, octets) = entry?;
            let answer =
                Answer::decode(octets.as_ref()).map_err(|_| StoreError::Damaged("answers"));
            answer?.open()
        };
        self.answers.iter().map(decode).collect()
    }

    /// Returns the key for digests of secrets. If none is stored yet, stores and returns `fresh`,
    /// which must be random.
    pub(super) fn digest_key(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        if let Some(stored) = self.stored_digest_key()? {
            return Ok(stored);
        }
        self.meta.insert(DIGEST_KEY, &fresh)?;
        self.engine.flush_durably()?;
        Ok(fresh)
    }

    pub(super) fn stored_digest_key(&self) -> Result<Option<[u8; 32]>, StoreError> {
        let stored = self.meta.get(DIGEST_KEY)?;
        let key = stored.map(|stored| stored.as_ref().try_into());
        key.transpose().map_err(|_| StoreError::Damaged("digest key"))
    }

    /// Returns a revision with its whole document; `None` if it is not kept.
    pub(super) fn revision(&self, revision: u64) -> Result<Option<Revision>, StoreError> {
        let mut differences = Vec::new();
        let Some(mut found) = self.stored(revision)? else { return Ok(None) };
        while let Some(base) = found.base() {
            let is_later = base > found.number() && differences.len() < WHOLE_EVERY as usize;
            let next = if is_later { self.stored(base)? } else { None };
            let next = next.ok_or(StoreError::Damaged("configuration"))?;
            differences.push(std::mem::replace(&mut found, next));
        }
        for difference in differences.iter().rev() {
            found = difference.as_whole(&found)?;
        }
        Ok(Some(found))
    }

    /// Returns the stored form of a revision; `None` if it is not kept.
    fn stored(&self, revision: u64) -> Result<Option<Revision>, StoreError> {
        let mut octets = Vec::new();
        for piece in self.pieces.scan_prefix(revision.to_be_bytes()) {
            octets.extend_from_slice(&piece?.1);
        }
        if octets.is_empty() {
            return Ok(None);
        }
        Revision::decode(octets.as_slice())
            .map(Some)
            .map_err(|_| StoreError::Damaged("configuration"))
    }

    /// Returns the kept revisions without their documents, newest first. Unreadable revisions are
    /// left out.
    pub(super) fn revisions(&self, current: u64) -> Result<Vec<proto::Revision>, StoreError> {
        let oldest = current.saturating_sub(REVISIONS_KEPT as u64 - 1).max(1);
        let mut revisions = Vec::new();
        for number in (oldest..=current).rev() {
            match self.stored(number) {
                Ok(stored) => revisions.extend(stored.map(|stored| stored.description())),
                Err(error @ StoreError::Damaged(_)) => {
                    tracing::warn!(%error, revision = number, "stored revision cannot be read");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(revisions)
    }

    /// Returns the current revision if it is pending.
    pub(super) fn unconfirmed(
        &self,
        current: u64,
    ) -> Result<Option<(u64, Unconfirmed)>, StoreError> {
        if current == 0 || self.confirmed()? >= current {
            return Ok(None);
        }
        let unconfirmed = self.stored(current)?.and_then(|stored| stored.unconfirmed());
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

    /// Changes the time limit for confirming `revision`, which is pending. The change is durable
    /// when this returns.
    pub(super) fn prolong(
        &self,
        revision: u64,
        unconfirmed: Unconfirmed,
    ) -> Result<(), StoreError> {
        let value = [&revision.to_be_bytes()[..], &unconfirmed.encode_to_vec()].concat();
        self.set_durably(PROLONGED, &value)
    }

    pub(super) fn confirmed(&self) -> Result<u64, StoreError> {
        let value = self.meta.get(CONFIRMED)?;
        value.map_or(Ok(0), |value| number(&value).ok_or(StoreError::Damaged("confirmation")))
    }

    /// Confirms `revision`. The confirmation is durable when this returns.
    pub(super) fn confirm(&self, revision: u64) -> Result<(), StoreError> {
        self.set_durably(CONFIRMED, &revision.to_be_bytes())
    }

    /// Stores a value durably; restores the old value if that fails.
    fn set_durably(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let old = self.meta.insert(key, value)?;
        let done = self.engine.flush_durably();
        if done.is_err() {
            let _ = match old {
                Some(old) => self.meta.insert(key, old),
                None => self.meta.remove(key),
            };
            let _ = self.engine.flush();
        }
        done
    }

    /// Stores a revision without making it current. It is durable when this returns.
    pub(super) fn write(&self, revision: u64, stored: &Revision) -> Result<(), StoreError> {
        self.replace(revision, stored)?;
        self.engine.flush_durably()
    }

    fn replace(&self, revision: u64, stored: &Revision) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for key in self.pieces.scan_prefix(revision.to_be_bytes()).keys() {
            batch.remove(key?);
        }
        let octets = stored.encode_to_vec();
        for (index, piece) in octets.chunks(MAXIMUM_VALUE_OCTETS).enumerate() {
            batch.insert(&piece_key(revision, index as u32), piece);
        }
        Ok(self.pieces.apply_batch(batch)?)
    }

    /// Makes a stored revision the current one. The change is durable when this returns.
    pub(super) fn make_current(&self, revision: u64) -> Result<(), StoreError> {
        self.meta.insert(CURRENT, &revision.to_be_bytes())?;
        self.engine.flush_durably()
    }

    /// Frees space after a commit. The previous revision is replaced with a difference to the
    /// current one, and the oldest revisions beyond the limits are removed. That of the rollback
    /// stays whole. Returns true if a revision was removed.
    pub(super) fn prune(
        &self,
        revision: u64,
        current: &Revision,
        unconfirmed: Option<Unconfirmed>,
    ) -> Result<bool, StoreError> {
        let before = revision.saturating_sub(1);
        let rollback_to = unconfirmed.map_or(0, |unconfirmed| unconfirmed.rollback_to);
        if !before.is_multiple_of(WHOLE_EVERY)
            && before != rollback_to
            && let Some(whole) = self.stored(before)?.filter(|stored| stored.base().is_none())
            && let Some(difference) = whole.as_difference(current)
        {
            self.replace(before, &difference)?;
        }
        let too_old = revision.saturating_sub(REVISIONS_KEPT as u64);
        let too_large = self.last_beyond(revision, MAXIMUM_OCTETS)?;
        match too_old.max(too_large) {
            0 => Ok(false),
            last => self.remove_up_to(last, unconfirmed),
        }
    }

    /// Returns the newest revision before the current one at which the total size of it and all
    /// later ones exceeds `octets`; 0 if none does.
    fn last_beyond(&self, current: u64, octets: usize) -> Result<u64, StoreError> {
        let mut sum = 0;
        for piece in self.pieces.range(..piece_key(current + 1, 0)).rev() {
            let (key, piece) = piece?;
            sum += piece.len();
            let found =
                key.get(..8).and_then(number).ok_or(StoreError::Damaged("configuration"))?;
            if sum > octets && found < current {
                return Ok(found);
            }
        }
        Ok(0)
    }

    fn remove_up_to(
        &self,
        oldest: u64,
        unconfirmed: Option<Unconfirmed>,
    ) -> Result<bool, StoreError> {
        let mut is_removed = false;
        let kept = unconfirmed.map(|unconfirmed| unconfirmed.rollback_to.to_be_bytes());
        for piece in self.pieces.range(..piece_key(oldest + 1, 0)) {
            let key = piece?.0;
            if !kept.is_some_and(|kept| key.starts_with(&kept)) {
                self.pieces.remove(key)?;
                is_removed = true;
            }
        }
        Ok(is_removed)
    }

    /// Returns the bytes of the database on the disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.engine.disk_bytes()
    }

    /// Removes revisions that an interrupted commit has left.
    fn remove_beyond(&self, current: u64) -> Result<(), StoreError> {
        for piece in self.pieces.range(piece_key(current + 1, 0)..) {
            self.pieces.remove(piece?.0)?;
        }
        Ok(())
    }
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
