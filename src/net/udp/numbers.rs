//! Mapping of the kernel's transmit timestamps to sent packets.

use std::ops::Range;

use crate::time::{Monotonic, NANOS_PER_SECOND};

/// Longest time that a packet stays in a queue of the host. No timestamp is reported after it.
const MAX_QUEUE_TIME_NS: u64 = 10 * NANOS_PER_SECOND;

/// Packet numbers of one socket. The kernel counts from 0 and restarts at 0 after an error, while
/// packets from before the error may still be queued in the host. Packets of one socket leave in
/// order.
#[derive(Debug, Default)]
pub struct StampNumbers {
    /// Number of packets that the socket accepted.
    sent: u32,
    /// Number of packets that it accepted before the latest restart.
    first: u32,
    /// Kernel number of the next expected timestamp.
    next: u32,
    /// Numbers from before the latest restart, and the time until which their timestamps may come.
    old: Option<(Range<u32>, Monotonic)>,
}

impl StampNumbers {
    /// Counts a packet that the socket accepted.
    pub fn sent(&mut self) {
        self.sent = self.sent.wrapping_add(1);
    }

    /// Returns true while timestamps are outstanding.
    pub fn is_pending(&self) -> bool {
        self.next < self.since_restart()
    }

    /// Restarts at 0, as the kernel does.
    pub fn restart(&mut self, now: Monotonic) {
        let mut old = self.next..self.since_restart();
        (self.first, self.next) = (self.sent, 0);
        if old.is_empty() {
            return;
        }
        if let Some((older, until)) = &self.old
            && now < *until
        {
            old = old.start.min(older.start)..old.end.max(older.end);
        }
        self.old = Some((old, now.plus_ns(MAX_QUEUE_TIME_NS)));
    }

    /// Returns the index of the packet that a kernel number names; `None` when the number is
    /// ambiguous or comes from before a restart.
    pub fn packet(&mut self, number: u32, now: Monotonic) -> Option<u32> {
        self.old.take_if(|(_, until)| now >= *until);
        let is_old = self.old.as_ref().is_some_and(|(old, _)| old.contains(&number));
        if is_old || number >= self.since_restart() {
            return None;
        }
        self.next = self.next.max(number + 1);
        Some(self.first.wrapping_add(number))
    }

    fn since_restart(&self) -> u32 {
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
    fn numbers_name_packets_in_order() {
        let mut numbers = sent(3);
        assert_eq!((0..4).filter_map(|n| numbers.packet(n, NOW)).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(!numbers.is_pending());
        numbers.restart(NOW);
        numbers.sent();
        assert!(numbers.is_pending());
        assert_eq!(numbers.packet(0, NOW), Some(3));
    }

    #[test]
    fn a_number_from_before_a_restart_names_no_later_packet() {
        let mut numbers = sent(10);
        assert_eq!(numbers.packet(4, NOW), Some(4));
        numbers.restart(NOW);
        (0..8).for_each(|_| numbers.sent());
        // 5 to 9 may name packets from before the restart; lower numbers cannot.
        let packets: Vec<_> = (0..8).map(|n| numbers.packet(n, NOW)).collect();
        assert_eq!(packets[..5], [Some(10), Some(11), Some(12), Some(13), Some(14)]);
        assert_eq!(packets[5..], [None; 3]);
        // A second restart while packets of both generations are queued.
        numbers.restart(NOW);
        (0..12).for_each(|_| numbers.sent());
        assert_eq!(numbers.packet(6, NOW), None);
        assert_eq!(numbers.packet(10, NOW), Some(28));
        let later = NOW.plus_ns(MAX_QUEUE_TIME_NS);
        assert_eq!(numbers.packet(11, later), Some(29));
    }

    #[test]
    fn numbers_wrap_around() {
        let mut numbers = StampNumbers { sent: u32::MAX, first: u32::MAX - 1, ..sent(0) };
        numbers.sent();
        assert_eq!(numbers.packet(1, NOW), Some(u32::MAX));
        assert_eq!(numbers.packet(2, NOW), None);
    }
}
