//! TWAMP Light (RFC 5357 appendix I): whoever is listed is answered, without a session.

use std::{collections::HashMap, net::SocketAddr};

use ipnet::IpNet;

use crate::time::Monotonic;

/// Senders that a stateful light reflector counts for; beyond that, numbers are copied.
const SENDERS: usize = 100_000;

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
pub(super) struct Light {
    pub(super) policy: LightPolicy,
    senders: HashMap<SocketAddr, Sender>,
}

#[derive(Debug)]
struct Sender {
    next_sequence: u32,
    last_packet: Monotonic,
}

impl Light {
    pub(super) fn new(policy: LightPolicy) -> Self {
        Self { policy, senders: HashMap::new() }
    }

    pub(super) fn lists(&self, source: SocketAddr) -> bool {
        self.policy.prefixes.iter().any(|prefix| prefix.contains(&source.ip()))
    }

    /// The number of the reply: the sender's own where no count is kept.
    pub(super) fn take(&mut self, source: SocketAddr, received: u32, now: Monotonic) -> u32 {
        let full = self.senders.len() >= SENDERS && !self.senders.contains_key(&source);
        if !self.policy.stateful || full {
            return received;
        }
        let new = Sender { next_sequence: 0, last_packet: now };
        let sender = self.senders.entry(source).or_insert(new);
        let next = sender.next_sequence;
        sender.next_sequence = next.wrapping_add(1);
        sender.last_packet = now;
        next
    }

    pub(super) fn expire(&mut self, now: Monotonic) {
        let refwait_ns = self.policy.refwait_ns;
        self.senders.retain(|_, sender| now.since_ns(sender.last_packet) < refwait_ns);
    }
}
