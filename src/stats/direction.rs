//! On which way probes were lost, told from the numbers of a reflector that counts its replies
//! (RFC 5357 §4.2.1). Fixed memory; lives as long as the session, because the numbers do.

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
    /// Losses of which it is known since how they came about.
    pub fn amend(&mut self, told: &mut Self) {
        for (known, told) in
            [(&mut self.egress, &mut told.egress), (&mut self.ingress, &mut told.ingress)]
        {
            let mine = self.unattributed.min(*told);
            self.unattributed -= mine;
            *known += mine;
            *told -= mine;
        }
    }

    /// A supposed ingress loss was none.
    pub fn not_on_the_way_back(&mut self) {
        let wrong = self.ingress.min(1);
        self.ingress -= wrong;
        self.unattributed += wrong;
    }
}

/// Replies for which a path that duplicated a probe, or had one overtaken, is taken to do so again.
const REMEMBERED: u32 = 100;
/// Replies in a row from before the latest cut that show that the reflector started over.
const BEGAN_ANEW: u32 = 8;
/// A number that is further beyond all others is of no reply to a probe.
const FARTHEST: i64 = 10_000;

/// Settles losses in blocks, from one cut to the next. A cut is a reply behind which no reply of a
/// lower number can come, and before which none of a higher one came: there, the counts of probes and
/// of replies agree. Fates must come in the order of the probes.
#[derive(Clone, Debug)]
pub struct LossDirection {
    /// Set once it is known if the reflector counts its replies.
    counts: Option<bool>,
    /// Reply number of the latest cut.
    anchor: i64,
    /// Highest reply number so far.
    highest: i64,
    /// Replies after the latest cut.
    open: Block,
    /// The next cut, unless a lower number arrives.
    next: Option<Cut>,
    /// For how many replies to come a missing number may be that of a duplicate.
    duplicating: u32,
    /// For how many replies to come probes may be overtaken.
    overtaking: u32,
    /// Replies in a row from before the latest cut.
    behind: u32,
    settled: Attribution,
    /// Of losses that were reported as unattributed with a part of the test that is over.
    settled_before: Attribution,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// Numbers of replies that came.
    received: i64,
    /// Losses in the present part of the test.
    lost: i64,
    /// Losses in parts of the test before it, and in tests before it: reported there as unattributed.
    lost_before: i64,
    lost_in_tests_before: i64,
    /// Losses whose reply came after all, too late.
    late: i64,
    /// Probes that were duplicated on their way.
    duplicates: i64,
    /// Replies of which it is not clear what they count.
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
    /// For a session whose reflector counts replies (a negotiated one always does), or for one of
    /// which that is not known.
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

    /// The next probe was answered by the reply `reflector_sequence`, which came when `latest` was the
    /// latest probe that had been sent.
    pub fn received(&mut self, sender_sequence: u32, reflector_sequence: u32, latest: u32) {
        if sender_sequence != reflector_sequence {
            // A reflector that only copies would have the same number.
            self.counts = Some(true);
        }
        let number = i64::from(reflector_sequence);
        if number <= self.anchor {
            return self.came_from_before(number);
        }
        self.behind = 0;
        self.next = self.next.filter(|next| next.number < number);
        self.duplicating = self.duplicating.saturating_sub(1);
        self.overtaking = self.overtaking.saturating_sub(1);
        // Before this one is in it.
        self.settle(sender_sequence.wrapping_sub(1));
        self.open.received += 1;
        if number > self.highest {
            self.highest = number;
            let cut = Cut { number, until: latest, block: self.open };
            self.next.get_or_insert(cut);
        } else {
            self.overtaking = REMEMBERED;
        }
        self.settle(sender_sequence);
    }

    /// The next probe was lost.
    pub fn lost(&mut self, sender_sequence: u32) {
        self.open.lost += 1;
        self.settle(sender_sequence);
    }

