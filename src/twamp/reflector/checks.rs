//! Checks of readable packets before they are answered.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    recent::RecentReplies,
    verdict::{ReflectorCounters, Verdict},
};
use crate::wire::format::{PacketFormat, ProbeHeader};

/// Rules for all packets of a reflector socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketRules {
    /// Limit of replies per second to each sender, with or without session; `None` for no limit.
    pub sender_limit: Option<u32>,
    /// Drops packets whose Error Estimate has Multiplier 0 (RFC 4656 §4.1.2). Otherwise they are
    /// answered and counted: senders without a synchronised clock write zeros.
    pub strict_error_estimate: bool,
}

/// Checks of a packet, with the state that they need.
pub(super) struct Checks<'a> {
    rules: PacketRules,
    recent: &'a RecentReplies,
    counters: &'a ReflectorCounters,
}

impl<'a> Checks<'a> {
    pub(super) fn new(
        rules: PacketRules,
        recent: &'a RecentReplies,
        counters: &'a ReflectorCounters,
    ) -> Self {
        Self { rules, recent, counters }
    }

    /// Reads a packet that may be answered.
    pub(super) fn read(
        &self,
        format: &PacketFormat,
        packet: &[u8],
    ) -> Result<ProbeHeader, Verdict> {
        let probe = format.read_probe(packet)?;
        self.find_refusal(format, &probe, packet).map_or(Ok(probe), Err)
    }

    /// Returns the verdict on a readable packet that must not be answered.
    pub(super) fn find_refusal(
        &self,
        format: &PacketFormat,
        probe: &ProbeHeader,
        packet: &[u8],
    ) -> Option<Verdict> {
        let is_unknown = probe.error_estimate.is_unknown();
        if is_unknown && self.rules.strict_error_estimate {
            return Some(Verdict::Corrupt);
        }
        let copy = format.sender_timestamp_of_reply(packet);
        if copy.is_some_and(|time| self.recent.contains(time)) {
            return Some(Verdict::ReflectionLoop);
        }
        if is_unknown {
            self.counters.unknown_error_estimate.fetch_add(1, Relaxed);
        }
        None
    }
}
