//! Input and output of a Session-Sender.

use std::fmt;

use super::{super::schedule::gap_ns, StampSender};
use crate::{
    model::{AvailabilityRule, Schedule},
    stats::{Figures, ProbeResult, TestResult},
    time::{TimestampFormat, UnixTime},
    wire::format::PacketFormat,
};

/// Parameters of the tests of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderConfig {
    /// Probes in a test.
    pub probe_count: u32,
    /// Gap between probes, or between bursts, in nanoseconds.
    pub probe_interval_ns: u64,
    /// Probes at each time of the schedule; at least 1.
    pub burst_size: u32,
    /// Distribution of the gaps between probes.
    pub schedule: Schedule,
    /// Age at which an unanswered probe is lost, in nanoseconds.
    pub loss_timeout_ns: u64,
    /// Pause between the end of a test and the start of the next, in nanoseconds.
    pub test_interval_ns: u64,
    /// Tests to run before completion; 0 is without end.
    pub test_count: u64,
    /// Octets of UDP payload.
    pub data_size: u16,
    /// True if the reflector must number its replies itself, as a negotiated reflector does (RFC
    /// 5357 §4.2.1). A TWAMP Light reflector may copy the number of the probe.
    pub reflector_numbers_replies: bool,
    /// Definition of an unavailable path.
    pub availability: AvailabilityRule,
    /// Discards replies whose Error Estimate has Multiplier 0 (RFC 4656 §4.1.2).
    pub strict_error_estimate: bool,
}

/// Reason why a packet from the address of the reflector is not measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Shorter than a reply.
    TooShort,
    /// The HMAC does not match.
    BadMac,
    /// T2 or T3 is not a valid time.
    NoTime,
    /// Another STAMP session identifier.
    OtherSession,
    /// Error Estimate with Multiplier 0, under the strict rule.
    UnknownErrorEstimate,
    /// It answers no probe of the session: its Sender Sequence Number or Sender Timestamp differs.
    NoProbe,
    /// A further reply to the same probe.
    Duplicate,
    /// It arrived after the loss timeout.
    Late,
}

impl fmt::Display for Discard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooShort => "shorter than a reply",
            Self::BadMac => "wrong HMAC: keys or modes of both ends differ",
            Self::NoTime => "T2 or T3 is not a time",
            Self::OtherSession => "SSID of another session",
            Self::UnknownErrorEstimate => {
                "Error Estimate with Multiplier 0 (RFC 4656 section 4.1.2), which \
                 strict_error_estimate discards"
            }
            Self::NoProbe => "Sender Sequence Number or Sender Timestamp of no probe",
            Self::Duplicate => "another reply to the same probe",
            Self::Late => "later than the loss timeout",
        })
    }
}

impl SenderConfig {
    /// Returns the gap after the probe with this index in a test. `random` is uniform.
    pub(super) fn gap_ns(&self, index: u32, random: u64) -> u64 {
        self.gap_in_burst(index, gap_ns(self.schedule, self.probe_interval_ns, random))
    }

    /// Returns `gap_ns` after the last probe of a burst and 0 after the others.
    pub(super) fn gap_in_burst(&self, index: u32, gap_ns: u64) -> u64 {
        if (index + 1).is_multiple_of(self.burst_size) { gap_ns } else { 0 }
    }

    /// Returns the mean duration of `probes` probes, including the gap after the last.
    pub(super) fn span_ns(&self, probes: u32) -> u64 {
        self.probe_interval_ns.saturating_mul(probes.div_ceil(self.burst_size).into())
    }
}

/// Packet format of an established session.
#[derive(Debug, Default)]
pub struct Carrier {
    /// Format of probes and replies.
    pub format: PacketFormat,
    /// Format of T1: NTP or PTP.
    pub timestamps: TimestampFormat,
    /// True if the Z bit of replies gives the format of T2 and T3. It does in STAMP (RFC 8762
    /// §4.2.1) and where RFC 8186 was negotiated. Otherwise the bit has no meaning, and both are
    /// NTP timestamps.
    pub honours_z_bit: bool,
    /// STAMP options; `None` for TWAMP test packets.
    pub stamp: Option<Box<StampSender>>,
    /// True if an extension of TWAMP was negotiated. Such a server is assumed to number its replies
    /// itself.
    pub has_extensions: bool,
    /// True if both ends read the same clock, as on one host.
    pub shares_clock: bool,
}

/// Output of the sender.
#[derive(Clone, Debug, PartialEq)]
pub enum SenderEvent {
    /// Outcome of a probe.
    Probe(ProbeResult),
    /// Result of a test, and the minute (counted from 1970) in which all of its probes were sent;
    /// `None` if they span several, which [`Self::Minute`] has reported.
    Test(Box<TestResult>, Option<u64>),
    /// Minute (counted from 1970) of a test that spans several, its figures, and the start of the
    /// test.
    Minute(u64, Box<Figures>, UnixTime),
    /// The last of `test_count` tests ended.
    Completed,
}
