//! Input and output of a Session-Sender.

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
    /// Gap between probes, or between bursts.
    pub probe_interval_ns: u64,
    /// Probes at each time of the schedule; at least 1.
    pub burst_size: u32,
    /// Distribution of the gaps between probes.
    pub schedule: Schedule,
    /// Age at which a probe is lost.
    pub loss_timeout_ns: u64,
    /// Pause between two tests, in nanoseconds.
    pub test_interval_ns: u64,
    /// Tests to be run in all; 0 is without end.
    pub test_count: u64,
    /// Octets of UDP payload.
    pub data_size: u16,
    /// The reflector counts its replies for certain.
    pub reflector_counts: bool,
    /// When the path counts as unavailable.
    pub availability: AvailabilityRule,
}

impl SenderConfig {
    /// The gap behind the probe of this place in a test, counted from 0. `random` is uniform.
    pub(super) fn gap_ns(&self, place: u32, random: u64) -> u64 {
        self.behind_burst(place, gap_ns(self.schedule, self.probe_interval_ns, random))
    }

    /// This gap behind the last probe of a burst, none behind the others.
    pub(super) fn behind_burst(&self, place: u32, gap_ns: u64) -> u64 {
        if (place + 1).is_multiple_of(self.burst_size) { gap_ns } else { 0 }
    }

    /// The time that so many probes take, in the mean, the gap behind them included.
    pub(super) fn span_ns(&self, probes: u32) -> u64 {
        self.probe_interval_ns.saturating_mul(probes.div_ceil(self.burst_size).into())
    }
}

/// Packet format of an established session.
#[derive(Debug, Default)]
pub struct Carrier {
    /// Of probes and replies.
    pub format: PacketFormat,
    /// Format of T1: NTP or PTP.
    pub timestamps: TimestampFormat,
    /// STAMP options; `None` for TWAMP test packets.
    pub stamp: Option<Box<StampSender>>,
}

/// Output of the sender.
#[derive(Clone, Debug, PartialEq)]
pub enum SenderEvent {
    /// The fate of a probe.
    Probe(ProbeResult),
    /// A test ended. All of it is in one minute by the clock, counted from 1970, or what there was
    /// of it in each was told by [`Self::Minute`].
    Test(Box<TestResult>, Option<u64>),
    /// Figures of one minute of a test that spans several, and the start of that test.
    Minute(u64, Box<Figures>, UnixTime),
    /// The last of `test_count` tests ended.
    Completed,
}
