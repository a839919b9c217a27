//! STAMP (RFC 8762, RFC 8972): listed senders are answered without a control connection.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use ipnet::IpNet;

use super::{
    reply::reply_header,
    stamp_tlvs::{ProbeContext, SessionState, TlvOutcome, process_tlvs, signing_key},
    verdict::{Finish, ReflectorCounters, Verdict},
};
use crate::{
    model::Secret,
    time::{ErrorEstimate, Monotonic, TimestampFormat, UnixTime},
    twamp::PacketMeta,
    wire::{
        crypto::StampKey,
        format::{PacketFormat, ProbeHeader, Protection, STAMP_OCTETS, Unreadable},
    },
};

/// Largest number of sessions with counters. Replies in further sessions repeat the Sequence Number
/// of the probe.
const MAX_SESSIONS: usize = 100_000;
/// Largest number of replies that wait for their transmit timestamp.
const MAX_UNSTAMPED: usize = 256;
/// Octets of the shortest TWAMP Light probe, which is answered as well (RFC 8762 §4.6).
const LIGHT_PROBE_OCTETS: usize = 14;

/// Senders that are answered, and properties of the replies.
#[derive(Clone, Debug, PartialEq)]
pub struct StampPolicy {
    /// Provisioned sessions; other probes are dropped.
    pub sessions: Vec<StampRule>,
    /// Counts replies for each session.
    pub stateful: bool,
    /// Answers only packets with a valid HMAC.
    pub authenticated: bool,
    /// Secrets that senders may use for their HMACs.
    pub secrets: Vec<Secret>,
    /// Lets a probe choose the DSCP of its reply (Class of Service TLV).
    pub allow_class_of_service: bool,
    /// Format of T2 and T3.
    pub timestamps: TimestampFormat,
    /// Silence in nanoseconds after which the counters of a session are dropped.
    pub refwait_ns: u64,
}

/// Provisioned sessions of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct StampRule {
    /// Prefix of the senders.
    pub prefix: IpNet,
    /// UDP port of the senders; `None` for any.
    pub port: Option<u16>,
    /// SSID of the probes; `None` for any.
    pub ssid: Option<u16>,
}

#[derive(Debug)]
pub(super) struct Stamp {
    pub(super) policy: StampPolicy,
    keys: Vec<Arc<StampKey>>,
    open: PacketFormat,
    /// Formats by index of `keys`.
    formats_by_key: Vec<PacketFormat>,
    sessions: HashMap<(SocketAddr, u16), Session>,
    /// Written replies without T3, oldest first.
    unfinished: VecDeque<Reply>,
    /// Sent replies without a transmit timestamp.
    unstamped: VecDeque<Reply>,
}

#[derive(Debug)]
struct Session {
    received: u32,
    sent: u32,
    previous: Option<(u32, u64)>,
    last_packet: Monotonic,
    key: usize,
}

/// A reply that is not yet timestamped.
#[derive(Debug)]
struct Reply {
    session: (SocketAddr, u16),
    sequence: u32,
    octets: usize,
    t3: u64,
}

impl Stamp {
    pub(super) fn new(policy: StampPolicy) -> Self {
        let open = PacketFormat { protection: Protection::StampOpen, ..PacketFormat::default() };
        let mut stamp = Self {
            policy: policy.clone(),
            open,
            formats_by_key: Vec::new(),
            keys: Vec::new(),
            sessions: HashMap::new(),
            unfinished: VecDeque::new(),
            unstamped: VecDeque::new(),
        };
        stamp.set_policy(policy);
        stamp
    }

    /// Changes the policy. Counters are kept, so that a new key does not appear as loss.
    pub(super) fn set_policy(&mut self, policy: StampPolicy) {
        let secrets = policy.secrets.iter();
        self.keys = secrets.map(|secret| Arc::new(StampKey::new(secret.octets()))).collect();
        let format = |key: &Arc<StampKey>| PacketFormat {
            protection: Protection::StampAuthenticated(key.clone()),
            ..PacketFormat::default()
        };
        self.formats_by_key = self.keys.iter().map(format).collect();
        if !policy.stateful {
            self.sessions.clear();
        }
        self.policy = policy;
    }

