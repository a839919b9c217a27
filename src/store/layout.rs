//! Entries of the log, and the names and summaries of the windows that hold them.

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
    /// Labels that its records carry.
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: std::collections::BTreeMap<String, String>,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position in the log.
    pub cursor: u64,
    /// Time of the record; whole microseconds are kept.
    pub time: UnixTime,
    /// Connection and session that it belongs to.
    pub subject: Arc<Subject>,
    /// Kind of the content; the store does not look into it.
    pub kind: u8,
    /// Content of at most [`super::MAXIMUM_CONTENT_OCTETS`].
    pub content: Bytes,
}

/// Name of a window, and of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WindowName {
    pub(super) first_cursor: u64,
    /// Number of copies without some of the records, each made of the one before.
    pub(super) generation: u32,
}

impl WindowName {
    /// Name of a window that begins with this cursor.
    pub(super) fn new(first_cursor: u64) -> Self {
        Self { first_cursor, generation: 0 }
    }

    /// Returns true for the first generation, which has all of its records.
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

/// Figures of a window. Kept in the window and in the index: a start need not read all that is
/// stored.
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
    /// Largest time by which a record is earlier than one before it.
    #[prost(uint64, tag = "7")]
    pub(super) disorder_ns: u64,
}

impl Summary {
    /// Summary of a window that begins at this time.
    pub(super) fn beginning_at(time: UnixTime) -> Self {
        let UnixTime(begun_ns) = time;
        Self { begun_ns, earliest_ns: begun_ns, latest_ns: begun_ns, ..Self::default() }
    }
}

pub(super) fn cursor_of(key: &[u8]) -> Result<u64, StoreError> {
    key.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Damaged("cursor"))
}
