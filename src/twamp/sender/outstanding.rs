//! Probes that were sent and whose fate is not yet known, or was known a short while ago: an
//! answered one stays to tell duplicates, a lost one to tell late answers.

use std::collections::VecDeque;

use crate::{
    stats::{LossDirection, Placed, minute_of},
    time::{Monotonic, StampSource, UnixTime},
};

/// A stamp that is further from the time of the call is not of this probe.
const LONGEST_IN_HOST_NS: i64 = 1_000_000_000;

/// A probe that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) sequence: u32,
    pub(super) sent: Monotonic,
    /// Just before it was handed to the socket.
    pub(super) t1: UnixTime,
    /// When it went out, where that was told, and by whom.
    transmitted: Option<(UnixTime, StampSource)>,
    t1_wire: u64,
    answer: Option<Answered>,
    lost: bool,
    /// Nobody waited for its answer.
    abandoned: bool,
}

/// The first reply to a probe.
#[derive(Clone, Copy, Debug)]
struct Answered {
    /// Sequence number of the probe.
    number: u32,
    /// The latest probe that had been sent when it came.
    latest: u32,
}

impl Probe {
    /// When it was sent, by the best that told.
    pub(super) fn sent_at(&self) -> (UnixTime, StampSource) {
        self.transmitted.unwrap_or((self.t1, StampSource::User))
    }
}

/// Classification of a reply.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    /// The first to this probe, in time.
    First(Probe),
    /// A further reply to the same probe.
    Duplicate,
    /// Its probe is lost.
    Late,
    /// A reply that answers no probe.
    Unknown,
}

/// The probes, and where losses happened.
#[derive(Debug)]
pub(super) struct Outstanding {
    /// In the order of their numbers, which are consecutive.
    probes: VecDeque<Probe>,
    /// Number of probes, from the front, given to `direction`.
    settled: usize,
    /// Number of the next probe.
    next: u32,
    /// T1 of the first probe of all, as its packet carried it.
    first_t1_wire: u64,
    direction: LossDirection,
    /// The minute in which the probes were sent whose losses are in `direction`.
    minute: u64,
    /// Losses of the test by direction, of minutes that are behind.
    placed: Vec<Placed>,
    /// Outcomes of probes with their T1, not yet polled.
    fates: VecDeque<(UnixTime, bool)>,
}

impl Outstanding {
    pub(super) fn new(reflector_counts: bool) -> Self {
        Self {
            probes: VecDeque::new(),
            settled: 0,
            next: 0,
            first_t1_wire: 0,
            direction: LossDirection::new(reflector_counts),
            minute: 0,
            placed: Vec::new(),
            fates: VecDeque::new(),
        }
    }

    /// `t1_wire` is T1 as the packet carries it.
    pub(super) fn sent(&mut self, sequence: u32, t1: UnixTime, t1_wire: u64, now: Monotonic) {
        if self.next == 0 {
            self.first_t1_wire = t1_wire;
        }
        self.next = sequence.wrapping_add(1);
        self.probes.push_back(Probe {
            sequence,
            sent: now,
            t1,
            transmitted: None,
            t1_wire,
            answer: None,
            lost: false,
            abandoned: false,
        });
    }

    /// The probe of this number went out, as the kernel or the network interface tells.
    pub(super) fn transmitted(&mut self, sequence: u32, at: UnixTime, source: StampSource) {
        let Some(first) = self.probes.front() else { return };
        let index = sequence.wrapping_sub(first.sequence) as usize;
        if let Some(probe) = self.probes.get_mut(index)
            && (0..=LONGEST_IN_HOST_NS).contains(&at.since_ns(probe.t1))
        {
            probe.transmitted = Some((at, source));
        }
    }

    /// Returns whether the probe of this number carried `t1`.
    pub(super) fn carried(&self, sequence: u32, t1: u64) -> bool {
        self.index(sequence, t1).is_some()
    }

    /// Returns the index of the probe of this number, if it carried `t1`.
    fn index(&self, sequence: u32, t1: u64) -> Option<usize> {
        let index = sequence.wrapping_sub(self.probes.front()?.sequence) as usize;
        let probe = self.probes.get(index)?;
        (probe.t1_wire == t1).then_some(index)
    }

    /// Takes a reply with the number `number` to the probe `sequence` that was sent at `t1`.
    pub(super) fn reply(
        &mut self,
        sequence: u32,
        t1: u64,
        number: u32,
        loss_timeout_ns: u64,
        now: Monotonic,
    ) -> Reply {
        let latest = self.next.wrapping_sub(1);
        let Some(index) = self.index(sequence, t1) else {
            // A forgotten probe counts as lost, if it can be one of this session.
            let front = self.probes.front();
            let first = front.map_or(self.next, |probe| probe.sequence);
            let before = front.map_or(u64::MAX, |probe| probe.t1_wire);
            let is_forgotten = sequence < first && (self.first_t1_wire..before).contains(&t1);
            return if is_forgotten { Reply::Late } else { Reply::Unknown };
        };
        let minute = minute_of(self.probes[index].t1);
        let probe = &mut self.probes[index];
        if let Some(first) = probe.answer {
            if first.number != number {
                self.direction.duplicated(number);
            }
            return Reply::Duplicate;
        }
        // One whose fate is due only waits for the timer.
        if probe.lost || now.since_ns(probe.sent) > loss_timeout_ns {
            if self.direction.late(number) {
                let earlier = self.placed.iter_mut().find(|placed| placed.0 == minute);
                match earlier {
                    Some((_, placed)) => placed.not_on_the_way_back(),
                    None => self.direction.not_on_the_way_back(),
                }
            }
            return Reply::Late;
        }
        probe.answer = Some(Answered { number, latest });
        let answered = *probe;
        self.settle();
        Reply::First(answered)
    }

