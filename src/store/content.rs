//! Kinds of the contents of records. Each number identifies one encoding and is never reused. The
//! store does not decode the contents.

/// No content: the configuration excludes the record from the store.
pub const NOTHING: u8 = 0;
/// A `stats::TestResult`.
pub const TEST_RESULT: u8 = 1;
/// An `Event` of `twamp.agent.v1`.
pub const EVENT: u8 = 3;
/// An `IntervalResult` of `results::statistics`.
pub const INTERVAL_RESULT: u8 = 4;
/// `ProbeResults` that a block cannot represent.
pub const PROBE_RESULTS: u8 = 5;
/// Probes in the encoding of `results::block`.
pub const PROBE_BLOCK: u8 = 6;

/// Flag on the other kinds: the content was removed because of the shorter retention age of the
/// connection.
pub const REMOVED: u8 = 0x80;

/// Key suffix of the statistics of all tests, after the names of connection and session.
pub const STATISTICS_ALL: &[u8] = b"all";
/// Key suffix of the statistics of the last test.
pub const STATISTICS_LAST: &[u8] = b"last";
