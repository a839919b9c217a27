//! Delays of one answered probe.

use crate::{
    model::{OneWayValidity, TimestampSource},
    time::{NANOS_PER_SECOND, StampSource, TAI_OFFSET_SECONDS, UnixTime},
};

/// Delays of one answered probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Sequence Number of the probe.
    pub sequence: u32,
    /// First probe whose sample may still arrive; the outcomes of all earlier probes are known.
    pub first_open: u32,
    /// Send time of the probe.
    pub t1: UnixTime,
    /// Round-trip time (T4-T1)-(T3-T2), in nanoseconds.
    pub rtt_ns: i64,
    /// Egress delay T2-T1, in nanoseconds.
    pub egress_ns: i64,
    /// Ingress delay T4-T3, in nanoseconds.
    pub ingress_ns: i64,
    /// Time in the reflector T3-T2, in nanoseconds; negative if T3 is before T2. The round-trip
    /// time then counts it as 0.
    pub processing_ns: i64,
    /// Source of T4 (receive time of the reply).
    pub receive_timestamp_source: StampSource,
    /// Source of T1, the transmit time of the probe.
    pub transmit_timestamp_source: StampSource,
    /// True if both ends reported that their clocks are synchronised, or if they read the same
    /// clock.
    pub synchronised: bool,
    /// Error estimate of the clock of this host.
    pub clock_error_ns: Option<u64>,
    /// Error estimate that the reflector sent of its clock.
    pub reflector_clock_error_ns: Option<u64>,
    /// True if the local clock was stepped between T1 and T4.
    pub clock_stepped: bool,
    /// Sender TTL of the reply.
    pub egress_ttl: u8,
    /// TOS with which the probe reached the reflector, if it reports it.
    pub egress_tos: Option<u8>,
    /// True if T3 was corrected by a later report of the reflector (Follow-Up Telemetry).
    pub t3_followed_up: bool,
    /// TTL of the reply's own packet.
    pub ingress_ttl: Option<u8>,
    /// TOS of the reply's own packet.
    pub ingress_tos: Option<u8>,
}

impl From<StampSource> for TimestampSource {
    fn from(source: StampSource) -> Self {
        match source {
            StampSource::User => Self::User,
            StampSource::Kernel => Self::Kernel,
            StampSource::Hardware => Self::Hardware,
        }
    }
}

/// Largest time by which T3 may be before T2. The receive timestamp of a network interface and the
/// transmit timestamp of a program come from clocks that differ by up to this time.
pub(super) const MAX_STAMP_SKEW_NS: i64 = 100_000;

/// Largest deviation from the offset of TAI, in addition to the asymmetry of the path, at which the
/// offset of TAI is taken as the reason.
const MAX_TAI_ERROR_NS: u64 = 100_000_000;

/// Returns true if one-way delays show clocks that differ by the offset of TAI from UTC, in either
/// direction.
pub fn have_tai_offset(egress_ns: i64, ingress_ns: i64) -> bool {
    let offset_ns = egress_ns.abs_diff(ingress_ns) / 2;
    let asymmetry_ns = egress_ns.saturating_add(ingress_ns).unsigned_abs() / 2;
    let tolerance_ns = MAX_TAI_ERROR_NS + asymmetry_ns.min(NANOS_PER_SECOND);
    (egress_ns < 0) != (ingress_ns < 0)
        && offset_ns.abs_diff(TAI_OFFSET_SECONDS * NANOS_PER_SECOND) <= tolerance_ns
}

impl Sample {
    /// Returns true if its round-trip time is possible.
    pub fn has_rtt(&self) -> bool {
        self.rtt_ns >= 0 && !self.clock_stepped
    }

    /// Returns true if its one-way delays are possible as well: time advanced in the reflector,
    /// except for the difference between its clocks.
    pub fn has_one_way(&self) -> bool {
        self.has_rtt() && self.processing_ns >= -self.max_skew_ns()
    }

    /// Returns the time by which T3 may be before T2, in nanoseconds: the usual difference between
    /// the clocks of a reflector, or the error that the reflector reports.
    fn max_skew_ns(&self) -> i64 {
        let reported_ns = self.reflector_clock_error_ns.unwrap_or(0).min(NANOS_PER_SECOND);
        MAX_STAMP_SKEW_NS.max(reported_ns.cast_signed())
    }

    /// Returns the validity of its one-way delays.
    pub fn validity(&self) -> OneWayValidity {
        if self.clock_stepped {
            OneWayValidity::ClockStepped
        } else if have_tai_offset(self.egress_ns, self.ingress_ns) {
            OneWayValidity::TaiOffset
        } else if self.egress_ns < 0 || self.ingress_ns < 0 || self.processing_ns < 0 {
            OneWayValidity::Negative
        } else if self.synchronised {
            OneWayValidity::Valid
        } else {
            OneWayValidity::ClockUnsynchronised
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_by_the_offset_of_tai_are_recognised() {
        let validity = |offset_ms: i64| {
            let offset_ns = offset_ms * 1_000_000;
            let (egress_ns, ingress_ns) = (30_000_000 + offset_ns, 10_000_000 - offset_ns);
            let sample = Sample {
                rtt_ns: 40_000_000,
                egress_ns,
                ingress_ns,
                synchronised: true,
                ..Sample::default()
            };
            sample.validity()
        };
        for offset_ms in [37_000, -37_000, 37_100, -36_900] {
            assert_eq!(validity(offset_ms), OneWayValidity::TaiOffset, "{offset_ms}");
        }
        for offset_ms in [36_000, -38_000, 37_200, 1_000, -100] {
            assert_eq!(validity(offset_ms), OneWayValidity::Negative, "{offset_ms}");
        }
        assert_eq!(validity(0), OneWayValidity::Valid);
        let slow =
            Sample { rtt_ns: 74_000_000_000, egress_ns: 74_000_000_000, ..Sample::default() };
        assert_eq!(slow.validity(), OneWayValidity::ClockUnsynchronised);
    }
}
