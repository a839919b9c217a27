//! State database: statistics, positions of consumers, states of connections, and the next cursor.

use std::sync::{Arc, RwLock};

use super::{StoreError, engine::Engine};

pub(super) const CACHE_OCTETS: u64 = 16 << 20;
/// Directory of the database, in the state directory.
pub(super) const STATE: &str = "state.sled";
/// Directory of the log, in the state directory.
pub(super) const RESULTS: &str = "results";
/// Key of the next cursor; present only after a clean end.
pub(super) const NEXT_CURSOR: &[u8] = b"next-cursor";
pub(super) const KERNEL_BOOT: &[u8] = b"kernel-boot-id";
/// Key of the sequence number, which rises with each durable flush. It shows when sled returns to
/// an earlier state because of damage, which sled does not report.
pub(super) const SEQUENCE: &[u8] = b"sequence";

/// Encoding of statistics as messages of `twamp.agent.v1`. A value is this byte, the cursor up to
/// which records are included, and the content.
const API_V1: u8 = 1;

/// Stored part of the statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Key of the connection, the session and the part.
    pub key: Vec<u8>,
    /// Cursor of the last record that the statistics include.
    pub as_of_cursor: u64,
    /// Encoded statistics; the store does not decode them.
    pub content: Vec<u8>,
}

/// Trees of the state database.
#[derive(Clone, Debug)]
pub(super) struct Trees {
    pub(super) meta: sled::Tree,
    pub(super) consumers: sled::Tree,
    pub(super) statistics: sled::Tree,
    pub(super) connections: sled::Tree,
    pub(super) incarnations: sled::Tree,
}

/// Trees shared with the writer, which removes them while it reopens the database.
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

/// Changed parts of statistics by their keys; `None` for a removed part.
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

/// Returns the position of a consumer.
pub(super) fn position(consumers: &sled::Tree, name: &str) -> Result<Option<u64>, StoreError> {
    consumers.get(name.as_bytes())?.map(|value| cursor_value(&value)).transpose()
}

pub(super) fn cursor_value(value: &[u8]) -> Result<u64, StoreError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Damaged("position"))
}
