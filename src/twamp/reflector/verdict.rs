//! Verdicts on received packets and their counters.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Format in which to finish a reply once T3 is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// In the format of its session.
    Session,
    /// In the open format, without a session.
    Light,
    /// In the STAMP format, with the key of this index when authenticated.
    Stamp(Option<u8>),
}

/// Verdict on a received packet; each is counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send a reply after [`super::Reflector::finish`].
    Reply {
        /// Length of the reply in octets.
        octets: usize,
        /// TOS or traffic class.
        tos: u8,
        /// Argument to pass to [`super::Reflector::finish`].
        finish: Finish,
    },
    /// No session, and no reflector without sessions on this socket.
    NoSession,
    /// The session is not started or has ended.
    NotStarted,
    /// Shorter than a test packet.
    TooShort,
    /// Error Estimate with Multiplier 0, under the strict rule.
    Corrupt,
    /// The HMAC does not match.
    IntegrityFailed,
    /// The sender is not listed for the reflector without sessions.
    NotListed,
    /// From another reflector, from an address or port that cannot be a sender's, or addressed to a
    /// broadcast or multicast group.
    ReflectionLoop,
    /// A rate limit of the sender or prefix is reached.
    RateLimited,
}

/// Counters of the reflectors of one thread.
#[derive(Debug, Default)]
pub struct ReflectorCounters {
    /// All packets received, including those that are dropped.
    pub received: AtomicU64,
    /// All packets reflected, with or without a session.
    pub reflected: AtomicU64,
    /// Packets reflected by the TWAMP Light reflector; part of `reflected`.
    pub reflected_light: AtomicU64,
    /// Packets reflected by the STAMP reflector; part of `reflected`.
    pub reflected_stamp: AtomicU64,
    /// Packets counted as [`Verdict::NoSession`].
    pub no_session: AtomicU64,
    /// Packets counted as [`Verdict::NotStarted`].
    pub not_started: AtomicU64,
    /// Packets counted as [`Verdict::TooShort`].
    pub too_short: AtomicU64,
    /// Packets counted as [`Verdict::Corrupt`].
    pub corrupt: AtomicU64,
    /// Packets counted as [`Verdict::IntegrityFailed`].
    pub integrity_failed: AtomicU64,
    /// Packets counted as [`Verdict::NotListed`].
    pub not_listed: AtomicU64,
    /// Packets counted as [`Verdict::ReflectionLoop`].
    pub reflection_loop: AtomicU64,
    /// Packets counted as [`Verdict::RateLimited`].
    pub rate_limited: AtomicU64,
    /// Replies that could not be sent.
    pub send_failed: AtomicU64,
    /// Packets dropped for lack of receive buffer.
    pub buffer_full: AtomicU64,
    /// STAMP packets answered with the flag M (malformed TLV).
    pub tlvs_malformed: AtomicU64,
    /// STAMP packets answered with the flag I (integrity check failed).
    pub tlvs_integrity_failed: AtomicU64,
    /// Packets with an Error Estimate of Multiplier 0 that are not dropped for it.
    pub unknown_error_estimate: AtomicU64,
    /// STAMP Access Reports received.
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
            Verdict::IntegrityFailed => &self.integrity_failed,
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
    /// Packets received in the session.
    pub received: AtomicU64,
    /// Packets answered in the session.
    pub reflected: AtomicU64,
    /// Latest Sequence Number received.
    pub last_received: AtomicU32,
    /// Latest Sequence Number sent.
    pub last_sent: AtomicU32,
    /// Arrival time of the latest packet on the monotonic clock.
    pub last_packet_ns: AtomicU64,
}