    pub(super) fn lists(&self, source: SocketAddr, ssid: u16) -> bool {
        self.policy.sessions.iter().any(|rule| {
            rule.prefix.contains(&source.ip())
                && rule.port.is_none_or(|port| port == source.port())
                && rule.ssid.is_none_or(|wanted| wanted == ssid)
        })
    }

    /// Returns true when a probe of this sender may be answered; checked before an HMAC is
    /// computed.
    pub(super) fn may_answer(&self, source: SocketAddr) -> bool {
        self.policy.sessions.iter().any(|rule| rule.prefix.contains(&source.ip()))
    }

    /// Verifies and reads a probe; returns the index of its key with authentication.
    pub(super) fn read(
        &self,
        source: SocketAddr,
        packet: &[u8],
    ) -> Result<(ProbeHeader, Option<u8>), Unreadable> {
        if self.policy.authenticated {
            // The last key of this sender is tried first. SSID and address are not yet authentic,
            // but a wrong guess costs only one HMAC.
            let ssid = packet.get(26..28).map_or(0, |o| u16::from_be_bytes([o[0], o[1]]));
            let first = self.sessions.get(&(source, ssid)).map_or(0, |session| session.key);
            let mut outcome = Err(Unreadable::BadMac);
            for offset in 0..self.keys.len() {
                let index = (first + offset) % self.keys.len();
                outcome = self.format(Some(index as u8)).read_probe(packet);
                match outcome {
                    Ok(probe) => return Ok((probe, Some(index as u8))),
                    Err(Unreadable::TooShort) => break,
                    Err(Unreadable::BadMac) => {}
                }
            }
            return outcome.map(|probe| (probe, None));
        }
        let light = (LIGHT_PROBE_OCTETS..STAMP_OCTETS).contains(&packet.len());
        let probe = if light {
            PacketFormat::open().read_probe(packet)
        } else {
            self.open.read_probe(packet)
        };
        probe.map(|probe| (probe, None))
    }

    /// Returns the format of packets with a key, or without authentication.
    pub(super) fn format(&self, key: Option<u8>) -> &PacketFormat {
        key.and_then(|index| self.formats_by_key.get(usize::from(index))).unwrap_or(&self.open)
    }

    /// Writes the reply to a probe except T3.
    pub(super) fn reply(
        &mut self,
        meta: &PacketMeta,
        (probe, key): (&ProbeHeader, Option<u8>),
        packet: &[u8],
        (error_estimate, now): (ErrorEstimate, Monotonic),
        (reply, counters): (&mut [u8], &ReflectorCounters),
    ) -> Verdict {
        let base = self.format(key).reply_octets();
        let octets = packet.len().max(base);
        let Some(reply) = reply.get_mut(..octets) else { return Verdict::TooShort };
        let state = self.count_probe((meta.source, probe.ssid), key, now);
        let sequence = state.map_or(probe.sequence, |state| state.sent.wrapping_sub(1));
        let timestamps = self.policy.timestamps;
        let estimate = error_estimate.with_format(timestamps);
        let header =
            reply_header(meta, probe, sequence, estimate, timestamps.encode(meta.received));
        reply[..base].fill(0);
        self.format(key).write_reply(&header, reply);
        let mut tlvs = TlvOutcome::default();
        if let Some(area) = packet.get(base..) {
            reply[base..].copy_from_slice(area);
            let probe_context = ProbeContext {
                numbers: (probe.sequence, sequence),
                source: meta.source,
                source_mac: meta.source_mac,
                destination: meta.destination,
                tos: meta.tos.unwrap_or(0),
                synchronised: error_estimate.is_synchronised(),
                allow_class_of_service: self.policy.allow_class_of_service,
                state,
            };
            // Without authentication the HMAC TLV selects among several keys.
            let key = match key {
                Some(index) => self.keys.get(usize::from(index)).map(Arc::as_ref),
                None => signing_key(&reply[base..], probe.sequence, &self.keys),
            };
            tlvs = process_tlvs(&mut reply[base..], &probe_context, key, self.policy.authenticated);
            counters.tlvs_malformed.fetch_add(tlvs.malformed.into(), Relaxed);
            counters.tlvs_integrity_failed.fetch_add(tlvs.integrity_failed.into(), Relaxed);
            counters.access_reports.fetch_add(tlvs.access_report.into(), Relaxed);
        }
        if state.is_some() {
            let session = (meta.source, probe.ssid);
            push(&mut self.unfinished, Reply { session, sequence, octets, t3: 0 });
        }
        // By default the reply has the class of the probe, so that both directions are measured in
        // the same class.
        let tos = tlvs.tos.unwrap_or_else(|| meta.tos.unwrap_or(0) & 0xfc);
        Verdict::Reply { octets, tos, finish: Finish::Stamp(key) }
    }

