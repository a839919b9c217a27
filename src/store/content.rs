//! Kinds of the contents of records: each number stands for one encoding and is never used again. The
//! store does not look into the contents.

/// No content: the record was not to be stored.
pub const NOTHING: u8 = 0;
/// A `TestResult` of `twamp.agent.v1`.
pub const TEST_RESULT: u8 = 1;
/// An `Event` of `twamp.agent.v1`.
pub const EVENT: u8 = 3;
/// An `IntervalResult` of `twamp.agent.v1`.
pub const INTERVAL_RESULT: u8 = 4;
/// `ProbeResults`, where a block cannot hold them.
pub const PROBE_RESULTS: u8 = 5;
/// Probes in the encoding of `results::block`.
pub const PROBE_BLOCK: u8 = 6;

/// Added to any other: the content was taken away, the connection has its records kept for less.
pub const REMOVED: u8 = 0x80;

/// Statistics over all tests, behind the names of connection and session.
pub const STATISTICS_ALL: &[u8] = b"all";
/// Statistics of the last test.
pub const STATISTICS_LAST: &[u8] = b"last";
