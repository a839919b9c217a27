//! Timestamps of recent replies, to detect reflection loops.

/// Hash table of recent T3 values.
///
/// A packet whose Sender Timestamp equals a recent T3 is a reply of another reflector to our
/// reply; answering it would loop. The forged probe that starts a loop cannot be recognised and is
/// reflected; the reply to that reply is dropped.
#[derive(Debug)]
pub(super) struct RecentReplies {
    /// T3 values; the length is a power of two.
    slots: Box<[u64]>,
}

impl RecentReplies {
    /// Creates a table for negotiated sessions: only sessions whose two ends are reflectors can
    /// loop.
    pub(super) fn for_sessions() -> Self {
        Self { slots: vec![0; 1 << 12].into_boxed_slice() }
    }

    /// Creates a table for senders without sessions, large enough for most replies in flight to
    /// another reflector and back.
    pub(super) fn for_any_sender() -> Self {
        Self { slots: vec![0; 1 << 16].into_boxed_slice() }
    }

    pub(super) fn insert(&mut self, t3: u64) {
        self.slots[self.slot(t3)] = t3;
    }

    pub(super) fn contains(&self, sender_timestamp: u64) -> bool {
        sender_timestamp != 0 && self.slots[self.slot(sender_timestamp)] == sender_timestamp
    }

    /// Hashes a time, whose low bits may be constant.
    fn slot(&self, time: u64) -> usize {
        let spread = time.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (spread >> (u64::BITS - self.slots.len().trailing_zeros())) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Several thousand replies are in flight during a round-trip time of a second.
    #[test]
    fn replies_in_flight_are_recognised() {
        let mut recent = RecentReplies::for_any_sender();
        let times = |from: u64| (from..from + 8000).map(|number| (1 << 60) + number * 500_000);
        times(0).for_each(|time| recent.insert(time));
        let known = times(0).filter(|time| recent.contains(*time)).count();
        assert!(known > 7000, "{known}");
        assert!(!times(8000).any(|time| recent.contains(time)) && !recent.contains(0));
    }
}
