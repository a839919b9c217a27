//! Which packet a transmit stamp is of.

use std::ops::Range;

use crate::time::{Monotonic, NANOS_PER_SECOND};

/// A packet that has no stamp after so long has none.
const LONGEST_IN_HOST_NS: u64 = 10 * NANOS_PER_SECOND;

/// Tells packets by the numbers that come with their stamps. The kernel counts from 0, and again from
/// 0 behind an error, while packets from before it may yet lie in a queue of the host; those of one
/// socket leave in their order.
#[derive(Debug, Default)]
pub struct StampNumbers {
    /// Packets that the socket took.
    sent: u32,
    /// How many of them are from before the kernel's 0.
    first: u32,
    /// The kernel's number of the next stamp.
    next: u32,
    /// Numbers of packets from before, and until when their stamps may come.
    old: Option<(Range<u32>, Monotonic)>,
}

impl StampNumbers {
    /// The socket took a packet.
    pub fn sent(&mut self) {
        self.sent = self.sent.wrapping_add(1);
    }

    /// Whether stamps may yet come.
    pub fn are_awaited(&self) -> bool {
        self.next < self.since_first()
    }

    /// The kernel counts from 0 again.
    pub fn begin_anew(&mut self, now: Monotonic) {
        let mut old = self.next..self.since_first();
        (self.first, self.next) = (self.sent, 0);
        if old.is_empty() {
            return;
        }
        if let Some((older, until)) = &self.old
            && now < *until
        {
            old = old.start.min(older.start)..old.end.max(older.end);
        }
        self.old = Some((old, now.plus_ns(LONGEST_IN_HOST_NS)));
    }

    /// Which of the packets, counted from 0, a stamp with this number is of; `None` where it may be
    /// one of two, or is one from before an error.
    pub fn packet(&mut self, number: u32, now: Monotonic) -> Option<u32> {
        self.old.take_if(|(_, until)| now >= *until);
        let is_old = self.old.as_ref().is_some_and(|(old, _)| old.contains(&number));
        if is_old || number >= self.since_first() {
            return None;
        }
        self.next = self.next.max(number + 1);
        Some(self.first.wrapping_add(number))
    }

    fn since_first(&self) -> u32 {
        self.sent.wrapping_sub(self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(packets: u32) -> StampNumbers {
        let mut numbers = StampNumbers::default();
        (0..packets).for_each(|_| numbers.sent());
        numbers
    }

    const NOW: Monotonic = Monotonic(7);

    #[test]
    fn stamps_are_of_the_packets_in_their_order() {
        let mut numbers = sent(3);
        assert_eq!((0..4).filter_map(|n| numbers.packet(n, NOW)).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(!numbers.are_awaited());
        numbers.begin_anew(NOW);
        numbers.sent();
        assert!(numbers.are_awaited());
        assert_eq!(numbers.packet(0, NOW), Some(3));
    }

    #[test]
    fn a_stamp_from_before_an_error_is_of_no_packet_behind_it() {
        let mut numbers = sent(10);
        assert_eq!(numbers.packet(4, NOW), Some(4));
        numbers.begin_anew(NOW);
        (0..8).for_each(|_| numbers.sent());
        // 5 to 9 may be of packets from before; what is below is not.
        let told: Vec<_> = (0..8).map(|n| numbers.packet(n, NOW)).collect();
        assert_eq!(told[..5], [Some(10), Some(11), Some(12), Some(13), Some(14)]);
        assert_eq!(told[5..], [None; 3]);
        // And again: both are under way.
        numbers.begin_anew(NOW);
        (0..12).for_each(|_| numbers.sent());
        assert_eq!(numbers.packet(6, NOW), None);
        assert_eq!(numbers.packet(10, NOW), Some(28));
        let later = NOW.plus_ns(LONGEST_IN_HOST_NS);
        assert_eq!(numbers.packet(11, later), Some(29));
    }

    #[test]
    fn the_numbers_come_round() {
        let mut numbers = StampNumbers { sent: u32::MAX, first: u32::MAX - 1, ..sent(0) };
        numbers.sent();
        assert_eq!(numbers.packet(1, NOW), Some(u32::MAX));
        assert_eq!(numbers.packet(2, NOW), None);
    }
}
