//! What goes into a Session-Sender, and what comes out of it.

use super::StampSender;
use crate::{
    model::{AvailabilityRule, Schedule},
    proto::{Figures, ProbeResult, TestResult},
    time::TimestampFormat,
    wire::format::PacketFormat,
};

/// How tests are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderConfig {
    /// Probes in a test.
    pub probe_count: u32,
    /// Gap between probes.
    pub probe_interval_ns: u64,
    /// Periodic or Poisson.
    pub schedule: Schedule,
    /// Age at which a probe is lost.
    pub loss_timeout_ns: u64,
    /// Pause between tests.
    pub test_interval_ns: u64,
    /// Tests to be run in all; 0 is without end.
    pub test_count: u64,
    /// Octets of payload.
    pub data_size: u16,
    /// The reflector counts its replies for certain.
    pub reflector_counts: bool,
    /// When the path counts as unavailable.
    pub availability: AvailabilityRule,
}

/// How the packets of a session that is started look.
#[derive(Debug, Default)]
pub struct Carrier {
    /// Of probes and replies.
    pub format: PacketFormat,
    /// How T1 is written.
    pub timestamps: TimestampFormat,
    /// What STAMP adds.
    pub stamp: Option<Box<StampSender>>,
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub enum SenderEvent {
    /// The fate of a probe.
    Probe(ProbeResult),
    /// A test ended. All of it is in one minute by the clock, counted from 1970, or what there was
    /// of it in each was told by [`Self::Minute`].
    Test(Box<TestResult>, Option<u64>),
    /// What there was in one minute of a test that has part in several.
    Minute(u64, Box<Figures>),
    /// The last of `test_count` tests ended.
    Completed,
}