    /// Counts a probe of a session; `None` for a stateless reflector.
    fn count_probe(
        &mut self,
        session: (SocketAddr, u16),
        key: Option<u8>,
        now: Monotonic,
    ) -> Option<SessionState> {
        let full = self.sessions.len() >= MAX_SESSIONS && !self.sessions.contains_key(&session);
        if !self.policy.stateful || full {
            return None;
        }
        let entry = self.sessions.entry(session).or_insert(Session {
            received: 0,
            sent: 0,
            previous: None,
            last_packet: now,
            key: 0,
        });
        entry.received = entry.received.wrapping_add(1);
        entry.sent = entry.sent.wrapping_add(1);
        entry.last_packet = now;
        entry.key = key.unwrap_or(0).into();
        Some(SessionState { received: entry.received, sent: entry.sent, previous: entry.previous })
    }

    /// Stores T3 of the oldest unfinished reply to this sender, until the kernel reports the
    /// transmit time.
    pub(super) fn record_t3(&mut self, to: SocketAddr, t3: u64) {
        // T3 is recorded in the order in which the replies were written.
        while let Some(mut reply) = self.unfinished.pop_front() {
            if reply.session.0 == to {
                reply.t3 = t3;
                if let Some(session) = self.sessions.get_mut(&reply.session) {
                    session.previous = Some((reply.sequence, t3));
                }
                return push(&mut self.unstamped, reply);
            }
        }
    }

    /// Handles the transmit time of a sent packet; `packet` may begin with headers.
    pub(super) fn transmitted(&mut self, packet: &[u8], at: UnixTime) {
        let t3_at = if self.policy.authenticated { 16 } else { 4 };
        let matches = |reply: &Reply| {
            let payload = packet.len().checked_sub(reply.octets);
            payload.and_then(|start| packet.get(start + t3_at..start + t3_at + 8))
                == Some(&reply.t3.to_be_bytes()[..])
        };
        let Some(index) = self.unstamped.iter().position(matches) else { return };
        let Some(reply) = self.unstamped.remove(index) else { return };
        if let Some(session) = self.sessions.get_mut(&reply.session)
            && session.previous.is_some_and(|(sequence, _)| sequence == reply.sequence)
        {
            session.previous = Some((reply.sequence, self.policy.timestamps.encode(at)));
        }
    }

    pub(super) fn expire(&mut self, now: Monotonic) {
        let refwait_ns = self.policy.refwait_ns;
        self.sessions.retain(|_, session| now.since_ns(session.last_packet) < refwait_ns);
    }
}

fn push(replies: &mut VecDeque<Reply>, reply: Reply) {
    if replies.len() == MAX_UNSTAMPED {
        replies.pop_front();
    }
    replies.push_back(reply);
}
