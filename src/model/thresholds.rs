//! Limits of a test session whose crossing is reported.

use crate::proto::Threshold;

/// An enabled limit of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThresholdLimit {
    /// Value that the limit applies to.
    pub threshold: Threshold,
    /// Probes or nanoseconds, never 0.
    pub limit: u64,
}

/// The limits of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Enabled limits, each threshold once.
    pub limits: Vec<ThresholdLimit>,
    /// Percent of a limit at or below which a value counts as clear.
    pub clear_percent: u64,
    /// Tests in a row that clear.
    pub clear_after_tests: u32,
}
