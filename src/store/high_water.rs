//! The newest cursor, in a file of its own: a database that was damaged does not say what it lost, and
//! one that took nothing more does not know what was told meanwhile. A cursor must not name two
//! records.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::libc::O_NOFOLLOW;
use sha2::{Digest, Sha256};

use crate::document::hexadecimal;

const NAME: &str = "results.last";
const OCTETS: usize = 40;
/// Set where records are told that are not stored.
const NOT_STORED: u64 = 1 << 63;
/// So many records may be told until they are stored again, or the agent ends.
const TOLD_AT_MOST: u64 = 1 << 39;
/// In memory as long as the host is up, for when the disk of the state takes nothing at all. After a
/// crash of the host cursors jump in any case.
const ELSEWHERE: [&str; 2] = ["/run", "/dev/shm"];

/// Where it is kept.
#[derive(Debug)]
pub(super) struct HighWater {
    path: PathBuf,
    /// Written in place: that needs no room on a disk that is full.
    file: Option<File>,
    written: u64,
    elsewhere: Vec<PathBuf>,
}

/// What is known of the cursors that were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// None was beyond this; 0 where that is not known.
    pub(super) up_to: u64,
    /// Some of them were never stored, and not because of damage.
    pub(super) not_stored: bool,
}

impl HighWater {
    /// In a state directory.
    pub(super) fn new(directory: &Path) -> Self {
        let whole = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let sum = Sha256::digest(whole.as_os_str().as_encoded_bytes());
        let name = hexadecimal(&sum[..12]);
        let elsewhere = ELSEWHERE.map(|place| Path::new(place).join(format!("twamp-agent-{name}")));
        Self { path: directory.join(NAME), file: None, written: 0, elsewhere: elsewhere.to_vec() }
    }

    /// What was written last, and can be believed.
    pub(super) fn read(&self) -> Told {
        let here = fs::read(&self.path).ok().and_then(|octets| cursor(&octets));
        let noted = self.elsewhere.iter().filter_map(|path| own_note(path));
        noted.chain(here).fold(Told::default(), |told, written| {
            let up_to = written & !NOT_STORED;
            if up_to <= told.up_to {
                return told;
            }
            Told { up_to, not_stored: written & NOT_STORED != 0 }
        })
    }

    /// Writes a cursor, unless it is the same: it is stored, and all before it.
    pub(super) fn write(&mut self, cursor: u64) -> io::Result<()> {
        // The first may follow a run that left notes.
        let noted = self.file.is_none() || self.written & NOT_STORED != 0;
        self.put(cursor)?;
        if noted {
            self.elsewhere.iter().for_each(|path| drop(fs::remove_file(path)));
        }
        Ok(())
    }

    /// From now on records behind this cursor are told that are not stored.
    pub(super) fn tell_more(&mut self, newest: u64) -> io::Result<()> {
        let written = newest.saturating_add(TOLD_AT_MOST) | NOT_STORED;
        let Err(error) = self.put(written) else { return Ok(()) };
        let noted = self.elsewhere.iter().filter(|path| note(path, written).is_ok()).count();
        self.written = written;
        if noted > 0 { Ok(()) } else { Err(error) }
    }

    fn put(&mut self, cursor: u64) -> io::Result<()> {
        if cursor == self.written {
            return Ok(());
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.create(true).truncate(false).write(true).mode(0o600).open(&self.path)?
            }
        };
        file.write_all_at(&octets(cursor), 0)?;
        self.file = Some(file);
        self.written = cursor;
        Ok(())
    }
}

fn octets(cursor: u64) -> [u8; OCTETS] {
    let cursor = cursor.to_be_bytes();
    let mut octets = [0; OCTETS];
    octets[..8].copy_from_slice(&cursor);
    octets[8..].copy_from_slice(&Sha256::digest(cursor));
    octets
}

fn cursor(octets: &[u8]) -> Option<u64> {
    let (cursor, sum) = octets.split_first_chunk()?;
    (Sha256::digest(cursor).as_slice() == sum).then(|| u64::from_be_bytes(*cursor))
}

/// Nobody else's file, and no way to one.
fn note(path: &Path, cursor: u64) -> io::Result<()> {
    drop(fs::remove_file(path));
    let mut options = OpenOptions::new();
    let file = options.create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all_at(&octets(cursor), 0)
}

fn own_note(path: &Path) -> Option<u64> {
    let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path).ok()?;
    if file.metadata().ok()?.uid() != nix::unistd::geteuid().as_raw() {
        return None;
    }
    let mut octets = [0; OCTETS];
    file.read_exact_at(&mut octets, 0).ok()?;
    cursor(&octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_whole_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let mut mark = HighWater::new(directory.path());
        assert_eq!(mark.read(), Told::default());
        mark.write(77).unwrap();
        let stored = Told { up_to: 77, not_stored: false };
        assert_eq!(HighWater::new(directory.path()).read(), stored);
        let octets = fs::read(&mark.path).unwrap();
        for bit in 0..octets.len() * 8 {
            let mut flipped = octets.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&mark.path, flipped).unwrap();
            assert_eq!(mark.read(), Told::default(), "bit {bit}");
        }
        fs::write(&mark.path, &octets[..11]).unwrap();
        assert_eq!(mark.read(), Told::default());
    }

    #[test]
    fn what_is_told_and_not_stored_is_known_also_where_the_disk_takes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (state, shm) = (directory.path().join("state"), directory.path().join("shm"));
        fs::create_dir_all(&state).unwrap();
        let mark = || HighWater { elsewhere: vec![shm.clone()], ..HighWater::new(&state) };
        let mut one = mark();
        one.write(5).unwrap();
        one.tell_more(9).unwrap();
        let told = Told { up_to: 9 + TOLD_AT_MOST, not_stored: true };
        assert_eq!(mark().read(), told);
        one.write(12).unwrap();
        assert_eq!(mark().read(), Told { up_to: 12, not_stored: false });

        // No such directory any more: as on a disk that is read-only.
        fs::rename(&state, directory.path().join("away")).unwrap();
        let mut other = mark();
        other.tell_more(20).unwrap();
        fs::rename(directory.path().join("away"), &state).unwrap();
        assert_eq!(mark().read(), Told { up_to: 20 + TOLD_AT_MOST, not_stored: true });
        mark().write(30).unwrap();
        assert_eq!((mark().read(), shm.exists()), (Told { up_to: 30, not_stored: false }, false));
        // What is no note of ours, or a way to another file.
        std::os::unix::fs::symlink(&mark().path, &shm).unwrap();
        assert_eq!(own_note(&shm), None);
    }
}
