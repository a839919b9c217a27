//! Expiry times of sessions, to find expired sessions without a scan of all.

use std::{cmp::Reverse, collections::BinaryHeap, net::SocketAddr};

use crate::time::Monotonic;

/// Stale entries kept in addition to two for each session.
const SPARE: usize = 64;

/// Expiry times by sender. A session may have stale entries; only the latest time is valid, which
/// the owner of the sessions checks.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    entries: BinaryHeap<Reverse<(Monotonic, SocketAddr)>>,
}

impl Deadlines {
    pub(super) fn set(&mut self, at: Monotonic, sender: SocketAddr) {
        self.entries.push(Reverse((at, sender)));
    }

    /// Removes the next entry that is due.
    pub(super) fn pop(&mut self, now: Monotonic) -> Option<(Monotonic, SocketAddr)> {
        self.entries.peek().filter(|Reverse((at, _))| *at <= now)?;
        self.entries.pop().map(|Reverse(entry)| entry)
    }

    /// Removes stale entries if there are too many.
    pub(super) fn prune(
        &mut self,
        sessions: usize,
        is_valid: impl Fn(&SocketAddr, Monotonic) -> bool,
    ) {
        if self.entries.len() > 2 * sessions + SPARE {
            self.entries.retain(|Reverse((at, sender))| is_valid(sender, *at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_ordered_and_stale_ones_are_pruned() {
        let sender = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let mut deadlines = Deadlines::default();
        for (at, port) in [(30, 3), (10, 1), (20, 2)] {
            deadlines.set(Monotonic(at), sender(port));
        }
        assert_eq!(deadlines.pop(Monotonic(9)), None);
        assert_eq!(deadlines.pop(Monotonic(25)), Some((Monotonic(10), sender(1))));
        assert_eq!(deadlines.pop(Monotonic(25)), Some((Monotonic(20), sender(2))));
        assert_eq!(deadlines.pop(Monotonic(25)), None);
        // A port has a sequence of sessions; only the latest time is valid.
        for at in 100..1_100 {
            deadlines.set(Monotonic(at), sender(4));
            deadlines.prune(1, |other, known| *other == sender(4) && known == Monotonic(at));
        }
        assert!(deadlines.entries.len() <= 2 + SPARE, "{}", deadlines.entries.len());
    }
}
