//! The newest cursor, in a file of its own: a database that was damaged does not show what it lost, and
//! one that took nothing more does not hold the records that readers saw meanwhile. A cursor must not
//! name two records.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::libc::O_NOFOLLOW;
use sha2::{Digest, Sha256};

use crate::document::hexadecimal;

const NAME: &str = "results.last";
/// Octets of three numbers and their checksum.
const OCTETS: usize = 3 * 8 + 32;
/// Flag of a cursor up to which records are reported that are not stored.
const NOT_STORED: u64 = 1 << 63;
/// Records at most that are reported without being stored, until they are stored again or the agent
/// ends.
pub(super) const MAXIMUM_UNSTORED: u64 = 1 << 39;
/// Places in memory, which last until the host goes down, for a disk of the state that takes nothing at
/// all. After a crash of the host cursors jump in any case.
const ELSEWHERE: [&str; 2] = ["/run", "/dev/shm"];

/// The newest cursor in its file, and in memory where the disk takes nothing.
#[derive(Debug)]
pub(super) struct CursorReservation {
    path: PathBuf,
    /// Written in place: a full disk takes that.
    file: Option<File>,
    written: Written,
    elsewhere: Vec<PathBuf>,
}

/// Content of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Written {
    /// The newest cursor, with [`NOT_STORED`].
    cursor: u64,
    /// The disk had written all records up to this one.
    durable: u64,
    /// The disk had written the state database with this number.
    state_sequence: u64,
}

/// Cursors that readers may have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reserved {
    /// None is beyond this one; 0 where that is not known.
    pub(super) up_to: u64,
    /// None up to this one is lost with the power of the host.
    pub(super) durable: u64,
    /// Records of some were never stored, and not because of damage.
    pub(super) has_unstored: bool,
    /// The state database had this number at least.
    pub(super) state_sequence: u64,
}

impl CursorReservation {
    /// Opens the file in a state directory.
    pub(super) fn new(directory: &Path) -> Self {
        let whole = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let sum = Sha256::digest(whole.as_os_str().as_encoded_bytes());
        let name = hexadecimal(&sum[..12]);
        let elsewhere = ELSEWHERE.map(|place| Path::new(place).join(format!("twamp-agent-{name}")));
        let written = Written::default();
        Self { path: directory.join(NAME), file: None, written, elsewhere: elsewhere.to_vec() }
    }

    /// Reads the newest content that can be believed.
    pub(super) fn read(&self) -> Reserved {
        let here = fs::read(&self.path).ok().and_then(|octets| parse(&octets));
        let noted = self.elsewhere.iter().filter_map(|path| own_note(path));
        noted.chain(here).fold(Reserved::default(), |reserved, written| {
            let Written { cursor, durable, state_sequence } = written;
            let state_sequence = state_sequence.max(reserved.state_sequence);
            let up_to = cursor & !NOT_STORED;
            if up_to <= reserved.up_to {
                return Reserved { state_sequence, ..reserved };
            }
            Reserved { up_to, durable, has_unstored: cursor & NOT_STORED != 0, state_sequence }
        })
    }

    /// Writes a cursor, unless it is the same: the record of it and all before it are stored. With the
    /// number of the state database the disk has written them, and that.
    pub(super) fn write(&mut self, cursor: u64, durable_state: Option<u64>) -> io::Result<()> {
        // The first may follow a run that left notes.
        let noted = self.file.is_none() || self.written.cursor & NOT_STORED != 0;
        let written = match (durable_state, &self.file) {
            (Some(state_sequence), _) => Written { cursor, durable: cursor, state_sequence },
            (None, Some(_)) => Written { cursor, ..self.written },
            (None, None) => {
                let Reserved { durable, state_sequence, .. } = self.read();
                Written { cursor, durable, state_sequence }
            }
        };
        self.put(written)?;
        if noted {
            self.elsewhere.iter().for_each(|path| drop(fs::remove_file(path)));
        }
        Ok(())
    }

    /// Reserves cursors after this one for records that are reported and not stored.
    pub(super) fn reserve_unstored(&mut self, newest: u64) -> io::Result<()> {
        let cursor = newest.saturating_add(MAXIMUM_UNSTORED) | NOT_STORED;
        let written = Written { cursor, ..self.written };
        let Err(error) = self.put(written) else { return Ok(()) };
        let noted = self.elsewhere.iter().filter(|path| note(path, written).is_ok()).count();
        self.written = written;
        if noted > 0 { Ok(()) } else { Err(error) }
    }

    fn put(&mut self, written: Written) -> io::Result<()> {
        if written == self.written {
            return Ok(());
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.create(true).truncate(false).write(true).mode(0o600).open(&self.path)?
            }
        };
        file.write_all_at(&octets(written), 0)?;
        self.file = Some(file);
        self.written = written;
        Ok(())
    }
}

