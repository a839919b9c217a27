//! Replies sent a short while ago, by the time in them.

/// Times kept; a power of two.
const SLOTS: usize = 4096;

/// A packet that carries, as the time of its sender, a time that was sent in a reply is a reply to
/// that reply: it comes from another reflector, and an answer to it would go round for ever.
#[derive(Debug)]
pub(super) struct RecentReplies {
    slots: Box<[u64]>,
}

impl RecentReplies {
    pub(super) fn new() -> Self {
        Self { slots: vec![0; SLOTS].into_boxed_slice() }
    }

    pub(super) fn sent(&mut self, t3: u64) {
        self.slots[slot(t3)] = t3;
    }

    pub(super) fn knows(&self, sender_timestamp: u64) -> bool {
        sender_timestamp != 0 && self.slots[slot(sender_timestamp)] == sender_timestamp
    }
}

/// Spreads times, whose low bits may all be the same.
fn slot(time: u64) -> usize {
    (time.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % SLOTS
}
