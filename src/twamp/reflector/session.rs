//! A negotiated session of a reflector.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{rate::Allowance, verdict::SessionCounters};
use crate::{
    time::{Monotonic, TimestampFormat},
    wire::{codes::Sid, format::PacketFormat},
};

/// What was negotiated.
#[derive(Clone, Debug)]
pub struct ReflectorSession {
    /// Identifier.
    pub sid: Sid,
    /// Address and port that packets must come from.
    pub sender: SocketAddr,
    /// TOS of the replies.
    pub tos: u8,
    /// What packets look like.
    pub format: PacketFormat,
    /// How T2 and T3 are written.
    pub timestamps: TimestampFormat,
    /// Silence after which a started session ends, nanoseconds.
    pub refwait_ns: u64,
    /// Shared with whoever asks for them.
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
    /// When it is looked at again; `None` before it is started.
    pub(super) looked_at: Option<Monotonic>,
    pub(super) allowance: Allowance,
}

impl Session {
    pub(super) fn new(spec: ReflectorSession, now: Monotonic) -> Self {
        let session = Self {
            spec,
            phase: Phase::Accepted,
            next_sequence: 0,
            looked_at: None,
            allowance: Allowance::default(),
        };
        session.heard(now);
        session
    }

    /// A packet came, to this machine or to another one that has the same session, or it begins
    /// to be waited for.
    pub(super) fn heard(&self, now: Monotonic) {
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

    /// When it ends, if nothing comes.
    pub(super) fn ends(&self) -> Option<Monotonic> {
        match self.phase {
            Phase::Accepted => None,
            Phase::Started => {
                let last_packet = Monotonic(self.spec.counters.last_packet_ns.load(Relaxed));
                Some(last_packet.plus_ns(self.spec.refwait_ns))
            }
            Phase::DrainingUntil(until) => Some(until),
        }
    }

    pub(super) fn is_over(&self, now: Monotonic) -> bool {
        matches!(self.phase, Phase::DrainingUntil(until) if until <= now)
    }

    pub(super) fn is_silent(&self, now: Monotonic) -> bool {
        self.phase == Phase::Started && {
            let last_packet = Monotonic(self.spec.counters.last_packet_ns.load(Relaxed));
            now.since_ns(last_packet) >= self.spec.refwait_ns
        }
    }

    /// Counts a packet and gives its reply a number.
    pub(super) fn take(&mut self, received: u32, now: Monotonic) -> u32 {
        self.heard(now);
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
