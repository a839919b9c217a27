//! Session-Reflector of one UDP socket (RFC 5357 §4.2): negotiated sessions, identified by the
//! sender's address and port, and TWAMP Light or STAMP for other listed senders.
//!
//! [`Reflector::handle`] writes a reply except T3 and neither allocates nor logs. The driver calls
//! [`Reflector::finish`] to write T3 immediately before it passes the packet to the kernel.

mod checks;
mod deadlines;
mod light;
mod rate;
mod recent;
mod reply;
mod session;
mod stamp;
mod stamp_tlvs;
mod verdict;

use std::{
    collections::HashMap,
    net::{SocketAddr, SocketAddrV6},
    sync::Arc,
};

use crate::{
    time::{ErrorEstimate, Monotonic, TimestampFormat, UnixTime},
    twamp::PacketMeta,
    wire::{
        codes::Sid,
        format::{PacketFormat, Unreadable},
    },
};
use checks::Checks;
use deadlines::Deadlines;
use light::Light;
use rate::SenderAllowances;
use recent::RecentReplies;
use reply::{reply_header, write_reply};
use session::{Phase, Session};
use stamp::Stamp;

pub use checks::PacketRules;
pub use light::{Allowances, LightPolicy};
pub use session::ReflectorSession;
pub use stamp::{StampPolicy, StampRule};
pub use verdict::{Finish, ReflectorCounters, SessionCounters, Verdict};

/// Reason why a session ended without a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Stopped, and its timeout has expired.
    Drained,
    /// No packet arrived for REFWAIT.
    Silent,
}

/// Policy for senders without a session.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Sessionless {
    /// Only senders with a session are answered.
    #[default]
    Dropped,
    /// Senders of TWAMP Light are answered.
    Light(LightPolicy),
    /// Senders of STAMP and of TWAMP Light (RFC 8762 §4.6) are answered.
    Stamp(StampPolicy),
}

/// Reflector for senders without a session.
#[derive(Debug)]
enum Fallback {
    Off,
    Light(Light),
    Stamp(Box<Stamp>),
}

/// State machine of a reflector socket.
#[derive(Debug)]
pub struct Reflector {
    local_port: u16,
    sessions: HashMap<SocketAddr, Session>,
    /// Sender of each session.
    senders: HashMap<Sid, SocketAddr>,
    deadlines: Deadlines,
    fallback: Fallback,
    recent: RecentReplies,
    rules: PacketRules,
    rates: SenderAllowances,
    counters: Arc<ReflectorCounters>,
}

