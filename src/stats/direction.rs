//! Direction of losses, from the sequence numbers of a reflector that numbers its replies by itself
//! (RFC 5357 §4.2.1). It uses fixed memory and lives as long as the session, because the sequence
//! numbers do.

/// Losses of a test by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attribution {
    /// Lost on the way to the reflector.
    pub egress: u64,
    /// Lost on the way back.
    pub ingress: u64,
    /// Lost probes whose direction is unknown.
    pub unattributed: u64,
}

impl Attribution {
    /// Moves losses from unattributed to the directions that became known later, and removes them
    /// from `later`.
    pub fn amend(&mut self, later: &mut Self) {
        for (known, later) in
            [(&mut self.egress, &mut later.egress), (&mut self.ingress, &mut later.ingress)]
        {
            let mine = self.unattributed.min(*later);
            self.unattributed -= mine;
            *known += mine;
            *later -= mine;
        }
    }

    /// Moves losses from egress to ingress, and removes them from `later`.
    pub fn move_to_ingress(&mut self, later: &mut u64) {
        let mine = self.egress.min(*later);
        self.egress -= mine;
        self.ingress += mine;
        *later -= mine;
    }

    /// Corrects a loss that was attributed to ingress by mistake.
    pub fn revoke_ingress(&mut self) {
        let wrong = self.ingress.min(1);
        self.ingress -= wrong;
        self.unattributed += wrong;
    }
}

/// Number of replies for which duplicates or reordering are expected again after they were seen
/// once.
const MEMORY_REPLIES: u32 = 100;
/// Number of consecutive replies with numbers below the latest cut that shows that the reflector
/// has restarted its numbers.
const RESTART_REPLIES: u32 = 8;
/// Distance beyond all other sequence numbers at which a number cannot belong to a probe.
const MAX_DISTANCE: i64 = 10_000;
/// Largest number of probes that are expected to overtake another one.
const MAX_EXTENT: u32 = 63;

/// Attributes losses in blocks, from one cut to the next. A cut is a reply after which no reply
/// with a lower number can arrive, and before which no reply with a higher number arrived. At a cut
/// the counts of probes and of replies therefore agree. Outcomes must be passed in the order of the
/// probes.
///
/// A probe that is lost on the way back may have crossed a cut on its way out. Then the block with
/// its missing number has more missing numbers than losses, and the block with its loss has fewer.
/// This excess moves losses from egress to ingress, so that the sums over a test are exact.
#[derive(Clone, Debug)]
pub struct LossDirection {
    /// Reply number of the latest cut.
    anchor: i64,
    /// Highest reply number so far.
    highest: i64,
    /// Replies after the latest cut.
    open: Block,
    /// The next cut, unless a lower number arrives.
    next: Option<Cut>,
    /// The reply with the highest number, which is a cut once all outcomes are known.
    top: Option<Cut>,
    /// Number of further replies during which a missing number may be that of a duplicate.
    duplicating: u32,
    /// Number of further replies during which probes may be overtaken.
    overtaking: u32,
    /// Largest number of probes that overtook another one, while probes may be overtaken.
    extent: u32,
    /// Outcomes of the latest probes, 1 for a loss; the latest is the lowest bit.
    outcomes: u64,
    /// Outcomes as in `outcomes`, before the reply of the latest cut.
    outcomes_at_cut: u64,
    /// Number of missing numbers in excess of the losses so far. They belong to losses that were or
    /// will be counted as egress by mistake.
    excess: i64,
    /// Number of consecutive replies with numbers below the latest cut.
    below_cut: u32,
    attributed: Attribution,
    /// Attributions of losses that an earlier part reported as unattributed.
    attributed_before: Attribution,
    /// Losses that an earlier part reported as egress and that are ingress.
    moved_before: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// Replies that arrived, by their sequence numbers.
    received: i64,
    /// Losses in the current part of the test.
    lost: i64,
    /// Losses in earlier parts of the test, reported there as unattributed.
    lost_before: i64,
    /// Losses in earlier tests, reported there as unattributed.
    lost_in_tests_before: i64,
    /// Losses whose reply arrived late.
    late: i64,
    /// Probes that were duplicated on the way to the reflector.
    duplicates: i64,
    /// Replies whose numbers are ambiguous, and probes whose outcome is unknown.
    unclear: i64,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    number: i64,
    /// Latest probe that can have a lower number.
    until: u32,
    /// Replies before the cut.
    block: Block,
    /// Outcomes of the probes before that of the reply.
    outcomes: u64,
}

impl Default for LossDirection {
    fn default() -> Self {
        Self {
            anchor: -1,
            highest: -1,
            open: Block::default(),
            next: None,
            top: None,
            duplicating: 0,
            overtaking: 0,
            extent: 0,
            outcomes: 0,
            outcomes_at_cut: 0,
            excess: 0,
            below_cut: 0,
            attributed: Attribution::default(),
            attributed_before: Attribution::default(),
            moved_before: 0,
        }
    }
}

