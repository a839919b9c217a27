//! File with the newest cursor, so that a cursor never identifies two records. The databases alone
//! do not show it: a damaged database may have lost its latest records, and a database that fails
//! does not contain the records that readers see meanwhile.

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
/// Length of three numbers and their checksum, bytes.
const OCTETS: usize = 3 * 8 + 32;
/// Flag of a reserved cursor: records up to it may be reported without being stored.
const NOT_STORED: u64 = 1 << 63;
/// Maximum number of records that are reported without being stored, until the store works again or
/// the agent ends.
pub(super) const MAXIMUM_UNSTORED: u64 = 1 << 39;
/// Directories in memory for the reservation if the disk of the state directory rejects writes.
/// They last until the host stops; after that cursors are skipped in any case.
const MEMORY_DIRECTORIES: [&str; 2] = ["/run", "/dev/shm"];

/// Reservation of cursors, in a file or, if the disk rejects writes, in memory.
#[derive(Debug)]
pub(super) struct CursorReservation {
    path: PathBuf,
    /// Written in place, which succeeds also on a full disk.
    file: Option<File>,
    written: Written,
    memory_paths: Vec<PathBuf>,
}

/// Content of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Written {
    /// The newest cursor, possibly with [`NOT_STORED`].
    cursor: u64,
    /// Cursor up to which all records were durable.
    durable: u64,
    /// Sequence number of the last durable state of the state database.
    state_sequence: u64,
}

/// Cursors that readers may have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reserved {
    /// Upper bound of the cursors; 0 if unknown.
    pub(super) up_to: u64,
    /// Cursor up to which records survive a loss of power.
    pub(super) durable: u64,
    /// True if some records were never stored because the store had failed.
    pub(super) has_unstored: bool,
    /// Minimum sequence number of the state database.
    pub(super) state_sequence: u64,
}

impl CursorReservation {
    /// Opens the file in a state directory.
    pub(super) fn new(directory: &Path) -> Self {
        let whole = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let sum = Sha256::digest(whole.as_os_str().as_encoded_bytes());
        let name = hexadecimal(&sum[..12]);
        let memory_paths = MEMORY_DIRECTORIES
            .map(|directory| Path::new(directory).join(format!("twamp-agent-{name}")));
        let written = Written::default();
        Self {
            path: directory.join(NAME),
            file: None,
            written,
            memory_paths: memory_paths.to_vec(),
        }
    }

    /// Reads the newest valid reservation.
    pub(super) fn read(&self) -> Reserved {
        let here = fs::read(&self.path).ok().and_then(|octets| parse(&octets));
        let noted = self.memory_paths.iter().filter_map(|path| own_note(path));
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

    /// Writes a cursor up to which all records are stored. `durable_state` is the sequence number
    /// of the state database if the records and that state are durable.
    pub(super) fn write(&mut self, cursor: u64, durable_state: Option<u64>) -> io::Result<()> {
        // Before the first write there may be notes of an earlier run.
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
            self.memory_paths.iter().for_each(|path| drop(fs::remove_file(path)));
        }
        Ok(())
    }

    /// Reserves cursors after `newest` for records that are reported without being stored.
    pub(super) fn reserve_unstored(&mut self, newest: u64) -> io::Result<()> {
        let cursor = newest.saturating_add(MAXIMUM_UNSTORED) | NOT_STORED;
        let written = Written { cursor, ..self.written };
        let Err(error) = self.put(written) else { return Ok(()) };
        let noted = self.memory_paths.iter().filter(|path| note(path, written).is_ok()).count();
        self.written = written;
        if noted > 0 { Ok(()) } else { Err(error) }
    }

    /// Writes the file again if it was deleted, replaced or truncated.
    pub(super) fn mend(&mut self) {
        let Some(file) = &self.file else { return };
        let identity = |found: fs::Metadata| (found.dev(), found.ino(), found.len());
        let (open, found) = (file.metadata().map(identity), fs::metadata(&self.path).map(identity));
        if matches!((open, found), (Ok(open), Ok(found)) if open == found && open.2 > 0) {
            return;
        }
        self.file = None;
        let written = std::mem::take(&mut self.written);
        let error = self.put(written).err().map(tracing::field::display);
        tracing::warn!(file = NAME, error, "newest cursor was deleted or changed, written again");
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

/// Returns true for a file that exists and cannot be read.
pub(super) fn is_damaged(directory: &Path) -> bool {
    fs::read(directory.join(NAME)).is_ok_and(|octets| parse(&octets).is_none())
}

fn octets(Written { cursor, durable, state_sequence }: Written) -> [u8; OCTETS] {
    let mut octets = [0; OCTETS];
    let (numbers, sum) = octets.split_at_mut(3 * 8);
    for (field, number) in numbers.chunks_exact_mut(8).zip([cursor, durable, state_sequence]) {
        field.copy_from_slice(&number.to_be_bytes());
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

/// Writes a note into a new file, never through a link of another user.
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
    fn a_damaged_reservation_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let mut mark = CursorReservation::new(directory.path());
        assert_eq!(mark.read(), Reserved::default());
        mark.write(66, Some(3)).unwrap();
        mark.write(77, None).unwrap();
        let stored = Reserved { up_to: 77, durable: 66, has_unstored: false, state_sequence: 3 };
        assert_eq!(CursorReservation::new(directory.path()).read(), stored);
        // Another process continues after the stored cursor.
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
    fn unstored_cursors_are_reserved_in_memory_if_the_disk_rejects_writes() {
        let directory = tempfile::tempdir().unwrap();
        let (state, shm) = (directory.path().join("state"), directory.path().join("shm"));
        fs::create_dir_all(&state).unwrap();
        let mark = || CursorReservation {
            memory_paths: vec![shm.clone()],
            ..CursorReservation::new(&state)
        };
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

        // A missing directory has the effect of a read-only disk.
        fs::rename(&state, directory.path().join("away")).unwrap();
        let mut other = mark();
        other.reserve_unstored(20).unwrap();
        fs::rename(directory.path().join("away"), &state).unwrap();
        let reserved = mark().read();
        assert_eq!((reserved.up_to, reserved.has_unstored), (20 + MAXIMUM_UNSTORED, true));
        mark().write(30, Some(3)).unwrap();
        let reserved = Reserved { up_to: 30, durable: 30, has_unstored: false, state_sequence: 3 };
        assert_eq!((mark().read(), shm.exists()), (reserved, false));
        // A link to another file is ignored.
        std::os::unix::fs::symlink(&mark().path, &shm).unwrap();
        assert_eq!(own_note(&shm), None);
    }
}
