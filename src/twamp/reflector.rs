//! The Session-Reflector of one UDP socket (RFC 5357 §4.2): negotiated sessions, told apart by the
//! sender's address and port, and TWAMP Light (appendix I) for everybody else who is listed.
//!
//! [`Reflector::handle`] writes the whole reply but T3 and neither allocates nor logs; the driver
//! stamps T3 with [`stamp`] just before it hands the packet to the kernel.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use ipnet::IpNet;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::{
    time::{ErrorEstimate, Monotonic, NtpTimestamp, UnixTime},
    wire::{
        Layout,
        codes::Sid,
        test::{REFLECTOR_PACKET_OCTETS, ReflectorPacket, SENDER_PACKET_OCTETS, SenderPacket},
    },
};

/// Senders that a stateful light reflector counts for; beyond that, numbers are copied.
const LIGHT_SENDERS: usize = 100_000;

/// What the kernel tells of a packet.
#[derive(Clone, Copy, Debug)]
pub struct PacketMeta {
    /// Where it came from.
    pub source: SocketAddr,
    /// T2.
    pub received: UnixTime,
    /// TTL or hop limit; `None` where the kernel did not tell.
    pub ttl: Option<u8>,
}

/// What becomes of a packet. Each is counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send the first `octets` of the buffer with this TOS.
    Reply {
        /// Octets of the reply.
        octets: usize,
        /// TOS or traffic class.
        tos: u8,
    },
    /// Of no session, and no light reflector here.
    NoSession,
    /// Of a session that is not started or has ended.
    NotStarted,
    /// Shorter than a test packet.
    TooShort,
    /// Multiplier 0.
    Corrupt,
    /// Not in the prefixes of the light reflector.
    NotListed,
    /// From a reflector, or to nobody.
    ReflectionLoop,
}

/// Why a session ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Stopped, and its timeout has passed.
    Drained,
    /// No packet of it came for REFWAIT.
    Silent,
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
    /// [`Verdict::NoSession`].
    pub no_session: AtomicU64,
    /// [`Verdict::NotStarted`].
    pub not_started: AtomicU64,
    /// [`Verdict::TooShort`].
    pub too_short: AtomicU64,
    /// [`Verdict::Corrupt`].
    pub corrupt: AtomicU64,
    /// [`Verdict::NotListed`].
    pub not_listed: AtomicU64,
    /// [`Verdict::ReflectionLoop`].
    pub reflection_loop: AtomicU64,
    /// Replies that the socket did not take.
    pub send_failed: AtomicU64,
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

/// A negotiated session.
#[derive(Debug)]
pub struct ReflectorSession {
    /// Identifier.
    pub sid: Sid,
    /// Address and port that packets must come from.
    pub sender: SocketAddr,
    /// TOS of the replies.
    pub tos: u8,
    /// Silence after which a started session ends, nanoseconds.
    pub refwait_ns: u64,
    /// Shared with whoever asks for them.
    pub counters: Arc<SessionCounters>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Accepted,
    Started,
    DrainingUntil(Monotonic),
}

#[derive(Debug)]
struct Session {
    spec: ReflectorSession,
    phase: Phase,
    next_sequence: u32,
    last_packet: Monotonic,
    /// T3 of the latest reply: a packet that carries it as its sender's time is a reflected one.
    last_reply: u64,
}

/// Who is answered without a session.
#[derive(Clone, Debug, PartialEq)]
pub struct LightPolicy {
    /// Prefixes answered.
    pub prefixes: Vec<IpNet>,
    /// Count replies for each sender.
    pub stateful: bool,
    /// Silence after which a sender's count is forgotten, nanoseconds.
    pub refwait_ns: u64,
}

#[derive(Debug)]
struct LightSender {
    next_sequence: u32,
    last_packet: Monotonic,
}

/// The machine.
#[derive(Debug)]
pub struct Reflector {
    local_port: u16,
    sessions: HashMap<SocketAddr, Session>,
    light: Option<LightPolicy>,
    light_senders: HashMap<SocketAddr, LightSender>,
    counters: Arc<ReflectorCounters>,
}

impl Reflector {
    /// For a socket on this port.
    pub fn new(
        local_port: u16,
        light: Option<LightPolicy>,
        counters: Arc<ReflectorCounters>,
    ) -> Self {
        Self {
            local_port,
            sessions: HashMap::new(),
            light,
            light_senders: HashMap::new(),
            counters,
        }
    }

