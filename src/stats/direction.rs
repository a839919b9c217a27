//! On which way probes were lost, told from the numbers of a reflector that counts its replies
//! (RFC 5357 §4.2.1). Fixed memory; lives as long as the session, because the numbers do.

/// Losses of a test by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attribution {
    /// Lost on the way to the reflector.
    pub egress: u64,
    /// Lost on the way back.
    pub ingress: u64,
    /// Lost, direction unknown.
    pub unattributed: u64,
}

/// Settles losses in blocks: from one reply behind which everything is settled to the next where
/// the counts of probes and of replies agree. Fates must come in the order of the probes.
#[derive(Clone, Debug)]
pub struct LossDirection {
    /// Whether the reflector counts by itself; `None` while that cannot be told.
    counts: Option<bool>,
    /// Highest reply number of the settled part.
    anchor: i64,
    /// Highest reply number of the open block.
    highest: i64,
    /// Replies of the open block.
    received: i64,
    /// Losses of the open block in the present test.
    lost: i64,
    /// Losses of the open block in tests before it: reported there as unattributed.
    lost_before: i64,
    settled: Attribution,
}

impl LossDirection {
    /// For a session whose reflector counts replies (a negotiated one always does), or for one of
    /// which that is not known.
    pub fn new(reflector_counts: bool) -> Self {
        Self {
            counts: reflector_counts.then_some(true),
            anchor: -1,
            highest: -1,
            received: 0,
            lost: 0,
            lost_before: 0,
            settled: Attribution::default(),
        }
    }

    /// Whether directions can be told.
    pub fn is_known(&self) -> bool {
        self.counts == Some(true)
    }

    /// The next probe was answered by the reply `reflector_sequence`.
    pub fn received(&mut self, sender_sequence: u32, reflector_sequence: u32) {
        if sender_sequence != reflector_sequence {
            // A reflector that only copies would have the same number.
            self.counts = Some(true);
        }
        let number = i64::from(reflector_sequence);
        if number <= self.anchor {
            self.restarted(number);
            return;
        }
        self.highest = self.highest.max(number);
        self.received += 1;
        self.settle();
    }

    /// A second reply of another number: the probe was duplicated on its way to the reflector.
    pub fn duplicated(&mut self, reflector_sequence: u32) {
        let number = i64::from(reflector_sequence);
        if number > self.anchor {
            self.highest = self.highest.max(number);
            self.received += 1;
            self.settle();
        }
    }

    /// The next probe was lost.
    pub fn lost(&mut self) {
        self.lost += 1;
    }

    /// Ends a test: what is not settled stays unattributed in it.
    pub fn end_test(&mut self) -> Attribution {
        let mut settled = std::mem::take(&mut self.settled);
        settled.unattributed += self.lost as u64;
        self.lost_before += std::mem::take(&mut self.lost);
        settled
    }

    /// Closes the block if what is missing from the reply numbers fits the losses.
    fn settle(&mut self) {
        let ingress = self.highest - self.anchor - self.received;
        let lost = self.lost + self.lost_before;
        if !(0..=lost).contains(&ingress) {
            return;
        }
        let egress = lost - ingress;
        if self.lost_before == 0 || ingress == 0 || egress == 0 {
            let (own_egress, own_ingress) = if ingress == 0 {
                (self.lost, 0)
            } else {
                (egress.min(self.lost), ingress.min(self.lost))
            };
            self.settled.egress += own_egress as u64;
            self.settled.ingress += own_ingress as u64;
        } else {
            // Both directions and two tests: which loss belongs to which cannot be told.
            self.settled.unattributed += self.lost as u64;
        }
        (self.anchor, self.received, self.lost, self.lost_before) = (self.highest, 0, 0, 0);
    }

    /// A number from before the anchor: a straggler, or a reflector that began again.
    fn restarted(&mut self, number: i64) {
        const STRAGGLERS: i64 = 1_000;
        if number + STRAGGLERS < self.anchor || number == 0 {
            self.settled.unattributed += self.lost as u64;
            (self.anchor, self.highest) = (number, number);
            (self.received, self.lost, self.lost_before) = (0, 0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribution(egress: u64, ingress: u64, unattributed: u64) -> Attribution {
        Attribution { egress, ingress, unattributed }
    }

    #[test]
    fn loss_of_each_direction_is_settled_by_the_next_reply() {
        let mut direction = LossDirection::new(true);
        direction.received(0, 0);
        direction.lost(); // probe 1: reached the reflector, which sent reply 1
        direction.lost(); // probe 2: never reached it
        direction.received(3, 2);
        assert_eq!(direction.end_test(), attribution(1, 1, 0));
    }

    #[test]
    fn loss_behind_the_last_reply_is_unattributed_and_not_counted_again() {
        let mut direction = LossDirection::new(true);
        direction.received(0, 0);
        direction.lost();
        assert_eq!(direction.end_test(), attribution(0, 0, 1));
        direction.lost();
        direction.received(3, 1); // both 1 and 2 never reached the reflector
        assert_eq!(direction.end_test(), attribution(1, 0, 0));
    }

    #[test]
    fn reordering_on_the_way_out_is_no_loss() {
        let mut direction = LossDirection::new(true);
        for (sender, reflector) in [(0, 0), (1, 2), (2, 1), (3, 3)] {
            direction.received(sender, reflector);
        }
        assert_eq!(direction.end_test(), attribution(0, 0, 0));
    }

    #[test]
    fn a_reflector_that_copies_tells_no_direction() {
        let mut direction = LossDirection::new(false);
        direction.received(0, 0);
        direction.lost();
        direction.received(2, 2);
        assert!(!direction.is_known());
        direction.received(3, 9);
        assert!(direction.is_known());
    }

    proptest! {
        /// Without reordering every loss before the last reply is placed exactly.
        #[test]
        fn exact_without_reordering(fates in prop::collection::vec(0u8..3, 1..200)) {
            let mut direction = LossDirection::new(true);
            let (mut expected, mut since_reply) = (Attribution::default(), (0, 0));
            let mut reply = 0u32;
            for (sequence, fate) in fates.iter().enumerate() {
                match fate {
                    0 => { direction.received(sequence as u32, reply); reply += 1;
                           expected.egress += since_reply.0; expected.ingress += since_reply.1; since_reply = (0, 0); }
                    1 => { direction.lost(); since_reply.0 += 1; }
                    _ => { direction.lost(); reply += 1; since_reply.1 += 1; }
                }
            }
            expected.unattributed = since_reply.0 + since_reply.1;
            prop_assert_eq!(direction.end_test(), expected);
        }
    }
}
