//! The NTP timestamp of RFC 4656 §4.1.2: 32 bits of seconds since 1900 and 32 bits of fraction.

use super::{NANOS_PER_SECOND, UnixTime};

/// Seconds from 1900-01-01 to 1970-01-01.
const UNIX_EPOCH_IN_NTP_SECONDS: u64 = 2_208_988_800;

/// A point in UTC in wire format. Era 0 ends on 2036-02-07. Differences wrap, and are correct for
/// distances below 68 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NtpTimestamp(pub u64);

impl NtpTimestamp {
    /// Converts from a point in time, rounded down to the unit of 2^-32 s.
    pub fn from_unix(time: UnixTime) -> Self {
        let seconds = (time.0 / NANOS_PER_SECOND + UNIX_EPOCH_IN_NTP_SECONDS) as u32;
        let fraction = ((time.0 % NANOS_PER_SECOND) << 32) / NANOS_PER_SECOND;
        Self(u64::from(seconds) << 32 | fraction)
    }

    /// Converts to the point in time of the era nearest to `near`. Inverts
    /// [`NtpTimestamp::from_unix`] exactly.
    pub fn to_unix(self, near: UnixTime) -> UnixTime {
        near.plus_ns(self.since_ns(Self::from_unix(near)))
    }

    fn fraction_to_ns(fraction: u64) -> i64 {
        ((fraction * NANOS_PER_SECOND + (1 << 31)) >> 32) as i64
    }

    /// Returns the signed nanoseconds since `earlier`.
    pub fn since_ns(self, earlier: Self) -> i64 {
        let seconds = ((self.0 >> 32) as u32).wrapping_sub((earlier.0 >> 32) as u32) as i32;
        i64::from(seconds) * NANOS_PER_SECOND as i64 + Self::fraction_to_ns(self.0 & 0xffff_ffff)
            - Self::fraction_to_ns(earlier.0 & 0xffff_ffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `ntp-diff/era-wrap` of the reference vectors: 0.5 s before the wrap to 0.5 s after it.
    #[test]
    fn conformance_082_differences_across_the_era_of_2036() {
        let before = NtpTimestamp(0xffff_ffff_8000_0000);
        let after = NtpTimestamp(0x0000_0000_8000_0000);
        assert_eq!(after.since_ns(before), 1_000_000_000);
        assert_eq!(before.since_ns(after), -1_000_000_000);
    }

    #[test]
    fn reads_back_in_the_nearest_era() {
        let wrap = UnixTime(2_085_978_496_000_000_000);
        assert_eq!(NtpTimestamp::from_unix(wrap).0, 0);
        let later = NtpTimestamp::from_unix(wrap.plus_ns(5));
        assert_eq!(later.to_unix(wrap.plus_ns(-7)), wrap.plus_ns(5));
    }

    proptest! {
        #[test]
        fn round_trip_is_exact(ns in 0u64..8_000_000_000_000_000_000, offset in -1_000_000_000i64..1_000_000_000) {
            let time = UnixTime(ns);
            prop_assert_eq!(NtpTimestamp::from_unix(time).to_unix(time.plus_ns(offset)), time);
        }
    }
}
