//! TWAMP Light (RFC 5357 appendix I): whoever is listed is answered, without a session.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ipnet::IpNet;

use super::rate::full_again;
use crate::time::Monotonic;

/// Senders that a stateful light reflector counts for; beyond that, numbers are copied.
const SENDERS: usize = 100_000;

/// Who is answered without a session.
#[derive(Clone, Debug, PartialEq)]
pub struct LightPolicy {
    /// Prefixes answered.
    pub prefixes: Vec<IpNet>,
    /// Packets answered in a second to all senders of one prefix; `None` for any number.
    pub maximum_packets_per_second: Option<u32>,
    /// Count replies for each sender.
    pub stateful: bool,
    /// Silence after which a sender's count is forgotten, nanoseconds.
    pub refwait_ns: u64,
    /// What has been answered of late: one account for all machines of a clone.
    pub allowances: Allowances,
}

/// What may still be answered to each prefix: as much as comes together in a second, up to a
/// second's worth. Clones are one account; where it stands says nothing of a policy.
#[derive(Clone, Debug, Default)]
pub struct Allowances {
    /// For each prefix, when all of it would be there again with nothing coming.
    full_at_ns: Arc<[AtomicU64]>,
}

impl Allowances {
    /// For so many prefixes.
    pub fn new(prefixes: usize) -> Self {
        Self { full_at_ns: (0..prefixes).map(|_| AtomicU64::new(0)).collect() }
    }

    fn take(&self, prefix: usize, limit: u32, now: Monotonic) -> bool {
        let Some(account) = self.full_at_ns.get(prefix) else { return true };
        let taken = account.fetch_update(Relaxed, Relaxed, |full_at| {
            full_again(Monotonic(full_at), limit, now).map(|full_at| full_at.0)
        });
        taken.is_ok()
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

    /// Answers by another policy; what is counted for a sender goes on.
    pub(super) fn set_policy(&mut self, policy: LightPolicy) {
        if !policy.stateful {
            self.senders.clear();
        }
        self.policy = policy;
    }

    /// The first prefix that a sender is in.
    pub(super) fn prefix_of(&self, source: SocketAddr) -> Option<usize> {
        self.policy.prefixes.iter().position(|prefix| prefix.contains(&source.ip()))
    }

    /// Whether one more packet of this prefix may be answered; counts it if so.
    pub(super) fn allows(&self, prefix: usize, now: Monotonic) -> bool {
        let limit = self.policy.maximum_packets_per_second;
        limit.is_none_or(|limit| self.policy.allowances.take(prefix, limit, now))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::NANOS_PER_SECOND;

    #[test]
    fn a_prefix_is_answered_at_its_rate_and_others_are_not_held_up() {
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
        assert_eq!(answered(0, second(60), 500), 100, "and no more after a rest");
        assert!(!other.allows(0, second(60)), "whichever of the threads is asked");
        assert!(other.allows(1, second(60)));
        let lone = light.prefix_of("198.51.100.7:5".parse().unwrap());
        assert_eq!(lone, Some(1));
        assert_eq!(light.prefix_of("203.0.113.7:5".parse().unwrap()), None);
    }
}