impl LossDirection {
    /// Records that the next probe was answered by the reply `reflector_sequence`, when `latest`
    /// was the latest probe sent.
    pub fn received(&mut self, sender_sequence: u32, reflector_sequence: u32, latest: u32) {
        let number = i64::from(reflector_sequence);
        if number <= self.anchor {
            self.outcomes <<= 1;
            return self.handle_number_below_cut(number);
        }
        self.below_cut = 0;
        self.next = self.next.filter(|next| next.number < number);
        self.duplicating = self.duplicating.saturating_sub(1);
        self.overtaking = self.overtaking.saturating_sub(1);
        if self.overtaking == 0 {
            self.extent = 0;
        }
        // A cut before this reply is closed with the outcomes before the reply.
        self.cut_if_certain(sender_sequence.wrapping_sub(1));
        self.open.received += 1;
        if number > self.highest {
            self.highest = number;
            let cut = Cut { number, until: latest, block: self.open, outcomes: self.outcomes };
            self.next.get_or_insert(cut);
            self.top = Some(cut);
        } else {
            self.overtaking = MEMORY_REPLIES;
            let extent = u32::try_from(self.highest - number).unwrap_or(MAX_EXTENT);
            self.extent = self.extent.max(extent).min(MAX_EXTENT);
            if let Some(top) = self.top.as_mut().filter(|top| number < top.number) {
                top.block.received += 1;
            }
        }
        self.outcomes <<= 1;
        self.cut_if_certain(sender_sequence);
    }

    /// Records that the next probe was lost.
    pub fn lost(&mut self, sender_sequence: u32) {
        self.open.lost += 1;
        self.outcomes = (self.outcomes << 1) | 1;
        self.cut_if_certain(sender_sequence);
    }

    /// Records that the outcome of the next probe is unknown: a missing number may be that of its
    /// reply.
    pub fn abandoned(&mut self) {
        self.open.unclear += 1;
    }

    /// Records a second reply with another number: the probe was duplicated on the way to the
    /// reflector.
    pub fn duplicated(&mut self, reflector_sequence: u32) {
        self.duplicating = MEMORY_REPLIES;
        if self.record_number(reflector_sequence, |block| block.duplicates += 1) {
            self.attributed.revoke_ingress();
        }
    }

    /// Records a late reply, whose probe is lost in neither direction. Returns true if it was
    /// attributed to ingress before.
    pub fn late(&mut self, reflector_sequence: u32) -> bool {
        self.record_number(reflector_sequence, |block| block.late += 1)
    }

    /// Corrects the current part for a result of [`Self::late`].
    pub fn revoke_ingress(&mut self) {
        self.attributed.revoke_ingress();
    }

    /// Records a number outside the order of the probes. Returns true if it was counted as a loss
    /// before.
    fn record_number(&mut self, number: u32, count: impl Fn(&mut Block)) -> bool {
        let number = i64::from(number);
        if number <= self.anchor {
            return true;
        }
        if number > self.highest + MAX_DISTANCE {
            return false;
        }
        self.highest = self.highest.max(number);
        let cuts = self.next.as_mut().into_iter().chain(&mut self.top);
        let before_cuts = cuts.filter(|cut| number < cut.number).map(|cut| &mut cut.block);
        for block in before_cuts.chain([&mut self.open]) {
            block.received += 1;
            count(block);
        }
        false
    }

    /// Ends a part of a test. Losses without a known direction are unattributed in it.
    /// [`Self::take_attributed_later`] returns their directions when they become known.
    pub fn end_part(&mut self) -> Attribution {
        if self.overtaking == 0 {
            let anchor = self.anchor;
            let is_consistent =
                |cut: &Cut| cut.number - anchor - cut.block.received <= cut.block.losses();
            self.cut(|cut| is_consistent(cut));
            if self.top.as_ref().is_some_and(is_consistent) {
                self.cut_at_top();
            }
        }
        self.take_attributed()
    }

    /// Ends a test, whose outcomes are all known. Losses without a known direction stay
    /// unattributed in it.
    pub fn end_test(&mut self) -> Attribution {
        self.cut(|_| true);
        self.cut_at_top();
        let ambiguous = self.unattribute_overtaken();
        let attributed = self.take_attributed();
        // The number of such a probe may be missing in the next test.
        self.open.lost_in_tests_before += ambiguous as i64;
        self.moved_before += std::mem::take(&mut self.excess).max(0) as u64;
        for block in self.blocks() {
            block.lost_in_tests_before += std::mem::take(&mut block.lost_before);
        }
        attributed
    }

    /// Returns the attribution so far, for a test that continues.
    pub fn so_far(&self) -> Attribution {
        let mut copy = self.clone();
        if copy.overtaking > 0 {
            copy.unattribute_overtaken();
        }
        copy.end_part()
    }

    /// Makes losses unattributed that count as egress although their probes may have reached the
    /// reflector after the latest cut. Returns their number.
    fn unattribute_overtaken(&mut self) -> u64 {
        let recent = self.outcomes_at_cut & ((1 << self.extent) - 1);
        let ambiguous = u64::from(recent.count_ones()).min(self.attributed.egress);
        self.attributed.egress -= ambiguous;
        self.attributed.unattributed += ambiguous;
        ambiguous
    }

