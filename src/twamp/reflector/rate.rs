//! Rate limits of replies to each sender.

use std::{collections::HashMap, net::SocketAddr};

use crate::time::{Monotonic, NANOS_PER_SECOND};

/// Largest number of buckets; further senders are subject to the limit of their prefix only.
const MAX_SENDERS: usize = 100_000;

/// Token bucket of one sender, one second deep.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Allowance {
    /// Time at which the bucket is full.
    full_at: Monotonic,
}

impl Allowance {
    /// Consumes one reply; false when the limit is reached.
    pub(super) fn consume(&mut self, limit: Option<u32>, now: Monotonic) -> bool {
        let Some(limit) = limit else { return true };
        let full_at = full_after_reply(self.full_at, limit, now);
        if let Some(full_at) = full_at {
            self.full_at = full_at;
        }
        full_at.is_some()
    }
}

/// Returns the time at which a bucket is full after one more reply; `None` if that reply exceeds
/// the limit.
pub(super) fn full_after_reply(
    full_at: Monotonic,
    limit: u32,
    now: Monotonic,
) -> Option<Monotonic> {
    let cost_ns = NANOS_PER_SECOND / u64::from(limit.max(1));
    let full_at = full_at.max(now).plus_ns(cost_ns);
    (full_at.since_ns(now) <= NANOS_PER_SECOND).then_some(full_at)
}

/// Token buckets of senders without a session.
#[derive(Debug, Default)]
pub(super) struct SenderAllowances {
    allowances: HashMap<SocketAddr, Allowance>,
}

impl SenderAllowances {
    /// Consumes one reply to a sender; false when the limit is reached.
    pub(super) fn allow(&mut self, sender: SocketAddr, limit: Option<u32>, now: Monotonic) -> bool {
        if limit.is_none() {
            return true;
        }
        let full = self.allowances.len() >= MAX_SENDERS && !self.allowances.contains_key(&sender);
        full || self.allowances.entry(sender).or_default().consume(limit, now)
    }

    /// Removes buckets that are full again.
    pub(super) fn expire(&mut self, now: Monotonic) {
        self.allowances.retain(|_, allowance| allowance.full_at > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sender_has_its_own_limit_and_full_buckets_are_dropped() {
        let mut senders = SenderAllowances::default();
        let sender = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let second = |n: u64| Monotonic(n * NANOS_PER_SECOND);
        let mut answered = |port, packets: usize, now| {
            (0..packets).filter(|_| senders.allow(sender(port), Some(50), now)).count()
        };
        assert_eq!(answered(1, 200, second(1)), 50);
        assert_eq!(answered(2, 30, second(1)), 30, "another sender is not affected");
        assert_eq!(answered(1, 200, second(1).plus_ns(NANOS_PER_SECOND / 2)), 25);
        senders.expire(second(2));
        assert_eq!(senders.allowances.len(), 1, "one bucket is not full");
        senders.expire(second(3));
        assert!(senders.allowances.is_empty());
        assert!((0..1_000).all(|_| senders.allow(sender(3), None, second(3))));
        assert!(senders.allowances.is_empty(), "no bucket without a limit");
    }
}
