//! File with the summaries of the sealed windows, so that a start does not open the windows. Each
//! window contains its own summary as well, so the file can be rebuilt.

use std::{collections::BTreeMap, io, path::Path};

use prost::Message;

use super::{
    disk,
    layout::{Summary, WindowName},
};

const NAME: &str = "index";
const MAGIC: &[u8] = b"twamp-agent windows 1\n";

/// Summaries of windows by their names.
pub(super) type Index = BTreeMap<WindowName, Summary>;

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(message, repeated, tag = "1")]
    windows: Vec<StoredWindow>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredWindow {
    #[prost(uint64, tag = "1")]
    first_cursor: u64,
    #[prost(uint32, tag = "2")]
    generation: u32,
    #[prost(message, optional, tag = "3")]
    summary: Option<Summary>,
}

/// Reads the index; empty if it is missing or damaged.
pub(super) fn read(directory: &Path) -> Index {
    let stored: Option<Stored> = disk::read_message(&directory.join(NAME), MAGIC);
    let windows = stored.unwrap_or_default().windows.into_iter();
    windows
        .filter_map(|StoredWindow { first_cursor, generation, summary }| {
            Some((WindowName { first_cursor, generation }, summary?))
        })
        .collect()
}

/// Replaces the index file atomically.
pub(super) fn write(directory: &Path, index: &Index) -> io::Result<()> {
    let window = |(name, summary): (&WindowName, &Summary)| StoredWindow {
        first_cursor: name.first_cursor,
        generation: name.generation,
        summary: Some(*summary),
    };
    let stored = Stored { windows: index.iter().map(window).collect() };
    disk::replace_message(&directory.join(NAME), MAGIC, &stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::UnixTime;
    use std::fs;

    #[test]
    fn a_damaged_index_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()), Index::new());
        let index: Index = (1..50)
            .map(|n| (WindowName::new(n * 1000), Summary::beginning_at(UnixTime(n))))
            .collect();
        write(directory.path(), &index).unwrap();
        assert_eq!(read(directory.path()), index);
        let file = directory.path().join(NAME);
        let octets = fs::read(&file).unwrap();
        for bit in (0..octets.len() * 8).step_by(31) {
            let mut flipped = octets.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, flipped).unwrap();
            assert_eq!(read(directory.path()), Index::new(), "bit {bit}");
        }
    }
}