    /// Changes who is answered without a session.
    pub fn set_light(&mut self, light: Option<LightPolicy>) {
        if self.light != light {
            self.light = light;
            self.light_senders.clear();
        }
    }

    /// Takes a session, accepted and not started; `false` if its sender has one here already.
    pub fn add(&mut self, spec: ReflectorSession, now: Monotonic) -> bool {
        let taken = self.sessions.get(&spec.sender).is_some_and(|s| !s.is_over(now));
        if taken {
            return false;
        }
        let (phase, last_packet) = (Phase::Accepted, now);
        self.sessions.insert(
            spec.sender,
            Session { spec, phase, next_sequence: 0, last_packet, last_reply: 0 },
        );
        true
    }

    /// Whether a session of this sender is here.
    pub fn has(&self, sender: SocketAddr, now: Monotonic) -> bool {
        self.sessions.get(&sender).is_some_and(|session| !session.is_over(now))
    }

    /// Starts a session: from now on its packets are answered.
    pub fn start(&mut self, sid: Sid, now: Monotonic) {
        if let Some(session) = self.sessions.values_mut().find(|s| s.spec.sid == sid) {
            session.phase = Phase::Started;
            session.last_packet = now;
        }
    }

    /// Stops a session: its packets are answered until `until`.
    pub fn drain(&mut self, sid: Sid, until: Monotonic) {
        if let Some(session) = self.sessions.values_mut().find(|s| s.spec.sid == sid) {
            session.phase = Phase::DrainingUntil(until);
        }
    }

    /// Ends a session at once.
    pub fn remove(&mut self, sid: Sid) {
        self.sessions.retain(|_, session| session.spec.sid != sid);
    }

    /// Ends what is over and tells it to `ended`: drained sessions, and started ones that were
    /// silent for REFWAIT.
    pub fn expire(&mut self, now: Monotonic, mut ended: impl FnMut(Sid, Ended)) {
        self.sessions.retain(|_, session| {
            let silent = session.phase == Phase::Started
                && now.since_ns(session.last_packet) >= session.spec.refwait_ns;
            let end = match (silent, session.is_over(now)) {
                (true, _) => Ended::Silent,
                (_, true) => Ended::Drained,
                _ => return true,
            };
            ended(session.spec.sid, end);
            false
        });
        if let Some(light) = &self.light {
            self.light_senders.retain(|_, s| now.since_ns(s.last_packet) < light.refwait_ns);
        }
    }

    /// Sessions that are not over.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Decides over a packet and writes its reply, but for T3, into `reply`, which must hold the
    /// longer of the packet and 41 octets.
    pub fn handle(
        &mut self,
        meta: &PacketMeta,
        packet: &[u8],
        error_estimate: ErrorEstimate,
        now: Monotonic,
        reply: &mut [u8],
    ) -> Verdict {
        let verdict = self.decide(meta, packet, error_estimate, now, reply);
        let counters = &self.counters;
        counters.received.fetch_add(1, Relaxed);
        let counter = match verdict {
            Verdict::Reply { .. } => &counters.reflected,
            Verdict::NoSession => &counters.no_session,
            Verdict::NotStarted => &counters.not_started,
            Verdict::TooShort => &counters.too_short,
            Verdict::Corrupt => &counters.corrupt,
            Verdict::NotListed => &counters.not_listed,
            Verdict::ReflectionLoop => &counters.reflection_loop,
        };
        counter.fetch_add(1, Relaxed);
        verdict
    }

    /// Remembers the T3 that the driver stamped, to know the packet again if it comes back.
    pub fn replied(&mut self, sender: SocketAddr, t3: NtpTimestamp) {
        if let Some(session) = self.sessions.get_mut(&sender) {
            session.last_reply = t3.0;
        }
    }

