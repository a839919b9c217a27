//! Files of the state directory that are still where the agent opened them. What is written to a
//! file that was deleted is lost when the agent ends, and no write reports it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::StoreError;

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
            Ok(_) | Err(_) => Err(StoreError::Removed(self.path.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
