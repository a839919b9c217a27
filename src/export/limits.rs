//! Limits of delays by which histograms are told: powers of two of a nanosecond, where the edges of
//! our buckets are, so that each count is exact.

/// The smallest limit is 2^13 ns, 8 us; the largest 2^34 ns, 17 s.
const EXPONENTS: std::ops::RangeInclusive<u32> = 13..=34;

/// Nanoseconds: the largest whole value that is below each power of two.
pub(super) fn limits_ns() -> Vec<i64> {
    EXPONENTS.map(|exponent| (1 << exponent) - 1).collect()
}

/// The same in seconds.
pub(super) fn limits_seconds() -> Vec<f64> {
    limits_ns().into_iter().map(seconds).collect()
}

pub(super) fn seconds(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e9
}
