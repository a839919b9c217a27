//! A second copy of the current revision, in a file of its own: what a damaged database would take
//! with it is found there. Written after each commit, by a new file in the place of the old one.

use std::{fs, io, path::Path};

use prost::Message;
use sha2::{Digest, Sha256};

use super::{disk, envelope::Revision};

/// Name of the file.
pub(super) const NAME: &str = "config.last";
const MAGIC: &[u8] = b"twamp-agent configuration 1\n";
const SUM_OCTETS: usize = 32;

/// State of the configuration that a start can go on with.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LastGood {
    #[prost(message, optional, tag = "1")]
    pub(super) stored: Option<Revision>,
    /// Key of the digests that stand for secrets.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) digest_key: Vec<u8>,
    /// The latest revision that was confirmed.
    #[prost(uint64, tag = "3")]
    pub(super) confirmed: u64,
    /// Document of the rollback, where `stored` is not confirmed.
    #[prost(message, optional, tag = "4")]
    pub(super) rollback: Option<Revision>,
}

impl LastGood {
    /// Number of the revision; 0 for none.
    pub(super) fn revision(&self) -> u64 {
        self.stored.as_ref().map_or(0, Revision::number)
    }

    /// The copy in a state directory; `None` where there is none that can be believed.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        let octets = fs::read(directory.join(NAME)).ok()?;
        let (sum, message) = octets.strip_prefix(MAGIC)?.split_at_checked(SUM_OCTETS)?;
        (Sha256::digest(message).as_slice() == sum).then(|| Self::decode(message).ok())?
    }

    /// Returns true for a copy that is there and cannot be believed.
    pub(super) fn is_damaged(directory: &Path) -> bool {
        directory.join(NAME).symlink_metadata().is_ok() && Self::read(directory).is_none()
    }

    /// Makes this the copy. It is on the disk when this returns.
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
    fn only_what_is_whole_is_believed() {
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
