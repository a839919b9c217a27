//! Points in time and their wire forms.
//!
//! No clock is read here. State machines receive the time as an argument, so that tests run them in
//! simulated time.

mod error_estimate;
mod ntp;
mod ptp;
mod stamp_source;
mod step;

pub use error_estimate::{ErrorEstimate, MAX_ERROR_NS};
pub use ntp::NtpTimestamp;
pub use ptp::{PtpTimestamp, TAI_OFFSET_SECONDS};
pub use stamp_source::StampSource;
pub use step::{ClockWatch, LARGE_STEP_NS};

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A point on the monotonic clock, in nanoseconds from an origin private to this process. Used for
/// deadlines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// Returns the point `nanoseconds` later; saturates.
    pub fn plus_ns(self, nanoseconds: u64) -> Self {
        Self(self.0.saturating_add(nanoseconds))
    }

    /// Returns the nanoseconds since `earlier`; zero if `earlier` is later.
    pub fn since_ns(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A point in UTC, in nanoseconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// Returns the signed nanoseconds since `earlier`.
    pub fn since_ns(self, earlier: Self) -> i64 {
        self.0.wrapping_sub(earlier.0) as i64
    }

    /// Returns the point at a signed distance.
    pub fn plus_ns(self, nanoseconds: i64) -> Self {
        Self(self.0.saturating_add_signed(nanoseconds))
    }

    /// Converts to the well-known protobuf type.
    pub fn to_proto(self) -> prost_types::Timestamp {
        prost_types::Timestamp {
            seconds: (self.0 / NANOS_PER_SECOND) as i64,
            nanos: (self.0 % NANOS_PER_SECOND) as i32,
        }
    }

    /// Converts from the well-known protobuf type; times before 1970 become 1970.
    pub fn from_proto(time: &prost_types::Timestamp) -> Self {
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        let nanos = u64::try_from(time.nanos).unwrap_or(0);
        Self(seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(nanos))
    }
}

/// Timestamp format of a test packet (RFC 8186 §2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimestampFormat {
    /// NTP format of RFC 4656 §4.1.2.
    #[default]
    Ntp,
    /// Truncated PTPv2 format (RFC 8186 §2.1).
    Ptp,
}

impl TimestampFormat {
    /// Encodes a point in time.
    pub fn encode(self, time: UnixTime) -> u64 {
        match self {
            Self::Ntp => NtpTimestamp::from_unix(time).0,
            Self::Ptp => PtpTimestamp::from_unix(time).0,
        }
    }

    /// Decodes the point in time nearest to `near`; `None` for an invalid timestamp.
    pub fn decode(self, octets: u64, near: UnixTime) -> Option<UnixTime> {
        match self {
            Self::Ntp => Some(NtpTimestamp(octets).to_unix(near)),
            Self::Ptp => PtpTimestamp(octets).to_unix(near),
        }
    }
}

/// A reading of both clocks at the same moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Reading for deadlines and durations.
    pub monotonic: Monotonic,
    /// Reading for records and packets.
    pub unix: UnixTime,
}

impl Now {
    /// Returns the nanoseconds by which the realtime clock was set since `earlier`.
    pub fn step_since_ns(self, earlier: Self) -> i64 {
        let passed_ns = self.monotonic.since_ns(earlier.monotonic);
        self.unix.since_ns(earlier.unix).saturating_sub(passed_ns.cast_signed())
    }
}

/// Converts nanoseconds to the well-known protobuf duration.
pub fn duration_to_proto(nanoseconds: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: (nanoseconds / NANOS_PER_SECOND) as i64,
        nanos: (nanoseconds % NANOS_PER_SECOND) as i32,
    }
}
