//! The state database: statistics, positions of consumers, states of connections, and from which
//! cursor a start goes on.

use std::sync::{Arc, RwLock};

use super::{StoreError, engine::Engine};

pub(super) const CACHE_OCTETS: u64 = 16 << 20;
/// Directory of the database, in the state directory.
pub(super) const STATE: &str = "state.sled";
/// Directory of the log, in the state directory.
pub(super) const RESULTS: &str = "results";
/// Only there after a clean end.
pub(super) const NEXT_CURSOR: &[u8] = b"next-cursor";
pub(super) const KERNEL_BOOT: &[u8] = b"kernel-boot-id";
/// Number of the database, which rises each time the disk writes it: sled goes back to an earlier state
/// where it finds damage, and does not report it.
pub(super) const SEQUENCE: &[u8] = b"sequence";

/// Encoding of statistics: messages of `twamp.agent.v1`. It stands before the cursor that a part is as
/// of, and the content.
const API_V1: u8 = 1;

/// A part of the statistics as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whose, and which part.
    pub key: Vec<u8>,
    /// Records behind this cursor are not in it.
    pub as_of_cursor: u64,
    /// Content; the store does not look into it.
    pub content: Vec<u8>,
}

/// The trees beside the log.
#[derive(Clone, Debug)]
pub(super) struct Trees {
    pub(super) meta: sled::Tree,
    pub(super) consumers: sled::Tree,
    pub(super) statistics: sled::Tree,
    pub(super) connections: sled::Tree,
    pub(super) incarnations: sled::Tree,
}

/// Shared with the writer, who takes them away before it opens the database anew.
pub(super) type SharedTrees = Arc<RwLock<Option<Trees>>>;

impl Trees {
    pub(super) fn open(engine: &Engine) -> Result<Self, StoreError> {
        Ok(Self {
            meta: engine.tree("meta")?,
            consumers: engine.tree("consumers")?,
            statistics: engine.tree("statistics")?,
            connections: engine.tree("connections")?,
            incarnations: engine.tree("incarnations")?,
        })
    }
}

/// Parts of statistics by their keys; `None` stands for "no longer there".
pub type Changed = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Encodes the value of a part of the statistics.
pub(super) fn snapshot_value(as_of_cursor: u64, content: &[u8]) -> Vec<u8> {
    [&[API_V1], as_of_cursor.to_be_bytes().as_slice(), content].concat()
}

/// Decodes a part of the statistics.
pub(super) fn snapshot(key: &[u8], value: &[u8]) -> Result<Snapshot, StoreError> {
    let (encoding, value) = value.split_first().unwrap_or((&0, &[]));
    let parts = value.split_first_chunk().filter(|_| *encoding == API_V1);
    let (as_of, content) = parts.ok_or(StoreError::Damaged("statistics"))?;
    let as_of_cursor = u64::from_be_bytes(*as_of);
    Ok(Snapshot { key: key.to_vec(), as_of_cursor, content: content.to_vec() })
}

/// Position of a consumer.
pub(super) fn position(consumers: &sled::Tree, name: &str) -> Result<Option<u64>, StoreError> {
    consumers.get(name.as_bytes())?.map(|value| cursor_value(&value)).transpose()
}

pub(super) fn cursor_value(value: &[u8]) -> Result<u64, StoreError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Damaged("position"))
}
