//! When to look at which session again: what is silent or over is found without a walk over all that
//! there are.

use std::{cmp::Reverse, collections::BinaryHeap, net::SocketAddr};

use crate::time::Monotonic;

/// Entries beyond twice the sessions and these are not worth keeping.
const SPARE: usize = 64;

/// Times to look at sessions, by their senders. Only the last that was set for a session holds: whoever
/// has the sessions knows which that is.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    entries: BinaryHeap<Reverse<(Monotonic, SocketAddr)>>,
}

impl Deadlines {
    pub(super) fn set(&mut self, at: Monotonic, sender: SocketAddr) {
        self.entries.push(Reverse((at, sender)));
    }

    /// The next one that has come.
    pub(super) fn pop(&mut self, now: Monotonic) -> Option<(Monotonic, SocketAddr)> {
        self.entries.peek().filter(|Reverse((at, _))| *at <= now)?;
        self.entries.pop().map(|Reverse(entry)| entry)
    }

    /// Forgets what holds no more, where that has become much.
    pub(super) fn tidy(&mut self, sessions: usize, holds: impl Fn(&SocketAddr, Monotonic) -> bool) {
        if self.entries.len() > 2 * sessions + SPARE {
            self.entries.retain(|Reverse((at, sender))| holds(sender, *at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_in_order_and_what_holds_no_more_is_forgotten() {
        let sender = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let mut deadlines = Deadlines::default();
        for (at, port) in [(30, 3), (10, 1), (20, 2)] {
            deadlines.set(Monotonic(at), sender(port));
        }
        assert_eq!(deadlines.pop(Monotonic(9)), None);
        assert_eq!(deadlines.pop(Monotonic(25)), Some((Monotonic(10), sender(1))));
        assert_eq!(deadlines.pop(Monotonic(25)), Some((Monotonic(20), sender(2))));
        assert_eq!(deadlines.pop(Monotonic(25)), None);
        // A port that has one session after the other: the last of them is the one that holds.
        for at in 100..1_100 {
            deadlines.set(Monotonic(at), sender(4));
            deadlines.tidy(1, |of, known| *of == sender(4) && known == Monotonic(at));
        }
        assert!(deadlines.entries.len() <= 2 + SPARE, "{}", deadlines.entries.len());
    }
}
