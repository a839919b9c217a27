//! Summaries of the sealed windows in one small file, so that a start opens none of them. The file can
//! be lost: each window holds its own summary as well.

use std::{collections::BTreeMap, fs, io, path::Path};

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

/// Reads the index; an empty one where there is none that can be believed.
pub(super) fn read(place: &Path) -> Index {
    let decoded = fs::read(place.join(NAME)).ok().and_then(|octets| {
        let (sum, message) = octets.strip_prefix(MAGIC)?.split_first_chunk::<4>()?;
        let is_whole = crc32fast::hash(message) == u32::from_be_bytes(*sum);
        is_whole.then(|| Stored::decode(message).ok())?
    });
    let windows = decoded.unwrap_or_default().windows.into_iter();
    windows
        .filter_map(|StoredWindow { first_cursor, generation, summary }| {
            Some((WindowName { first_cursor, generation }, summary?))
        })
        .collect()
}

/// Replaces the index by another one.
pub(super) fn write(place: &Path, index: &Index) -> io::Result<()> {
    let window = |(name, summary): (&WindowName, &Summary)| StoredWindow {
        first_cursor: name.first_cursor,
        generation: name.generation,
        summary: Some(*summary),
    };
    let message = Stored { windows: index.iter().map(window).collect() }.encode_to_vec();
    let sum = crc32fast::hash(&message).to_be_bytes();
    disk::replace(&place.join(NAME), &[MAGIC, &sum, &message])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::UnixTime;

    #[test]
    fn only_a_whole_index_is_believed() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(read(place.path()), Index::new());
        let index: Index = (1..50)
            .map(|n| (WindowName::new(n * 1000), Summary::beginning_at(UnixTime(n))))
            .collect();
        write(place.path(), &index).unwrap();
        assert_eq!(read(place.path()), index);
        let file = place.path().join(NAME);
        let octets = fs::read(&file).unwrap();
        for bit in (0..octets.len() * 8).step_by(31) {
            let mut flipped = octets.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, flipped).unwrap();
            assert_eq!(read(place.path()), Index::new(), "bit {bit}");
        }
    }
}
