//! The Error Estimate of RFC 4656 §4.1.2.

use super::TimestampFormat;

/// Error from which on a clock counts as not synchronised (RFC 5905 §7.2, MAXDISP).
pub const MAX_ERROR_NS: u64 = 16 * 1_000_000_000;

/// `S Z SSSSSS MMMMMMMM`: synchronised, timestamp format, scale, multiplier.
/// The error is `multiplier · 2^(scale-32)` seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorEstimate(pub u16);

impl ErrorEstimate {
    /// An unsynchronised clock, with the smallest valid error; receivers must not interpret it.
    pub const UNSYNCHRONISED: Self = Self(0x0001);

    /// Creates an estimate with the smallest scale that holds the error. The Multiplier is never 0
    /// (RFC 4656 §4.1.2).
    pub fn new(synchronised: bool, error_ns: u64) -> Self {
        // Units of 2^-32 s, rounded up so that the error is never understated.
        let mut units = (u128::from(error_ns) << 32).div_ceil(1_000_000_000).max(1);
        let mut scale = 0u16;
        while units > 255 && scale < 63 {
            units = units.div_ceil(2);
            scale += 1;
        }
        Self(u16::from(synchronised) << 15 | scale << 8 | units.min(255) as u16)
    }

    /// Returns true when the clock is synchronised to UTC by an external source. A clock whose
    /// error is unknown or reaches [`MAX_ERROR_NS`] is not synchronised, even if the S bit is set.
    pub fn is_synchronised(self) -> bool {
        self.0 & 0x8000 != 0 && !self.is_unknown() && self.error_ns() < MAX_ERROR_NS
    }

    /// Returns the format of the timestamps it belongs to (RFC 8186 §2.3).
    pub fn format(self) -> TimestampFormat {
        if self.0 & 0x4000 == 0 { TimestampFormat::Ntp } else { TimestampFormat::Ptp }
    }

    /// Returns the estimate for timestamps in another format.
    pub fn with_format(self, format: TimestampFormat) -> Self {
        match format {
            TimestampFormat::Ntp => Self(self.0 & !0x4000),
            TimestampFormat::Ptp => Self(self.0 | 0x4000),
        }
    }

    /// Returns true for a Multiplier of 0. The packet SHOULD be discarded as corrupt (RFC 4656
    /// §4.1.2), but implementations send it while their clock is not synchronised.
    pub fn is_unknown(self) -> bool {
        self.0 & 0x00ff == 0
    }

    /// Returns the error in nanoseconds, rounded down.
    pub fn error_ns(self) -> u64 {
        let units = u128::from(self.0 & 0xff) << (self.0 >> 8 & 0x3f);
        u64::try_from((units * 1_000_000_000) >> 32).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_076_multiplier_is_never_zero() {
        for error in [0, 1, 255, 1_000, 50_000, 1_000_000, 100_000_000, 1_000_000_000, u64::MAX] {
            let estimate = ErrorEstimate::new(true, error);
            assert!(!estimate.is_unknown(), "{error}");
            assert_eq!(estimate.is_synchronised(), error < MAX_ERROR_NS);
            assert!(estimate.error_ns() >= error.min(estimate.error_ns()));
        }
        assert_eq!(ErrorEstimate::new(false, 0).0, 0x0001);
    }

    #[test]
    fn conformance_078_the_s_bit_is_the_state_of_the_clock() {
        assert_eq!(ErrorEstimate::new(false, 1_000_000).0 & 0x8000, 0);
        assert_eq!(ErrorEstimate::new(true, 1_000_000).0 & 0x8000, 0x8000);
    }

    #[test]
    fn an_unknown_error_is_not_that_of_a_synchronised_clock() {
        assert!(ErrorEstimate(0x8000).is_unknown());
        assert!(!ErrorEstimate(0x8000).is_synchronised());
        assert!(ErrorEstimate(0x8001).is_synchronised());
        for octets_filled_with_ones in [0xffff, 0xbfff] {
            assert!(!ErrorEstimate(octets_filled_with_ones).is_synchronised());
        }
    }

    #[test]
    fn conformance_079_the_z_bit_is_zero() {
        assert_eq!(ErrorEstimate::new(true, u64::MAX).0 & 0x4000, 0);
    }
}
