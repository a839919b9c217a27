//! TWAMP Light (RFC 5357 appendix I): listed senders are answered without a session.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ipnet::IpNet;

use super::rate::full_after_reply;
use crate::time::Monotonic;

/// Largest number of senders with a counter. Replies to further senders repeat the Sequence Number
/// of the probe.
const MAX_SENDERS: usize = 100_000;

/// Senders answered without a session.
#[derive(Clone, Debug, PartialEq)]
pub struct LightPolicy {
    /// Prefixes of answered senders.
    pub prefixes: Vec<IpNet>,
    /// Limit of replies per second to all senders of one prefix; `None` for no limit.
    pub maximum_packets_per_second: Option<u32>,
    /// Counts replies for each sender.
    pub stateful: bool,
    /// Silence in nanoseconds after which the count of a sender is dropped.
    pub refwait_ns: u64,
    /// Token buckets, shared by the machines of all threads.
    pub allowances: Allowances,
}

/// Token buckets of the prefixes, one second deep. Clones share the buckets; equality of policies
/// ignores them.
#[derive(Clone, Debug, Default)]
pub struct Allowances {
    /// Time at which the bucket of each prefix is full.
    full_at_ns: Arc<[AtomicU64]>,
}

impl Allowances {
    /// Creates one full bucket for each prefix.
    pub fn new(prefixes: usize) -> Self {
        Self { full_at_ns: (0..prefixes).map(|_| AtomicU64::new(0)).collect() }
    }

    fn consume(&self, prefix: usize, limit: u32, now: Monotonic) -> bool {
        let Some(account) = self.full_at_ns.get(prefix) else { return true };
        let consumed = account.fetch_update(Relaxed, Relaxed, |full_at| {
            full_after_reply(Monotonic(full_at), limit, now).map(|full_at| full_at.0)
        });
        consumed.is_ok()
    }
}

impl PartialEq for Allowances {
    fn eq(&self, _: &Self) -> bool {
        true
    }
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

    /// Changes the policy; counts of senders are kept.
    pub(super) fn set_policy(&mut self, policy: LightPolicy) {
        if !policy.stateful {
            self.senders.clear();
        }
        self.policy = policy;
    }

    /// Returns the index of the first prefix that contains the sender.
    pub(super) fn prefix_of(&self, source: SocketAddr) -> Option<usize> {
        self.policy.prefixes.iter().position(|prefix| prefix.contains(&source.ip()))
    }

    /// Consumes one reply of a prefix; false when the limit is reached.
    pub(super) fn allows(&self, prefix: usize, now: Monotonic) -> bool {
        let limit = self.policy.maximum_packets_per_second;
        limit.is_none_or(|limit| self.policy.allowances.consume(prefix, limit, now))
    }

    /// Returns the Sequence Number of the reply. It counts the replies to the sender; a stateless
    /// reflector repeats the received number.
    pub(super) fn next_sequence(
        &mut self,
        source: SocketAddr,
        received: u32,
        now: Monotonic,
    ) -> u32 {
        let full = self.senders.len() >= MAX_SENDERS && !self.senders.contains_key(&source);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::NANOS_PER_SECOND;

    #[test]
    fn each_prefix_has_its_own_rate_limit() {
        let prefixes = ["192.0.2.0/24", "198.51.100.0/24"].map(|prefix| prefix.parse().unwrap());
        let policy = LightPolicy {
            prefixes: prefixes.into(),
            maximum_packets_per_second: Some(100),
            stateful: false,
            refwait_ns: NANOS_PER_SECOND,
            allowances: Allowances::new(2),
        };
        let (light, other) = (Light::new(policy.clone()), Light::new(policy));
        let second = |n: u64| Monotonic(n * NANOS_PER_SECOND);
        let answered = |prefix, now, packets: usize| {
            (0..packets).filter(|_| light.allows(prefix, now)).count()
        };
        assert_eq!(answered(0, second(10), 500), 100, "a second's worth at once");
        assert_eq!(answered(1, second(10), 50), 50);
        assert_eq!(answered(0, second(10).plus_ns(NANOS_PER_SECOND / 2), 500), 50);
        assert_eq!(
            answered(0, second(60), 500),
            100,
            "no more than a second's worth after a pause"
        );
        assert!(!other.allows(0, second(60)), "threads share the account");
        assert!(other.allows(1, second(60)));
        let lone = light.prefix_of("198.51.100.7:5".parse().unwrap());
        assert_eq!(lone, Some(1));
        assert_eq!(light.prefix_of("203.0.113.7:5".parse().unwrap()), None);
    }
}