fn octets(Written { cursor, durable, state_sequence }: Written) -> [u8; OCTETS] {
    let mut octets = [0; OCTETS];
    let (numbers, sum) = octets.split_at_mut(3 * 8);
    for (place, number) in numbers.chunks_exact_mut(8).zip([cursor, durable, state_sequence]) {
        place.copy_from_slice(&number.to_be_bytes());
    }
    sum.copy_from_slice(&Sha256::digest(&*numbers));
    octets
}

fn parse(octets: &[u8]) -> Option<Written> {
    let (cursors, sum) = octets.split_at_checked(octets.len().checked_sub(32)?)?;
    if Sha256::digest(cursors).as_slice() != sum {
        return None;
    }
    match cursors.as_chunks::<8>() {
        ([cursor, durable, state_sequence], []) => Some(Written {
            cursor: u64::from_be_bytes(*cursor),
            durable: u64::from_be_bytes(*durable),
            state_sequence: u64::from_be_bytes(*state_sequence),
        }),
        _ => None,
    }
}

/// Writes a note: into a file of our own, and never through a link.
fn note(path: &Path, written: Written) -> io::Result<()> {
    drop(fs::remove_file(path));
    let mut options = OpenOptions::new();
    let file = options.create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all_at(&octets(written), 0)
}

fn own_note(path: &Path) -> Option<Written> {
    let mut file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path).ok()?;
    if file.metadata().ok()?.uid() != nix::unistd::geteuid().as_raw() {
        return None;
    }
    let mut octets = Vec::with_capacity(OCTETS);
    Read::by_ref(&mut file).take(OCTETS as u64).read_to_end(&mut octets).ok()?;
    parse(&octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_whole_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let mut mark = CursorReservation::new(directory.path());
        assert_eq!(mark.read(), Reserved::default());
        mark.write(66, Some(3)).unwrap();
        mark.write(77, None).unwrap();
        let stored = Reserved { up_to: 77, durable: 66, has_unstored: false, state_sequence: 3 };
        assert_eq!(CursorReservation::new(directory.path()).read(), stored);
        // Another process goes on from there.
        mark = CursorReservation::new(directory.path());
        mark.write(78, None).unwrap();
        assert_eq!(mark.read(), Reserved { up_to: 78, ..stored });
        mark.write(79, Some(4)).unwrap();
        assert_eq!(
            mark.read(),
            Reserved { up_to: 79, durable: 79, has_unstored: false, state_sequence: 4 }
        );
        let octets = fs::read(&mark.path).unwrap();
        for bit in 0..octets.len() * 8 {
            let mut flipped = octets.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&mark.path, flipped).unwrap();
            assert_eq!(mark.read(), Reserved::default(), "bit {bit}");
        }
        fs::write(&mark.path, &octets[..11]).unwrap();
        assert_eq!(mark.read(), Reserved::default());
    }

    #[test]
    fn what_is_told_and_not_stored_is_known_also_where_the_disk_takes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (state, shm) = (directory.path().join("state"), directory.path().join("shm"));
        fs::create_dir_all(&state).unwrap();
        let mark =
            || CursorReservation { elsewhere: vec![shm.clone()], ..CursorReservation::new(&state) };
        let mut one = mark();
        one.write(5, Some(1)).unwrap();
        one.reserve_unstored(9).unwrap();
        let reserved = Reserved {
            up_to: 9 + MAXIMUM_UNSTORED,
            durable: 5,
            has_unstored: true,
            state_sequence: 1,
        };
        assert_eq!(mark().read(), reserved);
        one.write(12, Some(2)).unwrap();
        assert_eq!(
            mark().read(),
            Reserved { up_to: 12, durable: 12, has_unstored: false, state_sequence: 2 }
        );

        // No such directory any more: as on a disk that is read-only.
        fs::rename(&state, directory.path().join("away")).unwrap();
        let mut other = mark();
        other.reserve_unstored(20).unwrap();
        fs::rename(directory.path().join("away"), &state).unwrap();
        let reserved = mark().read();
        assert_eq!((reserved.up_to, reserved.has_unstored), (20 + MAXIMUM_UNSTORED, true));
        mark().write(30, Some(3)).unwrap();
        let reserved = Reserved { up_to: 30, durable: 30, has_unstored: false, state_sequence: 3 };
        assert_eq!((mark().read(), shm.exists()), (reserved, false));
        // A link to another file is no note of ours.
        std::os::unix::fs::symlink(&mark().path, &shm).unwrap();
        assert_eq!(own_note(&shm), None);
    }
}
