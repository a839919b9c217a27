//! The newest cursor, in a file of its own: a database that was damaged does not say what it lost,
//! and a cursor must not name two records.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

const NAME: &str = "results.last";

/// Where it is kept.
#[derive(Clone, Debug)]
pub(super) struct HighWater {
    path: PathBuf,
    written: u64,
}

impl HighWater {
    /// In a state directory.
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join(NAME), written: 0 }
    }

    /// The cursor that was written; 0 where there is none that can be believed.
    pub(super) fn read(&self) -> u64 {
        let octets = fs::read(&self.path).ok();
        let cursor = octets.and_then(|octets| {
            let (cursor, sum) = octets.split_at_checked(8)?;
            let good = Sha256::digest(cursor).as_slice() == sum;
            good.then(|| cursor.try_into().map(u64::from_be_bytes).ok())?
        });
        cursor.unwrap_or(0)
    }

    /// Writes a cursor, unless it is the same.
    pub(super) fn write(&mut self, cursor: u64) -> io::Result<()> {
        if cursor == self.written {
            return Ok(());
        }
        let cursor_octets = cursor.to_be_bytes();
        let octets = [cursor_octets.as_slice(), &Sha256::digest(cursor_octets)].concat();
        let new = self.path.with_extension("last.new");
        fs::write(&new, octets)?;
        fs::rename(&new, &self.path)?;
        self.written = cursor;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_whole_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let mut mark = HighWater::new(directory.path());
        assert_eq!(mark.read(), 0);
        mark.write(77).unwrap();
        assert_eq!(HighWater::new(directory.path()).read(), 77);
        let octets = fs::read(&mark.path).unwrap();
        for bit in 0..octets.len() * 8 {
            let mut flipped = octets.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&mark.path, flipped).unwrap();
            assert_eq!(mark.read(), 0, "bit {bit}");
        }
        fs::write(&mark.path, &octets[..11]).unwrap();
        assert_eq!(mark.read(), 0);
    }
}
