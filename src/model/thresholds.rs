//! Limits of a test session whose crossing is reported.

use crate::proto::Threshold;

/// An enabled limit of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThresholdLimit {
    /// Value that the limit applies to.
    pub threshold: Threshold,
    /// Limit in probes or nanoseconds, never 0.
    pub limit: u64,
}

/// Enabled limits of a session, and the rule by which they clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Enabled limits, each threshold once.
    pub limits: Vec<ThresholdLimit>,
    /// Percentage of a limit that no value may exceed for the threshold to clear.
    pub clear_percent: u64,
    /// Consecutive tests without such a value after which the threshold clears.
    pub clear_after_tests: u32,
}