    fn take_attributed(&mut self) -> Attribution {
        let mut attributed = std::mem::take(&mut self.attributed);
        attributed.unattributed += self.open.lost as u64;
        for block in self.blocks() {
            // Losses whose reply arrived late are not counted.
            let late = std::mem::take(&mut block.late);
            block.lost_before += (std::mem::take(&mut block.lost) - late).max(0);
        }
        attributed
    }

    /// Returns the attributions of losses in earlier parts that became known since.
    pub fn take_attributed_later(&mut self) -> Attribution {
        std::mem::take(&mut self.attributed_before)
    }

    /// Returns the number of losses that earlier parts reported as egress and that are ingress.
    pub fn take_moved_to_ingress(&mut self) -> u64 {
        std::mem::take(&mut self.moved_before)
    }

    fn blocks(&mut self) -> impl Iterator<Item = &mut Block> {
        let cuts = self.next.as_mut().into_iter().chain(&mut self.top);
        cuts.map(|cut| &mut cut.block).chain([&mut self.open])
    }

    /// Closes the block before the next cut, if the outcomes of the probes up to this one make the
    /// cut certain.
    fn cut_if_certain(&mut self, sender_sequence: u32) {
        self.cut(|cut| sender_sequence.wrapping_sub(cut.until) as i32 >= 0);
    }

    fn cut(&mut self, is_certain: impl FnOnce(&mut Cut) -> bool) {
        if let Some(cut) = self.next.take_if(is_certain) {
            self.close(cut);
        }
    }

    fn cut_at_top(&mut self) {
        if let Some(cut) = self.top {
            self.close(cut);
        }
    }

    fn close(&mut self, Cut { number, block, outcomes, .. }: Cut) {
        self.attribute(block, number - self.anchor - block.received);
        (self.anchor, self.outcomes_at_cut) = (number, outcomes);
        self.next = self.next.filter(|next| next.number > number);
        self.top = self.top.filter(|top| top.number > number);
        self.blocks().for_each(|later| later.subtract(&block));
    }

    /// Attributes the losses of a block by the sequence numbers that are missing from it.
    fn attribute(&mut self, block: Block, missing: i64) {
        let late = block.late.min(block.lost);
        let (own, before) = (block.lost - late, block.lost_before.max(0));
        let others = block.lost_in_tests_before.max(0);
        let lost = block.lost + before + others - block.late;
        self.attributed.unattributed += late as u64;
        // A missing number may be that of a duplicate.
        let duplicates = block.duplicates > 0 || self.duplicating > 0;
        if block.unclear > 0 || missing < 0 || lost < 0 || (missing > 0 && duplicates) {
            self.attributed.unattributed += own as u64;
            self.excess = 0;
            return;
        }
        let (egress, ingress) = self.balance(lost, missing);
        let parts = [own, before, others].iter().filter(|lost| **lost > 0).count();
        if parts > 1 && ingress > 0 && egress > 0 {
            // With losses in both directions and in several parts, it is unknown which loss had
            // which direction.
            self.attributed.unattributed += own as u64;
            return;
        }
        for (part, lost) in [(&mut self.attributed, own), (&mut self.attributed_before, before)] {
            part.egress += egress.min(lost) as u64;
            part.ingress += ingress.min(lost) as u64;
        }
    }

    /// Returns the losses of a block by direction, corrected by the excess of missing numbers in
    /// other blocks.
    fn balance(&mut self, lost: i64, missing: i64) -> (i64, i64) {
        let (mut egress, mut ingress) = ((lost - missing).max(0), missing.min(lost));
        let claimed = self.excess.min(egress);
        (egress, ingress) = (egress - claimed, ingress + claimed);
        let mut more = (missing - lost).max(0) as u64;
        self.attributed.move_to_ingress(&mut more);
        self.excess += more as i64 - claimed;
        (egress, ingress)
    }

    /// Handles a number from before the latest cut: a late reply, or a reflector that started over.
    fn handle_number_below_cut(&mut self, number: i64) {
        self.below_cut += 1;
        if number == 0 || self.below_cut >= RESTART_REPLIES {
            self.attributed.unattributed += self.open.lost as u64;
            (self.anchor, self.highest, self.below_cut) = (number, number, 0);
            (self.open, self.next, self.top) = (Block::default(), None, None);
            self.excess = 0;
        } else {
            // Until it is known which of the two it is, losses have no direction.
            self.open.unclear += 1;
            self.overtaking = MEMORY_REPLIES;
        }
    }
}

impl Block {
    fn losses(&self) -> i64 {
        self.lost + self.lost_before + self.lost_in_tests_before
    }

    fn subtract(&mut self, earlier: &Self) {
        self.received -= earlier.received;
        self.lost -= earlier.lost;
        self.lost_before -= earlier.lost_before;
        self.lost_in_tests_before -= earlier.lost_in_tests_before;
        self.late -= earlier.late;
        self.duplicates -= earlier.duplicates;
        self.unclear -= earlier.unclear;
    }
}

#[cfg(test)]
mod tests;
