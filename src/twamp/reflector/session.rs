//! Negotiated session of a reflector.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{rate::Allowance, verdict::SessionCounters};
use crate::{
    model::limits::LOSS_TIMEOUT,
    time::{Monotonic, NANOS_PER_SECOND, TimestampFormat},
    wire::{codes::Sid, format::PacketFormat},
};

/// Silence after which a stopped session ends before its Timeout. It is longer than any packet is
/// in flight. A client with a long Timeout thus does not occupy sessions for all of it.
pub(super) const MAX_SILENT_DRAIN_NS: u64 = 30 * NANOS_PER_SECOND + LOSS_TIMEOUT.default;

/// Negotiated properties of a session.
#[derive(Clone, Debug)]
pub struct ReflectorSession {
    /// Session identifier of the server.
    pub sid: Sid,
    /// Address and port of the sender.
    pub sender: SocketAddr,
    /// TOS of all replies.
    pub tos: u8,
    /// Format of the test packets.
    pub format: PacketFormat,
    /// Format of T2 and T3.
    pub timestamps: TimestampFormat,
    /// Silence in nanoseconds after which a started session ends.
    pub refwait_ns: u64,
    /// Counters, shared with the server registry.
    pub counters: Arc<SessionCounters>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Accepted,
    Started,
    DrainingUntil(Monotonic),
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) spec: ReflectorSession,
    pub(super) phase: Phase,
    next_sequence: u32,
    /// Time of the next expiry check; `None` before the start.
    pub(super) expiry_check: Option<Monotonic>,
    pub(super) allowance: Allowance,
}

impl Session {
    pub(super) fn new(spec: ReflectorSession, now: Monotonic) -> Self {
        let session = Self {
            spec,
            phase: Phase::Accepted,
            next_sequence: 0,
            expiry_check: None,
            allowance: Allowance::default(),
        };
        session.note_activity(now);
        session
    }

    /// Records activity; the time is shared by all threads that have the session.
    pub(super) fn note_activity(&self, now: Monotonic) {
        self.spec.counters.last_packet_ns.store(now.0, Relaxed);
    }

    pub(super) fn answers(&self, now: Monotonic) -> bool {
        match self.phase {
            Phase::Accepted => false,
            Phase::Started => true,
            Phase::DrainingUntil(until) => now < until,
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::DrainingUntil(_))
    }

    /// Returns the time at which the session ends without further packets.
    pub(super) fn expiry(&self) -> Option<Monotonic> {
        match self.phase {
            Phase::Accepted => None,
            Phase::Started => Some(self.last_packet().plus_ns(self.spec.refwait_ns)),
            Phase::DrainingUntil(until) => {
                Some(until.min(self.last_packet().plus_ns(MAX_SILENT_DRAIN_NS)))
            }
        }
    }

    /// Returns true when a stopped session has ended.
    pub(super) fn is_over(&self, now: Monotonic) -> bool {
        self.is_stopped() && self.expiry().is_some_and(|expiry| expiry <= now)
    }

    pub(super) fn is_silent(&self, now: Monotonic) -> bool {
        self.phase == Phase::Started && now.since_ns(self.last_packet()) >= self.spec.refwait_ns
    }

    /// Returns the time of the latest packet, or of the latest command before it.
    fn last_packet(&self) -> Monotonic {
        Monotonic(self.spec.counters.last_packet_ns.load(Relaxed))
    }

    /// Counts a packet and returns the Sequence Number of its reply.
    pub(super) fn count_packet(&mut self, received: u32, now: Monotonic) -> u32 {
        self.note_activity(now);
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        let counters = &self.spec.counters;
        counters.received.fetch_add(1, Relaxed);
        counters.reflected.fetch_add(1, Relaxed);
        counters.last_received.store(received, Relaxed);
        counters.last_sent.store(sequence, Relaxed);
        sequence
    }
}
