//! Delays of one answered probe.

use crate::{
    model::{OneWayValidity, TimestampSource},
    time::{StampSource, UnixTime},
};

/// Delays of one answered probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Sequence Number of the probe.
    pub sequence: u32,
    /// First probe whose sample may still arrive; all earlier ones are known.
    pub first_open: u32,
    /// Send time of the probe.
    pub t1: UnixTime,
    /// Round-trip time (T4-T1)-(T3-T2), in nanoseconds.
    pub rtt_ns: i64,
    /// Egress delay T2-T1, in nanoseconds.
    pub egress_ns: i64,
    /// Ingress delay T4-T3, in nanoseconds.
    pub ingress_ns: i64,
    /// Time in the reflector T3-T2, in nanoseconds; negative where its stamps contradict each
    /// other. The round-trip time counts it as 0 then.
    pub processing_ns: i64,
    /// Source of T4 (receive time of the reply).
    pub receive_timestamp_source: StampSource,
    /// Source of T1, the transmit time of the probe.
    pub transmit_timestamp_source: StampSource,
    /// Both ends reported that their clocks are synchronised, or read the same clock.
    pub synchronised: bool,
    /// Error estimate of the clock of this host.
    pub clock_error_ns: Option<u64>,
    /// Error estimate that the reflector sent of its clock.
    pub reflector_clock_error_ns: Option<u64>,
    /// The local clock was stepped between T1 and T4.
    pub clock_stepped: bool,
    /// Sender TTL of the reply.
    pub egress_ttl: u8,
    /// TOS with which the probe reached the reflector, if it reports it.
    pub egress_tos: Option<u8>,
    /// T3 was corrected by a later report of the reflector (Follow-Up Telemetry).
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

/// Time by which a reflector may seem to send before it received: the receive stamp of its network
/// interface and the transmit stamp of its program come from clocks that differ by as much.
pub(super) const MAX_STAMP_SKEW_NS: i64 = 100_000;

impl Sample {
    /// Returns whether its delays are possible: time advanced on both clocks, except for the
    /// difference between the clocks of the reflector.
    pub fn is_valid(&self) -> bool {
        self.rtt_ns >= 0 && self.processing_ns >= -MAX_STAMP_SKEW_NS && !self.clock_stepped
    }

    /// Returns the validity of its one-way delays.
    pub fn validity(&self) -> OneWayValidity {
        if self.clock_stepped {
            OneWayValidity::ClockStepped
        } else if self.egress_ns < 0 || self.ingress_ns < 0 || self.processing_ns < 0 {
            OneWayValidity::Negative
        } else if self.synchronised {
            OneWayValidity::Valid
        } else {
            OneWayValidity::ClockUnsynchronised
        }
    }
}