    fn decide(
        &mut self,
        meta: &PacketMeta,
        packet: &[u8],
        error_estimate: ErrorEstimate,
        now: Monotonic,
        reply: &mut [u8],
    ) -> Verdict {
        let Some(probe) = SenderPacket::read(packet) else { return Verdict::TooShort };
        if ErrorEstimate(probe.error_estimate.get()).is_corrupt() {
            return Verdict::Corrupt;
        }
        let sequence = probe.sequence.get();
        let (sequence, tos) = match self.sessions.get_mut(&meta.source) {
            Some(session) => {
                if !session.answers(now) {
                    return Verdict::NotStarted;
                }
                if session.is_own_reply(packet) {
                    return Verdict::ReflectionLoop;
                }
                (session.take(sequence, now), session.spec.tos)
            }
            None => match self.light(meta, sequence, now) {
                // The DSCP of replies is not provisioned here: best effort (RFC 7750 §2.2.1).
                Ok(sequence) => (sequence, 0),
                Err(verdict) => return verdict,
            },
        };
        let octets = packet.len().max(REFLECTOR_PACKET_OCTETS);
        let Some(reply) = reply.get_mut(..octets) else { return Verdict::TooShort };
        write_reply(meta, probe, sequence, error_estimate, reply);
        // The padding of the probe from its beginning on (RFC 5357 §4.2.1).
        let padding = octets - REFLECTOR_PACKET_OCTETS;
        reply[REFLECTOR_PACKET_OCTETS..]
            .copy_from_slice(&packet[SENDER_PACKET_OCTETS..SENDER_PACKET_OCTETS + padding]);
        Verdict::Reply { octets, tos }
    }

    fn light(&mut self, meta: &PacketMeta, sequence: u32, now: Monotonic) -> Result<u32, Verdict> {
        let Some(light) = &self.light else { return Err(Verdict::NoSession) };
        let source = meta.source.ip();
        if !light.prefixes.iter().any(|prefix| prefix.contains(&source)) {
            return Err(Verdict::NotListed);
        }
        // Two light reflectors would answer each other for ever: one that sends from the port on
        // which this one listens is taken for a reflector.
        if meta.source.port() == self.local_port
            || meta.source.port() == 0
            || source.is_multicast()
            || source.is_unspecified()
        {
            return Err(Verdict::ReflectionLoop);
        }
        self.counters.reflected_light.fetch_add(1, Relaxed);
        if !light.stateful {
            return Ok(sequence);
        }
        let full = self.light_senders.len() >= LIGHT_SENDERS;
        if full && !self.light_senders.contains_key(&meta.source) {
            return Ok(sequence);
        }
        let sender = self
            .light_senders
            .entry(meta.source)
            .or_insert(LightSender { next_sequence: 0, last_packet: now });
        let next = sender.next_sequence;
        sender.next_sequence = next.wrapping_add(1);
        sender.last_packet = now;
        Ok(next)
    }
}

impl Session {
    fn answers(&self, now: Monotonic) -> bool {
        match self.phase {
            Phase::Accepted => false,
            Phase::Started => true,
            Phase::DrainingUntil(until) => now < until,
        }
    }

    fn is_over(&self, now: Monotonic) -> bool {
        matches!(self.phase, Phase::DrainingUntil(until) if until <= now)
    }

    fn is_own_reply(&self, packet: &[u8]) -> bool {
        self.last_reply != 0
            && ReflectorPacket::read(packet)
                .is_some_and(|reply| reply.sender_timestamp.get() == self.last_reply)
    }

    /// Counts a packet and gives its reply a number.
    fn take(&mut self, received: u32, now: Monotonic) -> u32 {
        self.last_packet = now;
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

fn write_reply(
    meta: &PacketMeta,
    probe: &SenderPacket,
    sequence: u32,
    error_estimate: ErrorEstimate,
    reply: &mut [u8],
) {
    let mut packet = ReflectorPacket::new_zeroed();
    packet.sequence = sequence.into();
    packet.error_estimate = error_estimate.0.into();
    packet.receive_timestamp = NtpTimestamp::from_unix(meta.received).0.into();
    packet.sender_sequence = probe.sequence;
    packet.sender_timestamp = probe.timestamp;
    packet.sender_error_estimate = probe.error_estimate;
    packet.sender_ttl = meta.ttl.unwrap_or(255);
    reply[..REFLECTOR_PACKET_OCTETS].copy_from_slice(packet.as_bytes());
}

/// Writes T3 into a reply.
pub fn stamp(reply: &mut [u8], t3: NtpTimestamp) {
    if let Ok((packet, _)) = ReflectorPacket::mut_from_prefix(reply) {
        packet.timestamp = t3.0.into();
    }
}