impl Reflector {
    /// Creates a reflector for a socket on this port.
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
            recent: new_recent_replies(&sessionless),
            fallback: Fallback::new(sessionless),
            rules: PacketRules::default(),
            rates: SenderAllowances::default(),
            counters,
        }
    }

    /// Changes the policy for senders without a session.
    pub fn set_sessionless(&mut self, sessionless: Sessionless) {
        match (&mut self.fallback, sessionless) {
            (Fallback::Off, Sessionless::Dropped) => {}
            (Fallback::Light(light), Sessionless::Light(policy)) if light.policy == policy => {}
            (Fallback::Stamp(stamp), Sessionless::Stamp(policy)) if stamp.policy == policy => {}
            (Fallback::Light(light), Sessionless::Light(policy)) => light.set_policy(policy),
            (Fallback::Stamp(stamp), Sessionless::Stamp(policy)) => stamp.set_policy(policy),
            (_, sessionless) => {
                self.recent = new_recent_replies(&sessionless);
                self.fallback = Fallback::new(sessionless);
            }
        }
    }

    /// Sets the rules for packets with and without a session.
    pub fn set_rules(&mut self, rules: PacketRules) {
        self.rules = rules;
    }

    /// Adds an accepted session; fails if its sender already has one here. A stopped session of the
    /// sender is replaced even before its timeout, because the packets of the two are
    /// indistinguishable. Returns the SID of the replaced session.
    pub fn add(
        &mut self,
        spec: ReflectorSession,
        now: Monotonic,
    ) -> Result<Option<Sid>, ReflectorSession> {
        let sender = sender_key(spec.sender);
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

    /// Starts a session: its packets are answered from now on.
    pub fn start(&mut self, sid: Sid, now: Monotonic) {
        if let Some(session) = self.session(sid) {
            session.phase = Phase::Started;
            session.note_activity(now);
            self.reschedule_expiry(sid);
        }
    }

    /// Stops a session. Its packets are answered until `until`, or until no packet has arrived for
    /// 32 s.
    pub fn drain(&mut self, sid: Sid, until: Monotonic, now: Monotonic) {
        if let Some(session) = self.session(sid) {
            session.phase = Phase::DrainingUntil(until);
            session.note_activity(now);
            self.reschedule_expiry(sid);
        }
    }

    /// Schedules the next expiry check of a session.
    fn reschedule_expiry(&mut self, sid: Sid) {
        let Some(sender) = self.senders.get(&sid).copied() else { return };
        if let Some(session) = self.sessions.get_mut(&sender) {
            session.expiry_check = session.expiry();
            if let Some(at) = session.expiry_check {
                self.deadlines.set(at, sender);
            }
        }
    }

    /// Removes a session immediately.
    pub fn remove(&mut self, sid: Sid) {
        if let Some(sender) = self.senders.remove(&sid) {
            self.sessions.remove(&sender);
        }
    }

    /// Removes expired sessions and reports each to `ended`: drained ones, and started ones silent
    /// for REFWAIT.
    pub fn expire(&mut self, now: Monotonic, mut ended: impl FnMut(Sid, Ended)) {
        let sessions = &self.sessions;
        let is_valid = |sender: &SocketAddr, at| {
            sessions.get(sender).is_some_and(|session| session.expiry_check == Some(at))
        };
        self.deadlines.prune(sessions.len(), is_valid);
        while let Some((at, sender)) = self.deadlines.pop(now) {
            let session =
                self.sessions.get(&sender).filter(|session| session.expiry_check == Some(at));
            let Some(session) = session else { continue };
            let sid = session.spec.sid;
            let end = match (session.is_silent(now), session.is_over(now)) {
                (true, _) => Ended::Silent,
                (_, true) => Ended::Drained,
                _ => {
                    self.reschedule_expiry(sid);
                    continue;
                }
            };
            self.remove(sid);
            ended(sid, end);
        }
        self.rates.expire(now);
        match &mut self.fallback {
            Fallback::Off => {}
            Fallback::Light(light) => light.expire(now),
            Fallback::Stamp(stamp) => stamp.expire(now),
        }
    }

    /// Returns true if senders may query their MAC addresses (Location TLV).
    pub fn needs_neighbours(&self) -> bool {
        matches!(self.fallback, Fallback::Stamp(_))
    }

    /// Returns the number of sessions.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Returns true without sessions.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Handles a packet and writes its reply except T3 into `reply`, which must hold the longer of
    /// the packet and 112 octets. Replies must be finished in the order of their packets.
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

    /// Writes T3 into a reply and completes its protection.
    pub fn finish(&mut self, to: SocketAddr, finish: Finish, reply: &mut [u8], t3: UnixTime) {
        let ntp = TimestampFormat::Ntp;
        let octets = match (finish, &mut self.fallback) {
            (Finish::Session, _) => {
                let Some(session) = self.sessions.get(&sender_key(to)) else { return };
                let octets = session.spec.timestamps.encode(t3);
                session.spec.format.finish_reply(octets, reply);
                octets
            }
            (Finish::Stamp(key), Fallback::Stamp(stamp)) => {
                let octets = stamp.policy.timestamps.encode(t3);
                stamp.format(key).finish_reply(octets, reply);
                stamp.record_t3(to, octets);
                octets
            }
            (Finish::Light | Finish::Stamp(_), _) => {
                PacketFormat::open().finish_reply(ntp.encode(t3), reply);
                ntp.encode(t3)
            }
        };
        self.recent.insert(octets);
    }

    /// Handles the transmit time of a sent packet; `packet` ends with the UDP payload.
    pub fn transmitted(&mut self, packet: &[u8], at: UnixTime) {
        if let Fallback::Stamp(stamp) = &mut self.fallback {
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
        let Some(session) = self.sessions.get_mut(&sender_key(meta.source)) else {
            return self.decide_without_session(meta, packet, error_estimate, now, reply);
        };
        if !session.answers(now) {
            return Verdict::NotStarted;
        }
        if !session.allowance.consume(self.rules.sender_limit, now) {
            return Verdict::RateLimited;
        }
        let format = &session.spec.format;
        let checks = Checks::new(self.rules, &self.recent, &self.counters);
        let probe = match checks.read(format, packet) {
            Ok(probe) => probe,
            Err(verdict) => return verdict,
        };
        let sequence = session.count_packet(probe.sequence, now);
        let format = &session.spec.format;
        let estimate = error_estimate.with_format(session.spec.timestamps);
        let received = session.spec.timestamps.encode(meta.received);
        let header = reply_header(meta, &probe, sequence, estimate, received);
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
        // Two reflectors would answer each other forever. A packet whose source port is the port of
        // this reflector is therefore treated as the reply of another reflector.
        let from_a_reflector = meta.source.port() == self.local_port;
        match &mut self.fallback {
            Fallback::Off => Verdict::NoSession,
            Fallback::Stamp(stamp) if !stamp.may_answer(meta.source) => Verdict::NotListed,
            Fallback::Stamp(_) if from_a_reflector => Verdict::ReflectionLoop,
            Fallback::Light(light) => {
                let Some(prefix) = light.prefix_of(meta.source) else {
                    return Verdict::NotListed;
                };
                if from_a_reflector {
                    return Verdict::ReflectionLoop;
                }
                if !self.rates.allow(sender_key(meta.source), self.rules.sender_limit, now)
                    || !light.allows(prefix, now)
                {
                    return Verdict::RateLimited;
                }
                let format = PacketFormat::open();
                let checks = Checks::new(self.rules, &self.recent, &self.counters);
                let probe = match checks.read(&format, packet) {
                    Ok(probe) => probe,
                    Err(verdict) => return verdict,
                };
                let sequence = light.next_sequence(meta.source, probe.sequence, now);
                let received = TimestampFormat::Ntp.encode(meta.received);
                let header = reply_header(meta, &probe, sequence, error_estimate, received);
                match write_reply(&format, &header, packet, reply) {
                    // No DSCP is provisioned for replies: best effort (RFC 7750 §2.2.1).
                    Some(octets) => Verdict::Reply { octets, tos: 0, finish: Finish::Light },
                    None => Verdict::TooShort,
                }
            }
            Fallback::Stamp(_)
                if !self.rates.allow(sender_key(meta.source), self.rules.sender_limit, now) =>
            {
                Verdict::RateLimited
            }
            Fallback::Stamp(stamp) => {
                let (probe, key) = match stamp.read(meta.source, packet) {
                    Ok(read) => read,
                    Err(unreadable) => return unreadable.into(),
                };
                if !stamp.lists(meta.source, probe.ssid) {
                    return Verdict::NoSession;
                }
                let checks = Checks::new(self.rules, &self.recent, &self.counters);
                if let Some(verdict) = checks.find_refusal(stamp.format(key), &probe, packet) {
                    return verdict;
                }
                let clock = (error_estimate, now);
                stamp.reply(meta, (&probe, key), packet, clock, (reply, &self.counters))
            }
        }
    }
}

/// Returns the key of a sender: address and port, with the scope of a link-local address, which
/// another sender on another link may have as well. The flow label does not identify a sender.
fn sender_key(sender: SocketAddr) -> SocketAddr {
    match sender {
        SocketAddr::V4(_) => sender,
        SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
    }
}

fn new_recent_replies(sessionless: &Sessionless) -> RecentReplies {
    match sessionless {
        Sessionless::Dropped => RecentReplies::for_sessions(),
        Sessionless::Light(_) | Sessionless::Stamp(_) => RecentReplies::for_any_sender(),
    }
}

impl Fallback {
    fn new(sessionless: Sessionless) -> Self {
        match sessionless {
            Sessionless::Dropped => Self::Off,
            Sessionless::Light(policy) => Self::Light(Light::new(policy)),
            Sessionless::Stamp(policy) => Self::Stamp(Box::new(Stamp::new(policy))),
        }
    }
}

impl From<Unreadable> for Verdict {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::TooShort => Self::TooShort,
            Unreadable::BadMac => Self::IntegrityFailed,
        }
    }
}
