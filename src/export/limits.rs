//! Bucket limits of exported histograms: powers of two in nanoseconds. The buckets of [`crate::stats`]
//! have edges there as well, so that all counts are exact.

/// Exponents of the limits: from 2^13 ns (8 us) to 2^34 ns (17 s).
const EXPONENTS: std::ops::RangeInclusive<u32> = 13..=34;

/// Returns the largest integer below each power of two, in nanoseconds.
pub(super) fn limits_ns() -> Vec<i64> {
    EXPONENTS.map(|exponent| (1 << exponent) - 1).collect()
}

/// Returns the same limits in seconds.
pub(super) fn limits_seconds() -> Vec<f64> {
    limits_ns().into_iter().map(seconds).collect()
}

pub(super) fn seconds(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e9
}
