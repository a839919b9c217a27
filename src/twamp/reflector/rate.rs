//! How much is answered to each sender.

use std::{collections::HashMap, net::SocketAddr};

use crate::time::{Monotonic, NANOS_PER_SECOND};

/// Senders without a session that are kept account of; to those beyond that, only the limit of
/// their prefix applies.
const SENDERS: usize = 100_000;

/// What may still be answered to one sender: as much as comes together in a second, up to a
/// second's worth.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Allowance {
    /// When all of it would be there again, with nothing coming.
    full_at: Monotonic,
}

impl Allowance {
    /// Whether one more packet may be answered; counts it if so.
    pub(super) fn take(&mut self, limit: Option<u32>, now: Monotonic) -> bool {
        let Some(limit) = limit else { return true };
        let full_at = full_again(self.full_at, limit, now);
        if let Some(full_at) = full_at {
            self.full_at = full_at;
        }
        full_at.is_some()
    }
}

/// When an allowance that is full again at `full_at` would be so with one more packet; `None` where
/// there is nothing left for it.
pub(super) fn full_again(full_at: Monotonic, limit: u32, now: Monotonic) -> Option<Monotonic> {
    let cost_ns = NANOS_PER_SECOND / u64::from(limit.max(1));
    let full_at = full_at.max(now).plus_ns(cost_ns);
    (full_at.since_ns(now) <= NANOS_PER_SECOND).then_some(full_at)
}

/// Those of senders without a session.
#[derive(Debug, Default)]
pub(super) struct Senders {
    allowances: HashMap<SocketAddr, Allowance>,
}

impl Senders {
    /// Whether one more packet of a sender may be answered; counts it if so.
    pub(super) fn allow(&mut self, sender: SocketAddr, limit: Option<u32>, now: Monotonic) -> bool {
        if limit.is_none() {
            return true;
        }
        let full = self.allowances.len() >= SENDERS && !self.allowances.contains_key(&sender);
        full || self.allowances.entry(sender).or_default().take(limit, now)
    }

    /// Forgets those that have all of theirs.
    pub(super) fn expire(&mut self, now: Monotonic) {
        self.allowances.retain(|_, allowance| allowance.full_at > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sender_has_its_own_and_what_is_full_is_forgotten() {
        let mut senders = Senders::default();
        let sender = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let second = |n: u64| Monotonic(n * NANOS_PER_SECOND);
        let mut answered = |port, packets: usize, now| {
            (0..packets).filter(|_| senders.allow(sender(port), Some(50), now)).count()
        };
        assert_eq!(answered(1, 200, second(1)), 50);
        assert_eq!(answered(2, 30, second(1)), 30, "its neighbour is not held up");
        assert_eq!(answered(1, 200, second(1).plus_ns(NANOS_PER_SECOND / 2)), 25);
        senders.expire(second(2));
        assert_eq!(senders.allowances.len(), 1, "one still owes");
        senders.expire(second(3));
        assert!(senders.allowances.is_empty());
        assert!((0..1_000).all(|_| senders.allow(sender(3), None, second(3))));
        assert!(senders.allowances.is_empty(), "without a limit nothing is kept");
    }
}
