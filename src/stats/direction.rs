//! Direction of losses, from the sequence numbers of a reflector that numbers its replies by itself
//! (RFC 5357 §4.2.1). Fixed memory; it lives as long as the session, as the sequence numbers do.

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

    /// Corrects a loss that was attributed to ingress by mistake.
    pub fn revoke_ingress(&mut self) {
        let wrong = self.ingress.min(1);
        self.ingress -= wrong;
        self.unattributed += wrong;
    }
}

/// Number of replies for which the path is expected to duplicate or reorder again after it did so
/// once.
const MEMORY_REPLIES: u32 = 100;
/// Consecutive replies from before the latest cut that mean that the reflector started over.
const RESTART_REPLIES: u32 = 8;
/// Distance beyond all other sequence numbers at which a number cannot belong to a probe.
const MAX_DISTANCE: i64 = 10_000;

/// Attributes losses in blocks, from one cut to the next. A cut is a reply after which no reply
/// with a lower number can arrive, and before which none with a higher one arrived: there, the
/// counts of probes and of replies agree. Outcomes must be passed in the order of the probes.
#[derive(Clone, Debug)]
pub struct LossDirection {
    /// True if the reflector numbers its replies by itself; `None` until it is known.
    counts: Option<bool>,
    /// Reply number of the latest cut.
    anchor: i64,
    /// Highest reply number so far.
    highest: i64,
    /// Replies after the latest cut.
    open: Block,
    /// The next cut, unless a lower number arrives.
    next: Option<Cut>,
    /// Number of further replies during which a missing number may be that of a duplicate.
    duplicating: u32,
    /// Number of further replies during which probes may be overtaken.
    overtaking: u32,
    /// Consecutive replies from before the latest cut.
    behind: u32,
    settled: Attribution,
    /// Attributions of losses that an earlier part reported as unattributed.
    settled_before: Attribution,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// Replies that arrived, by their sequence numbers.
    received: i64,
    /// Losses in the current part of the test.
    lost: i64,
    /// Losses in earlier parts of the test, reported there as unattributed.
    lost_before: i64,
    lost_in_tests_before: i64,
    /// Losses whose reply arrived late.
    late: i64,
    /// Probes that were duplicated on the way to the reflector.
    duplicates: i64,
    /// Replies whose numbers are ambiguous.
    unclear: i64,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    number: i64,
    /// Only probes up to this one can have a lower number.
    until: u32,
    /// Replies before the cut.
    block: Block,
}

impl LossDirection {
    /// Creates the state of a session. `reflector_counts` is true if the reflector is known to
    /// number its replies by itself, as a negotiated one always does.
    pub fn new(reflector_counts: bool) -> Self {
        Self {
            counts: reflector_counts.then_some(true),
            anchor: -1,
            highest: -1,
            open: Block::default(),
            next: None,
            duplicating: 0,
            overtaking: 0,
            behind: 0,
            settled: Attribution::default(),
            settled_before: Attribution::default(),
        }
    }

    /// Returns whether losses can be attributed to a direction.
    pub fn is_known(&self) -> bool {
        self.counts == Some(true)
    }

    /// Records that the next probe was answered by the reply `reflector_sequence`, when `latest`
    /// was the latest probe sent.
    pub fn received(&mut self, sender_sequence: u32, reflector_sequence: u32, latest: u32) {
        if sender_sequence != reflector_sequence {
            // A reflector that copies would send the same number.
            self.counts = Some(true);
        }
        let number = i64::from(reflector_sequence);
        if number <= self.anchor {
            return self.number_before_cut(number);
        }
        self.behind = 0;
        self.next = self.next.filter(|next| next.number < number);
        self.duplicating = self.duplicating.saturating_sub(1);
        self.overtaking = self.overtaking.saturating_sub(1);
        // With the outcomes before this reply.
        self.settle(sender_sequence.wrapping_sub(1));
        self.open.received += 1;
        if number > self.highest {
            self.highest = number;
            let cut = Cut { number, until: latest, block: self.open };
            self.next.get_or_insert(cut);
        } else {
            self.overtaking = MEMORY_REPLIES;
        }
        self.settle(sender_sequence);
    }

    /// Records that the next probe was lost.
    pub fn lost(&mut self, sender_sequence: u32) {
        self.open.lost += 1;
        self.settle(sender_sequence);
    }

    /// Records a second reply with another number: the probe was duplicated on the way to the
    /// reflector.
    pub fn duplicated(&mut self, reflector_sequence: u32) {
        self.duplicating = MEMORY_REPLIES;
        if self.record_number(reflector_sequence, |block| block.duplicates += 1) {
            self.settled.revoke_ingress();
        }
    }

