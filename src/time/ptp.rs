//! The truncated PTPv2 timestamp of RFC 8186 §2.1: 32 bits of seconds since 1970 in TAI, and 32 bits
//! of nanoseconds.

use super::{NANOS_PER_SECOND, UnixTime};

/// TAI - UTC since 2017; no further leap second has been announced.
pub const TAI_OFFSET_SECONDS: u64 = 37;

/// A point in time in wire format. Wraps in 2106; nanoseconds are an integer, not a fraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PtpTimestamp(pub u64);

impl PtpTimestamp {
    /// Converts from a point in time.
    pub fn from_unix(time: UnixTime) -> Self {
        let seconds = (time.0 / NANOS_PER_SECOND + TAI_OFFSET_SECONDS) as u32;
        Self((u64::from(seconds) << 32) | (time.0 % NANOS_PER_SECOND))
    }

    /// Converts to the point in time of the wrap nearest to `near`; `None` for nanoseconds of a
    /// second or more.
    pub fn to_unix(self, near: UnixTime) -> Option<UnixTime> {
        let nanoseconds = self.0 & 0xffff_ffff;
        if nanoseconds >= NANOS_PER_SECOND {
            return None;
        }
        let near_seconds = near.0 / NANOS_PER_SECOND;
        let here = (near_seconds + TAI_OFFSET_SECONDS) as u32;
        let apart = ((self.0 >> 32) as u32).wrapping_sub(here) as i32;
        let seconds = near_seconds.saturating_add_signed(apart.into());
        Some(UnixTime(seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(nanoseconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nanoseconds_are_an_integer() {
        let time = UnixTime(1_700_000_000_999_999_999);
        assert_eq!(PtpTimestamp::from_unix(time).0, (1_700_000_037 << 32) + 999_999_999);
        assert_eq!(PtpTimestamp(1_000_000_000).to_unix(time), None);
    }

    proptest! {
        #[test]
        fn round_trip_is_exact(ns in 0u64..8_000_000_000_000_000_000, offset in -1_000_000_000i64..1_000_000_000) {
            let time = UnixTime(ns);
            prop_assert_eq!(PtpTimestamp::from_unix(time).to_unix(time.plus_ns(offset)), Some(time));
        }
    }
}
