//! What becomes of a packet, and the counters of it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::proto::PacketCounters;

/// How a reply is to be finished once T3 is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// As the format of its session says.
    Session,
    /// Open, without a session.
    Light,
    /// As STAMP, with the key of this index where there is authentication.
    Stamp(Option<u8>),
}

/// What becomes of a packet. Each is counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send the first `octets` of the buffer with this TOS, once [`super::Reflector::finish`] did
    /// its part.
    Reply {
        /// Octets of the reply.
        octets: usize,
        /// TOS or traffic class.
        tos: u8,
        /// For [`super::Reflector::finish`].
        finish: Finish,
    },
    /// Of no session, and no reflector without sessions here.
    NoSession,
    /// Of a session that is not started or has ended.
    NotStarted,
    /// Shorter than a test packet.
    TooShort,
    /// Multiplier 0.
    Corrupt,
    /// The HMAC is wrong.
    NotGenuine,
    /// Not from whom the reflector without sessions answers.
    NotListed,
    /// From a reflector, or to nobody.
    ReflectionLoop,
    /// More than may be answered to its sender or its prefix.
    RateLimited,
}

/// Counters of the reflectors of one thread; one addition per packet.
#[derive(Debug, Default)]
pub struct ReflectorCounters {
    /// Packets received.
    pub received: AtomicU64,
    /// Packets answered.
    pub reflected: AtomicU64,
    /// Packets answered by the light reflector.
    pub reflected_light: AtomicU64,
    /// Packets answered by the STAMP reflector.
    pub reflected_stamp: AtomicU64,
    /// [`Verdict::NoSession`].
    pub no_session: AtomicU64,
    /// [`Verdict::NotStarted`].
    pub not_started: AtomicU64,
    /// [`Verdict::TooShort`].
    pub too_short: AtomicU64,
    /// [`Verdict::Corrupt`].
    pub corrupt: AtomicU64,
    /// [`Verdict::NotGenuine`].
    pub not_genuine: AtomicU64,
    /// [`Verdict::NotListed`].
    pub not_listed: AtomicU64,
    /// [`Verdict::ReflectionLoop`].
    pub reflection_loop: AtomicU64,
    /// [`Verdict::RateLimited`].
    pub rate_limited: AtomicU64,
    /// Replies that the socket did not take.
    pub send_failed: AtomicU64,
    /// Packets that the socket had no room for.
    pub no_room: AtomicU64,
    /// STAMP packets whose TLVs were answered with the flag for malformed ones.
    pub tlvs_malformed: AtomicU64,
    /// STAMP packets whose TLVs were answered with the flag for failed integrity.
    pub tlvs_integrity_failed: AtomicU64,
    /// Access Reports of STAMP.
    pub access_reports: AtomicU64,
}

impl ReflectorCounters {
    /// This and `sum` together.
    pub fn add_to(&self, sum: PacketCounters) -> PacketCounters {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let send_failed = of(&self.send_failed);
        let reflected = of(&self.reflected).saturating_sub(send_failed);
        PacketCounters {
            received: sum.received + of(&self.received),
            reflected: sum.reflected + reflected,
            dropped_no_session: sum.dropped_no_session + of(&self.no_session),
            dropped_not_started: sum.dropped_not_started + of(&self.not_started),
            dropped_too_short: sum.dropped_too_short + of(&self.too_short),
            dropped_corrupt: sum.dropped_corrupt + of(&self.corrupt),
            dropped_not_listed: sum.dropped_not_listed + of(&self.not_listed),
            dropped_reflection_loop: sum.dropped_reflection_loop + of(&self.reflection_loop),
            dropped_send_failed: sum.dropped_send_failed + send_failed,
            reflected_light: sum.reflected_light + of(&self.reflected_light),
            reflected_stamp: sum.reflected_stamp + of(&self.reflected_stamp),
            dropped_integrity_failed: sum.dropped_integrity_failed + of(&self.not_genuine),
            tlvs_malformed: sum.tlvs_malformed + of(&self.tlvs_malformed),
            tlvs_integrity_failed: sum.tlvs_integrity_failed + of(&self.tlvs_integrity_failed),
            access_reports: sum.access_reports + of(&self.access_reports),
            dropped_rate_limited: sum.dropped_rate_limited + of(&self.rate_limited),
            dropped_buffer_full: sum.dropped_buffer_full + of(&self.no_room),
        }
    }

    pub(super) fn count(&self, verdict: Verdict) {
        self.received.fetch_add(1, Relaxed);
        let counter = match verdict {
            Verdict::Reply { finish, .. } => {
                match finish {
                    Finish::Session => {}
                    Finish::Light => drop(self.reflected_light.fetch_add(1, Relaxed)),
                    Finish::Stamp(_) => drop(self.reflected_stamp.fetch_add(1, Relaxed)),
                }
                &self.reflected
            }
            Verdict::NoSession => &self.no_session,
            Verdict::NotStarted => &self.not_started,
            Verdict::TooShort => &self.too_short,
            Verdict::Corrupt => &self.corrupt,
            Verdict::NotGenuine => &self.not_genuine,
            Verdict::NotListed => &self.not_listed,
            Verdict::ReflectionLoop => &self.reflection_loop,
            Verdict::RateLimited => &self.rate_limited,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// Counters of one session.
#[derive(Debug, Default)]
pub struct SessionCounters {
    /// Packets received.
    pub received: AtomicU64,
    /// Packets answered.
    pub reflected: AtomicU64,
    /// Latest Sequence Number received.
    pub last_received: AtomicU32,
    /// Latest Sequence Number sent.
    pub last_sent: AtomicU32,
    /// When the latest packet came, on the monotonic clock.
    pub last_packet_ns: AtomicU64,
}
