//! Evidence of the way in which a reflector numbers its replies: by itself, as RFC 5357 §4.2.1
//! requires, or with the number of the probe. Only a reflector that numbers its replies itself
//! shows the direction of a loss.

use crate::model::ReflectorNumbering;

/// Number of contradictions after which the reflector counts as one that copies numbers. A step of
/// its clock causes a single contradiction.
const MAX_CONTRADICTIONS: u8 = 3;

/// Evidence so far in a session.
#[derive(Clone, Copy, Debug)]
pub struct Numbering {
    evidence: Evidence,
    /// True if the reflector is expected to number its replies itself.
    is_expected: bool,
    /// Time at which the reflector received the latest answered probe, in the order of sending.
    latest_arrival: Option<u64>,
    contradictions: u8,
    /// True if at least one reply arrived.
    is_answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    /// All numbers were those of the probes, as from a reflector that copies them and as from one
    /// that has missed no probe.
    Equal,
    /// A number differed from that of its probe, or did in an earlier session with the reflector.
    Own,
    /// Numbers were those of the probes although the probes arrived in another order, or a probe
    /// arrived twice.
    Copied,
}

impl Numbering {
    /// Creates the state of a session. `is_expected` is true for a reflector that is expected to
    /// number its replies itself, `is_seen` if it did so in an earlier session.
    pub fn new(is_expected: bool, is_seen: bool) -> Self {
        let evidence = if is_seen { Evidence::Own } else { Evidence::Equal };
        Self { evidence, is_expected, latest_arrival: None, contradictions: 0, is_answered: false }
    }

    /// Records the first reply to a probe, in the order of the probes. `arrival` is the time at
    /// which the reflector received the probe, by its clock and since any origin.
    pub fn replied(&mut self, sender_sequence: u32, reflector_sequence: u32, arrival: u64) {
        self.is_answered = true;
        if sender_sequence != reflector_sequence {
            self.evidence = Evidence::Own;
        } else if self.evidence == Evidence::Equal {
            // Numbers that the reflector counts itself rise in the order in which the probes
            // arrive.
            if self.latest_arrival.is_some_and(|latest| arrival < latest) {
                self.contradictions += 1;
                if self.contradictions >= MAX_CONTRADICTIONS {
                    self.evidence = Evidence::Copied;
                }
            }
            self.latest_arrival = Some(arrival);
        }
    }

    /// Records that a probe arrived twice at the reflector and both replies had the same number.
    pub fn repeated(&mut self) {
        if self.evidence == Evidence::Equal {
            self.evidence = Evidence::Copied;
        }
    }

    /// Returns true if replies have shown that the reflector numbers them itself.
    pub fn is_seen(&self) -> bool {
        self.evidence == Evidence::Own
    }

    /// Returns true if the numbers show the direction of losses.
    pub fn is_known(&self) -> bool {
        match self.evidence {
            Evidence::Own => true,
            Evidence::Equal => self.is_expected,
            Evidence::Copied => false,
        }
    }

    /// Returns the kind of numbering for results; UNSPECIFIED before the first reply.
    pub fn kind(&self) -> ReflectorNumbering {
        match self.evidence {
            _ if !self.is_answered => ReflectorNumbering::Unspecified,
            Evidence::Own => ReflectorNumbering::Own,
            Evidence::Equal if self.is_expected => ReflectorNumbering::Assumed,
            Evidence::Equal => ReflectorNumbering::Equal,
            Evidence::Copied => ReflectorNumbering::Copied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(is_expected: bool, replies: &[(u32, u32, u64)]) -> (ReflectorNumbering, bool) {
        let mut numbering = Numbering::new(is_expected, false);
        for (sender, reflector, arrival) in replies {
            numbering.replied(*sender, *reflector, *arrival);
        }
        (numbering.kind(), numbering.is_known())
    }

    #[test]
    fn equal_numbers_prove_nothing_and_one_other_number_does() {
        let equal = [(0, 0, 10), (2, 2, 30), (3, 3, 40)];
        assert_eq!(after(false, &equal), (ReflectorNumbering::Equal, false));
        assert_eq!(after(true, &equal), (ReflectorNumbering::Assumed, true));
        for is_expected in [false, true] {
            let replies = [(0, 0, 10), (2, 1, 30)];
            assert_eq!(after(is_expected, &replies), (ReflectorNumbering::Own, true));
        }
        assert_eq!(after(true, &[]), (ReflectorNumbering::Unspecified, true));
        let seen = Numbering::new(true, true);
        assert!(seen.is_known() && seen.is_seen());
    }

    #[test]
    fn numbers_that_do_not_follow_the_arrival_are_copied() {
        // The clock of the reflector is stepped back once.
        let stepped: Vec<_> = (0..9).map(|n| (n, n, u64::from((n + 5) % 9) * 10)).collect();
        assert_eq!(after(true, &stepped), (ReflectorNumbering::Assumed, true));
        // Every third probe overtakes the one before.
        let arrivals = [0, 20, 10, 30, 50, 40, 60, 80, 70];
        let overtaken: Vec<_> = (0..9).zip(arrivals).map(|(n, at)| (n, n, at)).collect();
        assert_eq!(after(true, &overtaken), (ReflectorNumbering::Copied, false));
    }

    #[test]
    fn one_number_for_two_arrivals_is_copied() {
        let mut numbering = Numbering::new(true, false);
        numbering.replied(0, 0, 10);
        numbering.repeated();
        assert_eq!(numbering.kind(), ReflectorNumbering::Copied);
        // A reflector with numbers of its own that restarts is no copier.
        let mut numbering = Numbering::new(true, false);
        numbering.replied(1, 0, 10);
        numbering.repeated();
        assert_eq!(numbering.kind(), ReflectorNumbering::Own);
    }
}
