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

    /// What was taken for a loss on the way back was none.
    pub fn not_on_the_way_back(&mut self) {
        let wrong = self.ingress.min(1);
        self.ingress -= wrong;
        self.unattributed += wrong;
    }
}

/// Replies for which a path that duplicated a probe, or had one overtaken, is taken to do so again.
const REMEMBERED: u32 = 100;
/// So many replies in a row from before the latest cut are those of a reflector that began to count anew.
const BEGAN_ANEW: u32 = 8;
/// A number that is further beyond all others is of no reply to a probe.
const FARTHEST: i64 = 10_000;

/// Settles losses in blocks, from one cut to the next. A cut is a reply behind which no reply of a
/// lower number can come, and before which none of a higher one came: there, the counts of probes and
/// of replies agree. Fates must come in the order of the probes.
#[derive(Clone, Debug)]
pub struct LossDirection {
    /// Whether the reflector counts by itself; `None` while that cannot be told.
    counts: Option<bool>,
    /// Reply number of the latest cut.
    anchor: i64,
    /// Highest reply number so far.
    highest: i64,
    /// What came behind the latest cut.
    open: Block,
    /// What will be the next cut, unless a lower number comes.
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
    /// What is before it.
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

    /// Whether directions can be told.
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

    /// What [`Self::late`] told is of a probe of the present part.
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
            // What came too late is none of them.
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

    /// What became known of losses in parts of the test that had ended.
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribution(egress: u64, ingress: u64, unattributed: u64) -> Attribution {
        Attribution { egress, ingress, unattributed }
    }

    /// Each probe is decided before the next is sent.
    fn one_by_one(fates: &[(u32, Option<u32>)]) -> LossDirection {
        let mut direction = LossDirection::new(true);
        for (sequence, reply) in fates {
            match reply {
                Some(number) => direction.received(*sequence, *number, *sequence),
                None => direction.lost(*sequence),
            }
        }
        direction
    }

    #[test]
    fn loss_of_each_direction_is_settled_by_the_next_reply() {
        // Probe 1 reached the reflector, which sent reply 1; probe 2 never reached it.
        let mut direction = one_by_one(&[(0, Some(0)), (1, None), (2, None), (3, Some(2))]);
        assert_eq!(direction.end_test(), attribution(1, 1, 0));
    }

    #[test]
    fn loss_behind_the_last_reply_is_unattributed_and_not_counted_again() {
        let mut direction = one_by_one(&[(0, Some(0)), (1, None)]);
        assert_eq!(direction.end_test(), attribution(0, 0, 1));
        direction.lost(2);
        direction.received(3, 1, 3); // both 1 and 2 never reached the reflector
        assert_eq!(direction.end_test(), attribution(1, 0, 0));
    }

    #[test]
    fn what_is_lost_over_the_end_of_a_part_is_told_later() {
        let mut direction = one_by_one(&[(0, Some(0)), (1, None), (2, None)]);
        let mut part = direction.end_part();
        assert_eq!(part, attribution(0, 0, 2));
        direction.lost(3);
        direction.received(4, 1, 4);
        part.amend(&mut direction.told_since());
        assert_eq!(part, attribution(2, 0, 0));
        assert_eq!(direction.end_part(), attribution(1, 0, 0));
        // On the way back, and then on both, which cannot be told apart.
        direction.lost(5);
        let mut part = direction.end_part();
        direction.received(6, 3, 6);
        part.amend(&mut direction.told_since());
        assert_eq!(part, attribution(0, 1, 0));
        direction.lost(7);
        let mut part = direction.end_part();
        direction.lost(8);
        direction.received(9, 5, 9);
        part.amend(&mut direction.told_since());
        assert_eq!((part, direction.end_test()), (attribution(0, 0, 1), attribution(0, 0, 1)));
        // A late one of the part before is no loss of the next.
        let mut direction = one_by_one(&[(0, Some(0)), (1, None)]);
        assert!(!direction.late(1));
        let mut part = direction.end_part();
        direction.lost(2);
        direction.received(3, 3, 3);
        part.amend(&mut direction.told_since());
        assert_eq!((part, direction.end_part()), (attribution(0, 0, 1), attribution(0, 1, 0)));
        // The end of a test is the last word on it.
        direction.lost(10);
        direction.end_test();
        direction.received(11, 6, 11);
        assert_eq!(direction.told_since(), Attribution::default());
    }

    #[test]
    fn reordering_on_the_way_out_is_no_loss() {
        let mut direction = LossDirection::new(true);
        for (sender, reflector) in [(0, 0), (1, 2), (2, 1), (3, 3)] {
            direction.received(sender, reflector, 3);
        }
        assert_eq!(direction.end_test(), attribution(0, 0, 0));
    }

    #[test]
    fn a_probe_that_is_overtaken_makes_no_loss_one_of_the_way_back() {
        // 0 never arrived, 1 was overtaken by 2 to 4 while all were under way.
        let mut direction = LossDirection::new(true);
        direction.lost(0);
        for (sender, reflector) in [(1, 3), (2, 0), (3, 1), (4, 2), (5, 4)] {
            direction.received(sender, reflector, 5);
        }
        assert_eq!(direction.end_test(), attribution(1, 0, 0));
    }

