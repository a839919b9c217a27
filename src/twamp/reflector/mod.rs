//! The Session-Reflector of one UDP socket (RFC 5357 §4.2): negotiated sessions, told apart by the
//! sender's address and port, and for everybody else who is listed TWAMP Light or STAMP.
//!
//! [`Reflector::handle`] writes the reply but for T3 and neither allocates nor logs; the driver has
//! T3 written by [`Reflector::finish`] just before it hands the packet to the kernel.

mod deadlines;
mod light;
mod rate;
mod recent;
mod session;
mod stamp;
mod stamp_tlvs;
mod verdict;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use crate::{
    time::{ErrorEstimate, Monotonic, TimestampFormat, UnixTime},
    twamp::PacketMeta,
    wire::{
        codes::Sid,
        format::{PacketFormat, ProbeHeader, ReplyHeader, Unreadable},
    },
};
use deadlines::Deadlines;
use light::Light;
use rate::Senders;
use recent::RecentReplies;
use session::{Phase, Session};
use stamp::Stamp;

pub use light::{Allowances, LightPolicy};
pub use session::ReflectorSession;
pub use stamp::{StampPolicy, StampRule};
pub use verdict::{Finish, ReflectorCounters, SessionCounters, Verdict};

/// Why a session ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Stopped, and its timeout has passed.
    Drained,
    /// No packet of it came for REFWAIT.
    Silent,
}

/// Who is answered without a session.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Sessionless {
    /// Nobody.
    #[default]
    Nobody,
    /// Senders of TWAMP Light.
    Light(LightPolicy),
    /// Senders of STAMP, and those of TWAMP Light (RFC 8762 §4.6).
    Stamp(StampPolicy),
}

#[derive(Debug)]
enum Open {
    Nobody,
    Light(Light),
    Stamp(Box<Stamp>),
}

/// The machine.
#[derive(Debug)]
pub struct Reflector {
    local_port: u16,
    sessions: HashMap<SocketAddr, Session>,
    /// Where the session of an identifier is.
    senders: HashMap<Sid, SocketAddr>,
    deadlines: Deadlines,
    open: Open,
    recent: RecentReplies,
    /// Packets answered in a second to each sender; `None` for any number.
    sender_limit: Option<u32>,
    rates: Senders,
    counters: Arc<ReflectorCounters>,
}

impl Reflector {
    /// For a socket on this port.
    pub fn new(
        local_port: u16,
        sessionless: Sessionless,
        counters: Arc<ReflectorCounters>,
    ) -> Self {
        Self {
            local_port,
            sessions: HashMap::new(),
            senders: HashMap::new(),
            deadlines: Deadlines::default(),
            recent: recent(&sessionless),
            open: Open::new(sessionless),
            sender_limit: None,
            rates: Senders::default(),
            counters,
        }
    }

    /// Changes who is answered without a session.
    pub fn set_sessionless(&mut self, sessionless: Sessionless) {
        match (&mut self.open, sessionless) {
            (Open::Nobody, Sessionless::Nobody) => {}
            (Open::Light(light), Sessionless::Light(policy)) if light.policy == policy => {}
            (Open::Stamp(stamp), Sessionless::Stamp(policy)) if stamp.policy == policy => {}
            (Open::Light(light), Sessionless::Light(policy)) => light.set_policy(policy),
            (Open::Stamp(stamp), Sessionless::Stamp(policy)) => stamp.set_policy(policy),
            (_, sessionless) => {
                self.recent = recent(&sessionless);
                self.open = Open::new(sessionless);
            }
        }
    }

    /// Packets answered in a second to each sender, whether it has a session or not; `None` for any
    /// number.
    pub fn set_sender_limit(&mut self, limit: Option<u32>) {
        self.sender_limit = limit;
    }

    /// Takes a session, accepted and not started; `Err` if its sender has one here already. One
    /// that is stopped makes room, though its timeout has not passed: packets of the two could not
    /// be told apart. Which one did, if one did.
    pub fn add(
        &mut self,
        spec: ReflectorSession,
        now: Monotonic,
    ) -> Result<Option<Sid>, ReflectorSession> {
        let sender = key(spec.sender);
        if self.sessions.get(&sender).is_some_and(|session| !session.is_stopped()) {
            return Err(spec);
        }
        let sid = spec.sid;
        let before = self.sessions.insert(sender, Session::new(spec, now));
        let before = before.map(|session| session.spec.sid);
        if let Some(before) = before {
            self.senders.remove(&before);
        }
        self.senders.insert(sid, sender);
        Ok(before)
    }

    fn session(&mut self, sid: Sid) -> Option<&mut Session> {
        self.sessions.get_mut(self.senders.get(&sid)?)
    }

    /// Starts a session: from now on its packets are answered.
    pub fn start(&mut self, sid: Sid, now: Monotonic) {
        if let Some(session) = self.session(sid) {
            session.phase = Phase::Started;
            session.heard(now);
            self.look_again(sid);
        }
    }

    /// Stops a session: its packets are answered until `until`.
    pub fn drain(&mut self, sid: Sid, until: Monotonic) {
        if let Some(session) = self.session(sid) {
            session.phase = Phase::DrainingUntil(until);
            self.look_again(sid);
        }
    }

