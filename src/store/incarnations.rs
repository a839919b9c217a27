//! Incarnations (runs of the agent that wrote the log), each with its first cursor. Agent,
//! incarnation and cursor identify a record uniquely, even if a copy of the disk runs as another
//! agent. Incarnations are stored in the state database and in a separate file. Either copy is
//! sufficient.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use prost::Message;

use super::{
    StoreError, disk,
    layout::cursor_of,
    presence::{Mark, mend},
};

const NAME: &str = "incarnations";
const MAGIC: &[u8] = b"twamp-agent incarnations 1\n";
/// Maximum number of stored incarnations; the oldest are removed first.
const MAXIMUM_INCARNATIONS: usize = 4096;

/// Incarnations by their first cursors, and the mark of the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Incarnations(BTreeMap<u64, Arc<str>>, Option<Mark>);

/// Content of the file.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(btree_map = "uint64, string", tag = "1")]
    by_first_cursor: BTreeMap<u64, String>,
}

impl Incarnations {
    /// Reads the incarnations of both copies.
    pub(super) fn load(directory: &Path, tree: &sled::Tree) -> Result<Self, StoreError> {
        let stored: Option<Stored> = disk::read_message(&path(directory), MAGIC);
        let mut runs = stored.unwrap_or_default().by_first_cursor;
        for run in tree {
            let (cursor, id) = run?;
            let id = String::from_utf8(id.to_vec());
            runs.insert(cursor_of(&cursor)?, id.map_err(|_| StoreError::Damaged("incarnation"))?);
        }
        let runs = runs.into_iter().map(|(cursor, id)| (cursor, id.into())).collect();
        Ok(Self(runs, Mark::read(&path(directory))))
    }

    /// Begins an incarnation with the cursor `next`, and stores it. Incarnations before that of the
    /// `earliest` record are removed.
    pub(super) fn begin(
        &mut self,
        (directory, tree): (&Path, &sled::Tree),
        id: &str,
        (earliest, next): (u64, u64),
    ) -> Result<(), StoreError> {
        self.0.insert(next, id.into());
        let kept = self.0.range(..=earliest).next_back().map_or(0, |(first, _)| *first);
        self.0 = self.0.split_off(&kept);
        while self.0.len() > MAXIMUM_INCARNATIONS {
            self.0.pop_first();
        }
        let mut batch = sled::Batch::default();
        for cursor in tree.iter().keys() {
            let cursor = cursor?;
            if !self.0.contains_key(&cursor_of(&cursor)?) {
                batch.remove(cursor);
            }
        }
        for (cursor, id) in &self.0 {
            batch.insert(&cursor.to_be_bytes(), id.as_bytes());
        }
        tree.apply_batch(batch)?;
        if let Err(error) = self.write(directory) {
            tracing::warn!(%error, "failed to write the copy of the incarnations");
        }
        self.1 = Mark::read(&path(directory));
        Ok(())
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        let by_first_cursor = self.0.iter().map(|(cursor, id)| (*cursor, id.to_string())).collect();
        disk::replace_message(&path(directory), MAGIC, &Stored { by_first_cursor })
    }

    /// Writes the file again if it was deleted or changed.
    pub(super) fn mend(&mut self, directory: &Path) {
        let mut mark = self.1;
        mend(&path(directory), &mut mark, || self.write(directory));
        self.1 = mark;
    }

    /// Returns the incarnation that wrote a record; `None` if it is not stored.
    pub(super) fn at(&self, cursor: u64) -> Option<Arc<str>> {
        self.0.range(..=cursor).next_back().map(|(_, id)| id.clone())
    }
}

/// Returns true for a copy that exists and cannot be read.
pub(super) fn is_damaged(directory: &Path) -> bool {
    disk::is_damaged_message::<Stored>(&path(directory), MAGIC)
}

fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree() -> sled::Tree {
        sled::Config::new().temporary(true).open().unwrap().open_tree("incarnations").unwrap()
    }

    #[test]
    fn either_copy_yields_the_incarnation_of_each_record() {
        let directory = tempfile::tempdir().unwrap();
        let tree = tree();
        for (id, next) in [("a", 1), ("b", 10), ("c", 10), ("d", 25)] {
            let mut runs = Incarnations::load(directory.path(), &tree).unwrap();
            runs.begin((directory.path(), &tree), id, (1, next)).unwrap();
        }
        let runs_of = |runs: &Incarnations, cursors: &[u64]| -> Vec<Option<String>> {
            cursors.iter().map(|cursor| runs.at(*cursor).map(|id| id.to_string())).collect()
        };
        let expected = ["a", "a", "c", "c", "d", "d"].map(|id| Some(id.to_owned()));
        let cursors = [1, 9, 10, 24, 25, 99];
        // A tree of another database is empty.
        for tree in [&tree, &self::tree()] {
            let runs = Incarnations::load(directory.path(), tree).unwrap();
            assert_eq!(runs_of(&runs, &cursors), expected);
        }
        fs::write(path(directory.path()), b"damaged").unwrap();
        let mut runs = Incarnations::load(directory.path(), &tree).unwrap();
        assert_eq!(runs_of(&runs, &cursors), expected);
        // Retention has removed the records up to 11.
        runs.begin((directory.path(), &tree), "e", (12, 30)).unwrap();
        let runs = Incarnations::load(directory.path(), &tree).unwrap();
        assert_eq!(
            runs_of(&runs, &[1, 12, 29, 30]),
            [None, Some("c"), Some("d"), Some("e")].map(|id| id.map(str::to_owned))
        );
        assert_eq!((tree.len(), runs.0.len()), (3, 3));
    }
}