    #[test]
    fn duplicates_and_late_replies_are_no_losses_of_the_way_back() {
        let mut direction = one_by_one(&[(0, Some(0))]);
        direction.duplicated(1);
        direction.lost(1);
        direction.received(2, 2, 2);
        assert_eq!(direction.end_test(), attribution(1, 0, 0));
        // A number is missing: it may be that of a duplicate.
        direction.lost(3);
        direction.received(4, 4, 4);
        assert_eq!(direction.end_test(), attribution(0, 0, 1));
        // Late: before the block is closed, and behind.
        let mut direction = one_by_one(&[(0, Some(0)), (1, None)]);
        assert!(!direction.late(1));
        direction.received(2, 2, 2);
        assert_eq!(direction.end_test(), attribution(0, 0, 1));
        direction.lost(3);
        direction.received(4, 4, 4);
        assert!(direction.late(3));
        direction.not_on_the_way_back();
        assert_eq!(direction.end_test(), attribution(0, 0, 1));
    }

    #[test]
    fn a_block_remembers_its_duplicates() {
        let mut direction = LossDirection::new(true);
        // 1 overtakes nobody until 200 others are answered, and a duplicate was long before.
        direction.received(0, 0, 0);
        direction.received(1, 202, 300);
        direction.lost(2);
        direction.duplicated(1);
        for (sender, reflector) in (3..202).zip(3..) {
            direction.received(sender, reflector, 300);
        }
        direction.received(300, 203, 300);
        assert_eq!(direction.end_test(), attribution(0, 0, 1));
    }

    #[test]
    fn a_reflector_that_begins_anew_makes_no_loss_one_of_the_way_out() {
        let mut direction = LossDirection::new(true);
        for number in 0..950 {
            direction.received(number, number, number);
        }
        // It begins anew; its first reply, and every fifth, is lost on the way back.
        for number in 0..1_000u32 {
            let sender = 950 + number;
            match number % 5 {
                0 => direction.lost(sender),
                _ => direction.received(sender, number, sender),
            }
        }
        let told = direction.end_test();
        assert_eq!(told.egress, 0, "{told:?}");
        assert!(told.unattributed <= 5 && told.ingress >= 194, "{told:?}");
    }

    #[test]
    fn a_number_out_of_nowhere_changes_nothing() {
        let mut direction = one_by_one(&[(0, Some(0)), (1, Some(1))]);
        direction.late(0xffff_fff0);
        direction.duplicated(0xffff_fff0);
        direction.lost(2);
        direction.received(3, 3, 3);
        let told = direction.end_test();
        assert_eq!(told.ingress + told.unattributed, 1, "{told:?}");
        for number in 4..200 {
            direction.received(number, number, number);
        }
        direction.lost(200);
        direction.received(201, 201, 201);
        assert_eq!(direction.end_test(), attribution(0, 1, 0));
    }

    #[test]
    fn a_reflector_that_copies_tells_no_direction() {
        let mut direction = LossDirection::new(false);
        direction.received(0, 0, 0);
        direction.lost(1);
        direction.received(2, 2, 2);
        assert!(!direction.is_known());
        direction.received(3, 9, 3);
        assert!(direction.is_known());
    }

    /// What happens to a probe: lost on the way out, lost on the way back, so many places late.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fate {
        Egress,
        Ingress,
        Answered(usize),
    }

    /// The fates of probes of which so many are under way at a time; and how many were lost how.
    fn run(fates: &[Fate], under_way: usize) -> (Attribution, u64, u64) {
        // In the order in which they come to the reflector.
        let place = |(index, fate): (usize, &Fate)| match fate {
            Fate::Egress => None,
            Fate::Ingress => Some((index, index)),
            Fate::Answered(late) => Some((index + late, index)),
        };
        let mut arrivals: Vec<_> = fates.iter().enumerate().filter_map(place).collect();
        arrivals.sort_unstable();
        let mut numbers = vec![None; fates.len()];
        for (number, (place, index)) in arrivals.iter().enumerate() {
            numbers[*index] = Some((number as u32, *place));
        }
        let mut direction = LossDirection::new(true);
        let last = fates.len() - 1;
        for (index, fate) in fates.iter().enumerate() {
            match (fate, numbers[index]) {
                (Fate::Answered(_), Some((number, place))) => {
                    let latest = (place + under_way).min(last);
                    direction.received(index as u32, number, latest as u32);
                }
                _ => direction.lost(index as u32),
            }
        }
        let count = |wanted| fates.iter().filter(|fate| **fate == wanted).count() as u64;
        (direction.end_test(), count(Fate::Egress), count(Fate::Ingress))
    }

    proptest! {
        /// Without reordering every loss before the last reply is placed exactly.
        #[test]
        fn exact_without_reordering(
            fates in prop::collection::vec(0u8..3, 1..200), under_way in 0usize..20,
        ) {
            let fates: Vec<_> = fates.iter().map(|fate| match fate {
                0 => Fate::Answered(0),
                1 => Fate::Egress,
                _ => Fate::Ingress,
            }).collect();
            let (told, egress, ingress) = run(&fates, under_way);
            prop_assert_eq!(told.egress + told.ingress + told.unattributed, egress + ingress);
            prop_assert!(told.egress <= egress && told.ingress <= ingress);
            let behind = fates.iter().rev().take_while(|fate| **fate != Fate::Answered(0)).count();
            if under_way == 0 {
                prop_assert_eq!(told.unattributed, behind as u64);
            }
        }

        /// Where losses are of one direction, reordering on the way out makes none of the other.
        #[test]
        fn reordering_turns_no_direction_round(
            fates in prop::collection::vec(0u8..20, 1..400), under_way in 0usize..40,
            late in 1usize..30,
        ) {
            let fates: Vec<_> = fates.iter().map(|fate| match fate {
                0 | 1 => Fate::Egress,
                2 => Fate::Answered(late),
                _ => Fate::Answered(0),
            }).collect();
            let (told, egress, _) = run(&fates, under_way);
            prop_assert_eq!(told.ingress, 0);
            prop_assert_eq!(told.egress + told.unattributed, egress);
        }
    }
}