    /// When it ends, if nothing comes, it is looked at again.
    fn look_again(&mut self, sid: Sid) {
        let Some(sender) = self.senders.get(&sid).copied() else { return };
        if let Some(session) = self.sessions.get_mut(&sender) {
            session.looked_at = session.ends();
            if let Some(at) = session.looked_at {
                self.deadlines.set(at, sender);
            }
        }
    }

    /// Ends a session at once.
    pub fn remove(&mut self, sid: Sid) {
        if let Some(sender) = self.senders.remove(&sid) {
            self.sessions.remove(&sender);
        }
    }

    /// Ends what is over and tells it to `ended`: drained sessions, and started ones that were
    /// silent for REFWAIT.
    pub fn expire(&mut self, now: Monotonic, mut ended: impl FnMut(Sid, Ended)) {
        let sessions = &self.sessions;
        let holds = |sender: &SocketAddr, at| {
            sessions.get(sender).is_some_and(|session| session.looked_at == Some(at))
        };
        self.deadlines.tidy(sessions.len(), holds);
        while let Some((at, sender)) = self.deadlines.pop(now) {
            let session =
                self.sessions.get(&sender).filter(|session| session.looked_at == Some(at));
            let Some(session) = session else { continue };
            let sid = session.spec.sid;
            let end = match (session.is_silent(now), session.is_over(now)) {
                (true, _) => Ended::Silent,
                (_, true) => Ended::Drained,
                _ => {
                    self.look_again(sid);
                    continue;
                }
            };
            self.remove(sid);
            ended(sid, end);
        }
        self.rates.expire(now);
        match &mut self.open {
            Open::Nobody => {}
            Open::Light(light) => light.expire(now),
            Open::Stamp(stamp) => stamp.expire(now),
        }
    }

    /// Whether senders may ask where they are seen.
    pub fn tells_locations(&self) -> bool {
        matches!(self.open, Open::Stamp(_))
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
    /// longer of the packet and 112 octets. A reply that is given must be finished, in the order of
    /// the packets.
    pub fn handle(
        &mut self,
        meta: &PacketMeta,
        packet: &[u8],
        error_estimate: ErrorEstimate,
        now: Monotonic,
        reply: &mut [u8],
    ) -> Verdict {
        let verdict = self.decide(meta, packet, error_estimate, now, reply);
        self.counters.count(verdict);
        verdict
    }

    /// Writes T3 into a reply to `to`, and what protects it.
    pub fn finish(&mut self, to: SocketAddr, finish: Finish, reply: &mut [u8], t3: UnixTime) {
        let ntp = TimestampFormat::Ntp;
        let octets = match (finish, &mut self.open) {
            (Finish::Session, _) => {
                let Some(session) = self.sessions.get(&key(to)) else { return };
                let octets = session.spec.timestamps.encode(t3);
                session.spec.format.finish_reply(octets, reply);
                octets
            }
            (Finish::Stamp(key), Open::Stamp(stamp)) => {
                let octets = stamp.policy.timestamps.encode(t3);
                stamp.format(key).finish_reply(octets, reply);
                stamp.finished(to, octets);
                octets
            }
            (Finish::Light | Finish::Stamp(_), _) => {
                PacketFormat::open().finish_reply(ntp.encode(t3), reply);
                ntp.encode(t3)
            }
        };
        self.recent.sent(octets);
    }

    /// The kernel tells when a packet went out; `packet` ends with its payload.
    pub fn transmitted(&mut self, packet: &[u8], at: UnixTime) {
        if let Open::Stamp(stamp) = &mut self.open {
            stamp.transmitted(packet, at);
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
        let source = meta.source.ip();
        if meta.to_group
            || meta.source.port() == 0
            || source.is_multicast()
            || source.is_unspecified()
            || source == std::net::Ipv4Addr::BROADCAST
        {
            return Verdict::ReflectionLoop;
        }
        let Some(session) = self.sessions.get_mut(&key(meta.source)) else {
            return self.decide_without_session(meta, packet, error_estimate, now, reply);
        };
        if !session.answers(now) {
            return Verdict::NotStarted;
        }
        if !session.allowance.take(self.sender_limit, now) {
            return Verdict::RateLimited;
        }
        let format = &session.spec.format;
        let probe = match read(&self.recent, format, packet) {
            Ok(probe) => probe,
            Err(verdict) => return verdict,
        };
        let sequence = session.take(probe.sequence, now);
        let format = &session.spec.format;
        let estimate = error_estimate.with_format(session.spec.timestamps);
        let received = session.spec.timestamps.encode(meta.received);
        let header = header(meta, &probe, sequence, estimate, received);
        match write_reply(format, &header, packet, reply) {
            Some(octets) => {
                Verdict::Reply { octets, tos: session.spec.tos, finish: Finish::Session }
            }
            None => Verdict::TooShort,
        }
    }

    fn decide_without_session(
        &mut self,
        meta: &PacketMeta,
        packet: &[u8],
        error_estimate: ErrorEstimate,
        now: Monotonic,
        reply: &mut [u8],
    ) -> Verdict {
        // Two reflectors would answer each other for ever: one that sends from the port on which
        // this one listens is taken for a reflector.
        let from_a_reflector = meta.source.port() == self.local_port;
        match &mut self.open {
            Open::Nobody => Verdict::NoSession,
            Open::Stamp(stamp) if !stamp.knows(meta.source) => Verdict::NotListed,
            Open::Stamp(_) if from_a_reflector => Verdict::ReflectionLoop,
            Open::Light(light) => {
                let Some(prefix) = light.prefix_of(meta.source) else {
                    return Verdict::NotListed;
                };
                if from_a_reflector {
                    return Verdict::ReflectionLoop;
                }
                if !self.rates.allow(key(meta.source), self.sender_limit, now)
                    || !light.allows(prefix, now)
                {
                    return Verdict::RateLimited;
                }
                let format = PacketFormat::open();
                let probe = match read(&self.recent, &format, packet) {
                    Ok(probe) => probe,
                    Err(verdict) => return verdict,
                };
                let sequence = light.take(meta.source, probe.sequence, now);
                let received = TimestampFormat::Ntp.encode(meta.received);
                let header = header(meta, &probe, sequence, error_estimate, received);
                match write_reply(&format, &header, packet, reply) {
                    // The DSCP of replies is not provisioned here: best effort (RFC 7750 §2.2.1).
                    Some(octets) => Verdict::Reply { octets, tos: 0, finish: Finish::Light },
                    None => Verdict::TooShort,
                }
            }
            Open::Stamp(_) if !self.rates.allow(key(meta.source), self.sender_limit, now) => {
                Verdict::RateLimited
            }
            Open::Stamp(stamp) => {
                let (probe, key) = match stamp.read(meta.source, packet) {
                    Ok(read) => read,
                    Err(unreadable) => return unreadable.into(),
                };
                if let Some(verdict) = refused(&self.recent, stamp.format(key), &probe, packet) {
                    return verdict;
                }
                if !stamp.lists(meta.source, probe.ssid) {
                    return Verdict::NoSession;
                }
                let clock = (error_estimate, now);
                stamp.reply(meta, (&probe, key), packet, clock, (reply, &self.counters))
            }
        }
    }
}

/// How a sender is told from others: by address and port. The scope of a link-local address is not
/// part of what was negotiated.
fn key(sender: SocketAddr) -> SocketAddr {
    SocketAddr::new(sender.ip(), sender.port())
}

fn recent(sessionless: &Sessionless) -> RecentReplies {
    match sessionless {
        Sessionless::Nobody => RecentReplies::of_sessions(),
        Sessionless::Light(_) | Sessionless::Stamp(_) => RecentReplies::of_all(),
    }
}

impl Open {
    fn new(sessionless: Sessionless) -> Self {
        match sessionless {
            Sessionless::Nobody => Self::Nobody,
            Sessionless::Light(policy) => Self::Light(Light::new(policy)),
            Sessionless::Stamp(policy) => Self::Stamp(Box::new(Stamp::new(policy))),
        }
    }
}

impl From<Unreadable> for Verdict {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::TooShort => Self::TooShort,
            Unreadable::BadMac => Self::NotGenuine,
        }
    }
}

