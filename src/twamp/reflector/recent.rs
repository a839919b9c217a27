//! Replies sent a short while ago, by the time in them.

/// A packet that carries, as the time of its sender, a time that was sent in a reply is a reply to
/// that reply: it comes from another reflector, and an answer to it would go round for ever. The
/// first reply that comes from another reflector, by a packet that somebody forged, cannot be told
/// from a probe with padding: it is answered, and the answer to that is not.
#[derive(Debug)]
pub(super) struct RecentReplies {
    /// A power of two of them.
    slots: Box<[u64]>,
}

impl RecentReplies {
    /// For agreed sessions, where it takes two that agreed with each other.
    pub(super) fn of_sessions() -> Self {
        Self { slots: vec![0; 1 << 12].into_boxed_slice() }
    }

    /// For whoever comes: of what can be under way to another reflector and back, most.
    pub(super) fn of_all() -> Self {
        Self { slots: vec![0; 1 << 16].into_boxed_slice() }
    }

    pub(super) fn sent(&mut self, t3: u64) {
        self.slots[self.slot(t3)] = t3;
    }

    pub(super) fn knows(&self, sender_timestamp: u64) -> bool {
        sender_timestamp != 0 && self.slots[self.slot(sender_timestamp)] == sender_timestamp
    }

    /// Spreads times, whose low bits may all be the same.
    fn slot(&self, time: u64) -> usize {
        let spread = time.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (spread >> (u64::BITS - self.slots.len().trailing_zeros())) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as come to another reflector and back in a second, at thousands in one.
    #[test]
    fn what_is_under_way_is_known() {
        let mut recent = RecentReplies::of_all();
        let times = |from: u64| (from..from + 8000).map(|number| (1 << 60) + number * 500_000);
        times(0).for_each(|time| recent.sent(time));
        let known = times(0).filter(|time| recent.knows(*time)).count();
        assert!(known > 7000, "{known}");
        assert!(!times(8000).any(|time| recent.knows(time)) && !recent.knows(0));
    }
}