    /// A second reply of another number: the probe was duplicated on its way to the reflector.
    pub fn duplicated(&mut self, reflector_sequence: u32) {
        self.duplicating = REMEMBERED;
        if self.came(reflector_sequence, |block| block.duplicates += 1) {
            self.settled.not_on_the_way_back();
        }
    }

    /// A reply to a probe that is lost: on neither way, and too late. Whether it was taken for a loss
    /// on the way back before.
    pub fn late(&mut self, reflector_sequence: u32) -> bool {
        self.came(reflector_sequence, |block| block.late += 1)
    }

    /// A result of [`Self::late`] belongs to a probe of the current part.
    pub fn not_on_the_way_back(&mut self) {
        self.settled.not_on_the_way_back();
    }

    /// A number that need not come in the order of the probes; whether it was taken for that of a loss.
    fn came(&mut self, number: u32, count: impl Fn(&mut Block)) -> bool {
        let number = i64::from(number);
        if number <= self.anchor {
            return true;
        }
        if number > self.highest + FARTHEST {
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

    /// Ends a part of a test: what is not settled is unattributed in it, until [`Self::told_since`].
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

    /// Ends a test: what is not settled stays unattributed in it.
    pub fn end_test(&mut self) -> Attribution {
        let settled = self.end_part();
        for block in self.blocks() {
            block.lost_in_tests_before += std::mem::take(&mut block.lost_before);
        }
        settled
    }

    /// Returns the attributions of losses in earlier parts that became known since.
    pub fn told_since(&mut self) -> Attribution {
        std::mem::take(&mut self.settled_before)
    }

    fn blocks(&mut self) -> impl Iterator<Item = &mut Block> {
        self.next.as_mut().map(|next| &mut next.block).into_iter().chain([&mut self.open])
    }

    /// All is known of the probes up to this one: closes the block if that makes it certain.
    fn settle(&mut self, sender_sequence: u32) {
        self.cut(|cut| sender_sequence.wrapping_sub(cut.until) as i32 >= 0);
    }

    fn cut(&mut self, is_certain: impl FnOnce(&mut Cut) -> bool) {
        let Some(Cut { number, block, .. }) = self.next.take_if(is_certain) else { return };
        let missing = number - self.anchor - block.received;
        self.place(block, missing);
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

    /// Places the losses of a block by the numbers that are missing from it.
    fn place(&mut self, block: Block, missing: i64) {
        let late = block.late.min(block.lost);
        let (own, before) = (block.lost - late, block.lost_before.max(0));
        let others = block.lost_in_tests_before.max(0);
        let lost = block.lost + before + others - block.late;
        self.settled.unattributed += late as u64;
        // A reply that is missing may be that to a duplicate.
        let duplicates = block.duplicates > 0 || self.duplicating > 0;
        let unclear =
            block.unclear > 0 || !(0..=lost).contains(&missing) || (missing > 0 && duplicates);
        let egress = lost - missing;
        let parts = [own, before, others].iter().filter(|lost| **lost > 0).count();
        if unclear || (parts > 1 && missing > 0 && egress > 0) {
            // Or both directions and two parts: which loss belongs to which cannot be told.
            self.settled.unattributed += own as u64;
            return;
        }
        for (part, lost) in [(&mut self.settled, own), (&mut self.settled_before, before)] {
            part.egress += egress.min(lost) as u64;
            part.ingress += missing.min(lost) as u64;
        }
    }

    /// A number from before the latest cut: a straggler, or a reflector that began again.
    fn came_from_before(&mut self, number: i64) {
        self.behind += 1;
        if number == 0 || self.behind >= BEGAN_ANEW {
            self.settled.unattributed += self.open.lost as u64;
            (self.anchor, self.highest, self.behind) = (number, number, 0);
            (self.open, self.next) = (Block::default(), None);
        } else {
            // Until it is known which, losses have no direction.
            self.open.unclear += 1;
            self.overtaking = REMEMBERED;
        }
    }
}

#[cfg(test)]
mod tests;