fn read(
    recent: &RecentReplies,
    format: &PacketFormat,
    packet: &[u8],
) -> Result<ProbeHeader, Verdict> {
    let probe = format.read_probe(packet)?;
    refused(recent, format, &probe, packet).map_or(Ok(probe), Err)
}

/// Why a packet that can be read is no probe to be answered.
fn refused(
    recent: &RecentReplies,
    format: &PacketFormat,
    probe: &ProbeHeader,
    packet: &[u8],
) -> Option<Verdict> {
    if probe.error_estimate.is_corrupt() {
        return Some(Verdict::Corrupt);
    }
    let copy = format.sender_timestamp_of_reply(packet);
    copy.is_some_and(|time| recent.knows(time)).then_some(Verdict::ReflectionLoop)
}

fn header(
    meta: &PacketMeta,
    probe: &ProbeHeader,
    sequence: u32,
    error_estimate: ErrorEstimate,
    receive_timestamp: u64,
) -> ReplyHeader {
    ReplyHeader {
        sequence,
        timestamp: 0,
        error_estimate,
        receive_timestamp,
        probe: *probe,
        sender_ttl: meta.ttl.unwrap_or(255),
        sender_tos: meta.tos,
    }
}

/// A reply as long as its probe, where it can be (RFC 5357 §4.2.1), with the padding of the probe
/// from its beginning on (RFC 6038 §5.2); its octets.
fn write_reply(
    format: &PacketFormat,
    header: &ReplyHeader,
    packet: &[u8],
    reply: &mut [u8],
) -> Option<usize> {
    let base = format.reply_octets();
    let octets = packet.len().max(base);
    let reply = reply.get_mut(..octets)?;
    format.write_reply(header, reply);
    let padding = packet.get(format.probe_octets()..)?;
    let room = octets - base;
    reply[base..].copy_from_slice(padding.get(..room)?);
    Some(octets)
}
