//! Limits of a test session whose crossing is reported.

use crate::proto::Threshold;

/// A limit that is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThresholdLimit {
    /// What is compared.
    pub threshold: Threshold,
    /// With what: probes or nanoseconds, never 0.
    pub limit: u64,
}

/// The limits of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Those that are on, each once.
    pub limits: Vec<ThresholdLimit>,
    /// Percent of a limit at or below which a value counts as clear.
    pub clear_percent: u64,
    /// Tests in a row that clear.
    pub clear_after_tests: u32,
}
