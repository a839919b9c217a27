//! Points in time and their wire forms. No clock is read here: time is an argument everywhere
//! below the drivers, so that a pair of machines runs in simulated time.

mod error_estimate;
mod ntp;
mod ptp;
mod stamp_source;
mod step;

pub use error_estimate::ErrorEstimate;
pub use ntp::NtpTimestamp;
pub use ptp::PtpTimestamp;
pub use stamp_source::StampSource;
pub use step::ClockWatch;

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A point on the monotonic clock, in nanoseconds from an origin that only this process knows.
/// Deadlines are points on this clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// This point and `nanoseconds` later; saturates.
    pub fn plus_ns(self, nanoseconds: u64) -> Self {
        Self(self.0.saturating_add(nanoseconds))
    }

    /// Nanoseconds from `earlier` to this point; zero where `earlier` is later.
    pub fn since_ns(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A point in UTC, in nanoseconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// Signed nanoseconds from `earlier` to this point.
    pub fn since_ns(self, earlier: Self) -> i64 {
        self.0.wrapping_sub(earlier.0) as i64
    }

    /// This point and a signed distance.
    pub fn plus_ns(self, nanoseconds: i64) -> Self {
        Self(self.0.saturating_add_signed(nanoseconds))
    }

    /// As the well-known protobuf type.
    pub fn to_proto(self) -> prost_types::Timestamp {
        prost_types::Timestamp {
            seconds: (self.0 / NANOS_PER_SECOND) as i64,
            nanos: (self.0 % NANOS_PER_SECOND) as i32,
        }
    }

    /// From the form of the API; what is before 1970 is 1970.
    pub fn from_proto(time: &prost_types::Timestamp) -> Self {
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        let nanos = u64::try_from(time.nanos).unwrap_or(0);
        Self(seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(nanos))
    }
}

/// How a point in time is written in a test packet (RFC 8186 §2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimestampFormat {
    /// NTP, RFC 4656 §4.1.2.
    #[default]
    Ntp,
    /// PTPv2, truncated.
    Ptp,
}

impl TimestampFormat {
    /// The octets of a point in time.
    pub fn encode(self, time: UnixTime) -> u64 {
        match self {
            Self::Ntp => NtpTimestamp::from_unix(time).0,
            Self::Ptp => PtpTimestamp::from_unix(time).0,
        }
    }

    /// The point in time nearest to `near` that is written so; `None` where nothing is.
    pub fn decode(self, octets: u64, near: UnixTime) -> Option<UnixTime> {
        match self {
            Self::Ntp => Some(NtpTimestamp(octets).to_unix(near)),
            Self::Ptp => PtpTimestamp(octets).to_unix(near),
        }
    }
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub monotonic: Monotonic,
    /// For records and packets.
    pub unix: UnixTime,
}

/// Nanoseconds as the well-known protobuf duration.
pub fn duration_to_proto(nanoseconds: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: (nanoseconds / NANOS_PER_SECOND) as i64,
        nanos: (nanoseconds % NANOS_PER_SECOND) as i32,
    }
}
