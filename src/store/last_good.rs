//! Copy of the current revision in a separate file, to recover from a damaged database. It is
//! replaced atomically after each commit.

use std::{fs, io, path::Path};

use prost::Message;
use sha2::{Digest, Sha256};

use super::{disk, envelope::Revision};

/// Name of the file.
pub(super) const NAME: &str = "config.last";
const MAGIC: &[u8] = b"twamp-agent configuration 1\n";
const SUM_OCTETS: usize = 32;

/// State of the configuration that is sufficient for a start.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LastGood {
    #[prost(message, optional, tag = "1")]
    pub(super) stored: Option<Revision>,
    /// Key for digests of secrets.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) digest_key: Vec<u8>,
    /// The latest revision that was confirmed.
    #[prost(uint64, tag = "3")]
    pub(super) confirmed: u64,
    /// Revision of the rollback if `stored` is pending.
    #[prost(message, optional, tag = "4")]
    pub(super) rollback: Option<Revision>,
}

impl LastGood {
    /// Returns the number of the revision; 0 without a revision.
    pub(super) fn revision(&self) -> u64 {
        self.stored.as_ref().map_or(0, Revision::number)
    }

    /// Reads the copy in a state directory; `None` if it is missing or damaged.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        let octets = fs::read(directory.join(NAME)).ok()?;
        let (sum, message) = octets.strip_prefix(MAGIC)?.split_at_checked(SUM_OCTETS)?;
        (Sha256::digest(message).as_slice() == sum).then(|| Self::decode(message).ok())?
    }

    /// Returns true for a copy that exists and cannot be read.
    pub(super) fn is_damaged(directory: &Path) -> bool {
        directory.join(NAME).symlink_metadata().is_ok() && Self::read(directory).is_none()
    }

    /// Writes the copy. It is durable when this returns.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let message = self.encode_to_vec();
        let sum = Sha256::digest(&message);
        disk::replace(&directory.join(NAME), &[MAGIC, sum.as_slice(), &message])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_copy_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(LastGood::read(directory.path()), None);
        let copy = LastGood { digest_key: vec![7; 32], confirmed: 5, ..LastGood::default() };
        copy.write(directory.path()).unwrap();
        assert_eq!(LastGood::read(directory.path()).as_ref(), Some(&copy));
        let path = directory.path().join(NAME);
        let octets = fs::read(&path).unwrap();
        for bit in 0..octets.len() * 8 {
            let mut flipped = octets.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).unwrap();
            assert_eq!(LastGood::read(directory.path()), None, "bit {bit}");
        }
        for length in 0..octets.len() {
            fs::write(&path, &octets[..length]).unwrap();
            assert_eq!(LastGood::read(directory.path()), None, "{length} octets");
        }
        copy.write(directory.path()).unwrap();
        assert_eq!(LastGood::read(directory.path()), Some(copy));
    }
}