    /// Records a late reply, whose probe is lost in neither direction. Returns whether it was
    /// attributed to ingress before.
    pub fn late(&mut self, reflector_sequence: u32) -> bool {
        self.record_number(reflector_sequence, |block| block.late += 1)
    }

    /// Corrects the current part for a result of [`Self::late`].
    pub fn revoke_ingress(&mut self) {
        self.settled.revoke_ingress();
    }

    /// Records a number outside the order of the probes. Returns whether it was counted as a loss
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
        let before_cut = self.next.as_mut().filter(|next| number < next.number);
        for block in before_cut.map(|next| &mut next.block).into_iter().chain([&mut self.open]) {
            block.received += 1;
            count(block);
        }
        false
    }

    /// Ends a part of a test. Open losses are unattributed in it, until
    /// [`Self::take_attributed_later`].
    pub fn end_part(&mut self) -> Attribution {
        if self.overtaking == 0 {
            self.cut(|_| true);
        }
        let mut settled = std::mem::take(&mut self.settled);
        settled.unattributed += self.open.lost as u64;
        for block in self.blocks() {
            // Late replies do not count.
            let late = std::mem::take(&mut block.late);
            block.lost_before += (std::mem::take(&mut block.lost) - late).max(0);
        }
        settled
    }

    /// Ends a test. Open losses stay unattributed in it.
    pub fn end_test(&mut self) -> Attribution {
        let settled = self.end_part();
        for block in self.blocks() {
            block.lost_in_tests_before += std::mem::take(&mut block.lost_before);
        }
        settled
    }

    /// Returns the attributions of losses in earlier parts that became known since.
    pub fn take_attributed_later(&mut self) -> Attribution {
        std::mem::take(&mut self.settled_before)
    }

    fn blocks(&mut self) -> impl Iterator<Item = &mut Block> {
        self.next.as_mut().map(|next| &mut next.block).into_iter().chain([&mut self.open])
    }

    /// Closes the block if the outcomes of the probes up to this one make it certain.
    fn settle(&mut self, sender_sequence: u32) {
        self.cut(|cut| sender_sequence.wrapping_sub(cut.until) as i32 >= 0);
    }

    fn cut(&mut self, is_certain: impl FnOnce(&mut Cut) -> bool) {
        let Some(Cut { number, block, .. }) = self.next.take_if(is_certain) else { return };
        let missing = number - self.anchor - block.received;
        self.attribute(block, missing);
        self.anchor = number;
        let open = &mut self.open;
        open.received -= block.received;
        open.lost -= block.lost;
        open.lost_before -= block.lost_before;
        open.lost_in_tests_before -= block.lost_in_tests_before;
        open.late -= block.late;
        open.duplicates -= block.duplicates;
        open.unclear -= block.unclear;
    }

    /// Attributes the losses of a block by the sequence numbers that are missing from it.
    fn attribute(&mut self, block: Block, missing: i64) {
        let late = block.late.min(block.lost);
        let (own, before) = (block.lost - late, block.lost_before.max(0));
        let others = block.lost_in_tests_before.max(0);
        let lost = block.lost + before + others - block.late;
        self.settled.unattributed += late as u64;
        // A missing number may be that of a duplicate.
        let duplicates = block.duplicates > 0 || self.duplicating > 0;
        let unclear =
            block.unclear > 0 || !(0..=lost).contains(&missing) || (missing > 0 && duplicates);
        let egress = lost - missing;
        let parts = [own, before, others].iter().filter(|lost| **lost > 0).count();
        if unclear || (parts > 1 && missing > 0 && egress > 0) {
            // With losses in both directions and in two parts, their assignment is unknown.
            self.settled.unattributed += own as u64;
            return;
        }
        for (part, lost) in [(&mut self.settled, own), (&mut self.settled_before, before)] {
            part.egress += egress.min(lost) as u64;
            part.ingress += missing.min(lost) as u64;
        }
    }

    /// Handles a number from before the latest cut: a late reply, or a reflector that started over.
    fn number_before_cut(&mut self, number: i64) {
        self.behind += 1;
        if number == 0 || self.behind >= RESTART_REPLIES {
            self.settled.unattributed += self.open.lost as u64;
            (self.anchor, self.highest, self.behind) = (number, number, 0);
            (self.open, self.next) = (Block::default(), None);
        } else {
            // Until that is known, losses have no direction.
            self.open.unclear += 1;
            self.overtaking = MEMORY_REPLIES;
        }
    }
}

#[cfg(test)]
mod tests;