    /// Probes that are lost now; those past twice the timeout are forgotten.
    pub(super) fn time_out(&mut self, loss_timeout_ns: u64, now: Monotonic) -> Vec<Probe> {
        let lost = self.lose(|probe| now.since_ns(probe.sent) > loss_timeout_ns);
        let forgotten = loss_timeout_ns.saturating_mul(2);
        while self.settled > 0
            && self.probes.front().is_some_and(|probe| now.since_ns(probe.sent) > forgotten)
        {
            self.probes.pop_front();
            self.settled -= 1;
        }
        lost
    }

    /// All that are undecided will stay so; those.
    pub(super) fn give_up(&mut self) -> Vec<Probe> {
        self.probes.iter_mut().skip(self.settled).for_each(|probe| {
            probe.abandoned = probe.answer.is_none() && !probe.lost;
        });
        self.lose(|_| true)
    }

    fn lose(&mut self, is_due: impl Fn(&Probe) -> bool) -> Vec<Probe> {
        let mut lost = Vec::new();
        for probe in self.probes.iter_mut().skip(self.settled) {
            if !is_due(probe) {
                break;
            }
            if probe.answer.is_none() && !probe.lost {
                probe.lost = true;
                lost.push(*probe);
            }
        }
        self.settle();
        lost
    }

    /// Gives fates to the direction of losses, in the order of the probes.
    fn settle(&mut self) {
        while let Some(probe) = self.probes.get(self.settled).copied() {
            let (t1, lost, minute) = (probe.t1, probe.answer.is_none(), minute_of(probe.t1));
            match probe.answer {
                // It tells of losses before it: those of the minute before are placed by it.
                Some(Answered { number, latest }) => {
                    self.direction.received(probe.sequence, number, latest);
                    self.begin_minute(minute);
                }
                None if probe.lost => {
                    self.begin_minute(minute);
                    if !probe.abandoned {
                        self.direction.lost(probe.sequence);
                    }
                }
                None => return,
            }
            self.amend();
            self.settled += 1;
            if !self.probes[self.settled - 1].abandoned {
                self.fates.push_back((t1, lost));
            }
        }
    }

    fn begin_minute(&mut self, minute: u64) {
        if minute > self.minute {
            let before = std::mem::replace(&mut self.minute, minute);
            self.placed.push((before, self.direction.end_part()));
        }
    }

    /// Attributions of losses in past minutes that became known since; the latest minutes come
    /// first.
    fn amend(&mut self) {
        let mut told = self.direction.told_since();
        self.placed.iter_mut().rev().for_each(|(_, placed)| placed.amend(&mut told));
    }

    /// All probes of the minutes up to this one are settled: what follows tells nothing more of them.
    pub(super) fn end_minutes(&mut self, minute: u64) {
        self.begin_minute(minute + 1);
    }

    /// Returns whether the next probe was lost, with its T1, once that is known.
    pub(super) fn poll_fate(&mut self) -> Option<(UnixTime, bool)> {
        self.fates.pop_front()
    }

    /// The first probe that may yet be answered in time; the next one where there is none.
    pub(super) fn first_open(&self) -> u32 {
        self.probes.get(self.settled).map_or(self.next, |probe| probe.sequence)
    }

    /// When the first probe that is undecided was sent.
    pub(super) fn first_undecided(&self) -> Option<Monotonic> {
        self.probes.get(self.settled).map(|probe| probe.sent)
    }

    /// Losses by direction in the minutes of the test that are behind, where they can be told.
    pub(super) fn placed(&self) -> Option<&[Placed]> {
        self.direction.is_known().then_some(&self.placed)
    }

    /// Directions of the losses so far, where they can be told.
    pub(super) fn attribution(&self) -> Option<Vec<Placed>> {
        let so_far = (self.minute, self.direction.clone().end_test());
        self.direction.is_known().then(|| self.placed.iter().copied().chain([so_far]).collect())
    }

    /// Directions of the losses of a test that ends here.
    pub(super) fn end_test(&mut self) -> Option<Vec<Placed>> {
        let last = self.direction.end_test();
        self.amend();
        let mut placed = std::mem::take(&mut self.placed);
        placed.push((self.minute, last));
        self.direction.is_known().then_some(placed)
    }
}
