//! Entries of the log, and the names and summaries of its windows.

use std::{fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use prost::Message;

use super::StoreError;
use crate::time::UnixTime;

/// Connection and session that a record belongs to.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Subject {
    /// Name of the connection; empty for the agent as a whole.
    #[prost(string, tag = "1")]
    pub connection: String,
    /// Name of the session; empty for a connection.
    #[prost(string, tag = "2")]
    pub session: String,
    /// Labels of its records.
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: std::collections::BTreeMap<String, String>,
}

/// Entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position in the log.
    pub cursor: u64,
    /// Time of the record; stored in whole microseconds.
    pub time: UnixTime,
    /// Connection and session that the record belongs to.
    pub subject: Arc<Subject>,
    /// Kind of the content, see [`super::content`].
    pub kind: u8,
    /// Content, at most [`super::MAXIMUM_CONTENT_OCTETS`] bytes.
    pub content: Bytes,
}

/// Name of a window and of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WindowName {
    pub(super) first_cursor: u64,
    /// Number of times that records were removed from the window by copying it.
    pub(super) generation: u32,
}

impl WindowName {
    /// Returns the name of a new window that begins with this cursor.
    pub(super) fn new(first_cursor: u64) -> Self {
        Self { first_cursor, generation: 0 }
    }

    /// Returns true for the first generation, from which no records were removed.
    pub(super) fn is_first(self) -> bool {
        self.generation == 0
    }
}

impl fmt::Display for WindowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}", self.first_cursor)?;
        if self.is_first() { Ok(()) } else { write!(f, "-{}", self.generation) }
    }
}

impl FromStr for WindowName {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let (first_cursor, generation) = name.split_once('-').unwrap_or((name, "0"));
        let parsed = Self {
            first_cursor: first_cursor.parse().map_err(drop)?,
            generation: generation.parse().map_err(drop)?,
        };
        if parsed.to_string() == name { Ok(parsed) } else { Err(()) }
    }
}

/// Figures of a window. Stored in the window and in the index, so that a start does not read all
/// records.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Summary {
    #[prost(uint64, tag = "1")]
    pub(super) last_cursor: u64,
    #[prost(uint64, tag = "2")]
    pub(super) records: u64,
    #[prost(uint64, tag = "3")]
    pub(super) octets: u64,
    #[prost(fixed64, tag = "4")]
    pub(super) begun_ns: u64,
    #[prost(fixed64, tag = "5")]
    pub(super) earliest_ns: u64,
    #[prost(fixed64, tag = "6")]
    pub(super) latest_ns: u64,
    /// Maximum time by which a record is earlier than a preceding one, nanoseconds.
    #[prost(uint64, tag = "7")]
    pub(super) disorder_ns: u64,
}

impl Summary {
    /// Returns the summary of an empty window that begins at this time.
    pub(super) fn beginning_at(time: UnixTime) -> Self {
        let UnixTime(begun_ns) = time;
        Self { begun_ns, earliest_ns: begun_ns, latest_ns: begun_ns, ..Self::default() }
    }
}

pub(super) fn cursor_of(key: &[u8]) -> Result<u64, StoreError> {
    key.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Damaged("cursor"))
}
