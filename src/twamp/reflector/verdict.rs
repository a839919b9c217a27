//! What becomes of a packet, and the counters of it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

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
    /// More than may be answered to its prefix.
    RateLimited,
}

/// Counters of all reflectors of a server; one addition per packet.
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
    /// STAMP packets whose TLVs were answered with the flag for malformed ones.
    pub tlvs_malformed: AtomicU64,
    /// STAMP packets whose TLVs were answered with the flag for failed integrity.
    pub tlvs_not_genuine: AtomicU64,
    /// Access Reports of STAMP.
    pub access_reports: AtomicU64,
}

impl ReflectorCounters {
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
}
