//! Files of the state directory that are still where the agent opened them. What is written to a
//! file that was deleted is lost when the agent ends, and no write reports it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use super::StoreError;

/// Identity and length of a file that is replaced as a whole: another one shows that somebody else
/// touched the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    device: u64,
    inode: u64,
    len: u64,
}

impl Mark {
    /// Returns the mark of the file at a path; `None` if there is none.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let found = fs::symlink_metadata(path).ok()?;
        Some(Self { device: found.dev(), inode: found.ino(), len: found.len() })
    }
}

/// Writes a copy again if its mark has changed. `mark` is `None` after a failed attempt.
pub(super) fn mend(path: &Path, mark: &mut Option<Mark>, write: impl FnOnce() -> io::Result<()>) {
    let found = Mark::read(path);
    if found.is_some() && found == *mark {
        return;
    }
    let is_news = mark.take().is_some();
    match write() {
        Ok(()) => {
            *mark = Mark::read(path);
            tracing::warn!(file = %path.display(), "copy was deleted or changed, written again");
        }
        Err(error) if is_news => {
            tracing::warn!(%error, file = %path.display(), "failed to write a copy again, retrying");
        }
        Err(_) => {}
    }
}

/// Size of a segment of sled, which writes its file in segments and releases whole ones at its end. The
/// first one stays, so that the file never becomes shorter than that.
const SEGMENT_BYTES: u64 = 512 << 10;
/// Length of the header of a segment, which is never zero.
const HEADER_BYTES: usize = 16;

/// Length of the data file of a database as far as this agent wrote it.
#[derive(Debug, Default)]
pub(super) struct WrittenLen {
    longest: AtomicU64,
    has_header: AtomicBool,
}

impl WrittenLen {
    /// Returns true if somebody truncated the file. What is written to it afterwards leaves a hole in
    /// place of the first header.
    pub(super) fn is_truncated(&self, file: &File) -> bool {
        // Read before the file, which another thread may extend meanwhile.
        let (longest, had_header) = (self.longest.load(Relaxed), self.has_header.load(Relaxed));
        let Ok(len) = file.metadata().map(|found| found.len()) else { return false };
        let mut header = [0; HEADER_BYTES];
        let has_header = file.read_exact_at(&mut header, 0).is_ok() && header != [0; HEADER_BYTES];
        self.has_header.fetch_or(has_header, Relaxed);
        let is_cut = len < longest.min(SEGMENT_BYTES);
        if is_cut || (had_header && !has_header) {
            return true;
        }
        self.longest.store(len, Relaxed);
        false
    }
}

/// Place of an open file and its identity. Whoever has the file open keeps the kernel from giving
/// its inode to another one.
#[derive(Clone, Debug)]
pub(super) struct Presence {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Presence {
    /// Notes an open file and its path.
    pub(super) fn new(path: &Path, file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }

    /// Returns the error for a file that is not what it was.
    pub(super) fn error(&self) -> StoreError {
        StoreError::Removed(self.path.clone())
    }

    /// Returns an error if the path no longer leads to the file. Another failure says nothing about
    /// the file.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => Ok(()),
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(())
            }
            Ok(_) | Err(_) => Err(self.error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncation_is_noticed_also_after_the_next_write() {
        let segments = |count: u64| vec![7; (count * SEGMENT_BYTES) as usize];
        for len in [0, 1, SEGMENT_BYTES - 1] {
            let file = tempfile::tempfile().unwrap();
            let written = WrittenLen::default();
            assert!(!written.is_truncated(&file), "no database was written yet");
            file.write_all_at(&segments(3), 0).unwrap();
            assert!(!written.is_truncated(&file));
            file.set_len(len).unwrap();
            assert!(written.is_truncated(&file), "{len}");
            assert!(written.is_truncated(&file), "{len}: still");
            if len == 0 {
                file.write_all_at(&segments(1), 3 * SEGMENT_BYTES).unwrap();
                assert!(written.is_truncated(&file), "a hole in place of the header");
            }
        }
    }

    #[test]
    fn segments_that_sled_releases_are_no_truncation() {
        let file = tempfile::tempfile().unwrap();
        let written = WrittenLen::default();
        file.write_all_at(&[7; 32], 0).unwrap();
        let parts = SEGMENT_BYTES / 4;
        for parts_written in [1, 4, 12, 9, 20, 5, 4] {
            file.set_len(parts_written * parts).unwrap();
            assert!(!written.is_truncated(&file), "{parts_written}");
        }
        file.set_len(parts).unwrap();
        assert!(written.is_truncated(&file));
    }

    #[test]
    fn a_file_that_is_deleted_replaced_or_moved_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let file = File::create(&path).unwrap();
        let presence = Presence::new(&path, &file).unwrap();
        presence.check().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(presence.check(), Err(StoreError::Removed(_))));
        fs::write(&path, "another").unwrap();
        assert!(presence.check().is_err());
        let presence = Presence::new(&path, &File::open(&path).unwrap()).unwrap();
        fs::rename(&path, directory.path().join("b")).unwrap();
        assert!(presence.check().is_err());
        fs::rename(directory.path().join("b"), &path).unwrap();
        presence.check().unwrap();
    }
}
