//! Probes in flight, and probes with a recent outcome: answered ones are kept to recognise
//! duplicates, lost ones to recognise late replies.

use std::collections::VecDeque;

use crate::{
    stats::{Directions, LossDirection, MinuteLosses, Numbering, minute_of},
    time::{Monotonic, StampSource, UnixTime},
};

/// Longest time between handing a packet to the socket and its transmit timestamp; a timestamp
/// beyond it belongs to another probe.
const MAX_TIME_IN_HOST_NS: i64 = 1_000_000_000;

/// Probe that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) sequence: u32,
    pub(super) sent: Monotonic,
    /// Time just before the probe was handed to the socket.
    pub(super) t1: UnixTime,
    /// Transmit time by the kernel or the network interface, if reported.
    transmitted: Option<(UnixTime, StampSource)>,
    t1_wire: u64,
    answer: Option<Answered>,
    lost: bool,
    /// True if the test ended before its reply was due.
    abandoned: bool,
}

/// First reply to a probe.
#[derive(Clone, Copy, Debug)]
struct Answered {
    /// Sequence number of the probe.
    number: u32,
    /// Latest probe that had been sent when the reply arrived.
    latest: u32,
    /// T2 as the packet carried it.
    t2_wire: u64,
}

impl Probe {
    /// Returns the best known transmit time and its source.
    pub(super) fn sent_at(&self) -> (UnixTime, StampSource) {
        self.transmitted.unwrap_or((self.t1, StampSource::User))
    }
}

/// Classification of a reply.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    /// First reply to this probe, within the loss timeout.
    First(Probe),
    /// Further reply to an answered probe.
    Duplicate,
    /// Reply to a lost probe.
    Late,
    /// Reply to no probe of this session.
    Unknown,
}

/// Probes of a session with the direction of losses.
#[derive(Debug)]
pub(super) struct Outstanding {
    /// Probes in the order of their sequence numbers, which are consecutive.
    probes: VecDeque<Probe>,
    /// Number of probes, from the front, whose outcome was passed to `direction`.
    passed: usize,
    /// Sequence number of the next probe.
    next: u32,
    /// T1 of the first probe of the session, as its packet carried it.
    first_t1_wire: u64,
    direction: LossDirection,
    numbering: Numbering,
    /// Minute of the probes whose losses are in `direction`.
    minute: u64,
    /// Losses of the test by direction, for past minutes.
    past_losses: Vec<MinuteLosses>,
    /// Outcomes of probes with their T1, not yet polled.
    outcomes: VecDeque<(UnixTime, bool)>,
}

impl Outstanding {
    pub(super) fn new(numbering: Numbering) -> Self {
        Self {
            probes: VecDeque::new(),
            passed: 0,
            next: 0,
            first_t1_wire: 0,
            direction: LossDirection::default(),
            numbering,
            minute: 0,
            past_losses: Vec::new(),
            outcomes: VecDeque::new(),
        }
    }

    /// Adds a probe; `t1_wire` is T1 as the packet carries it.
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

    /// Sets the transmit time of a probe by the kernel or the network interface.
    pub(super) fn transmitted(&mut self, sequence: u32, at: UnixTime, source: StampSource) {
        let Some(first) = self.probes.front() else { return };
        let index = sequence.wrapping_sub(first.sequence) as usize;
        if let Some(probe) = self.probes.get_mut(index)
            && (0..=MAX_TIME_IN_HOST_NS).contains(&at.since_ns(probe.t1))
        {
            probe.transmitted = Some((at, source));
        }
    }

    /// Returns true if the probe with this sequence number carried `t1`.
    pub(super) fn has_carried(&self, sequence: u32, t1: u64) -> bool {
        self.index(sequence, t1).is_some()
    }

    /// Returns the index of the probe with this sequence number, if it carried `t1`.
    fn index(&self, sequence: u32, t1: u64) -> Option<usize> {
        let index = sequence.wrapping_sub(self.probes.front()?.sequence) as usize;
        let probe = self.probes.get(index)?;
        (probe.t1_wire == t1).then_some(index)
    }

    /// Classifies a reply with the sequence number `number` and the time `t2` to the probe
    /// `sequence` that was sent at `t1`.
    pub(super) fn accept_reply(
        &mut self,
        (sequence, t1): (u32, u64),
        (number, t2): (u32, u64),
        loss_timeout_ns: u64,
        now: Monotonic,
    ) -> Reply {
        let latest = self.next.wrapping_sub(1);
        let Some(index) = self.index(sequence, t1) else {
            // The probe is no longer kept. If it can be a probe of this session, it was lost.
            let front = self.probes.front();
            let first = front.map_or(self.next, |probe| probe.sequence);
            let before = front.map_or(u64::MAX, |probe| probe.t1_wire);
            let was_removed = sequence < first && (self.first_t1_wire..before).contains(&t1);
            return if was_removed { Reply::Late } else { Reply::Unknown };
        };
        let minute = minute_of(self.probes[index].t1);
        let probe = &mut self.probes[index];
        if let Some(first) = probe.answer {
            if first.number != number {
                self.direction.duplicated(number);
            } else if first.t2_wire != t2 {
                self.numbering.repeated();
            }
            return Reply::Duplicate;
        }
        // After the loss timeout the probe is lost, even if the timer has not fired yet.
        if probe.lost || now.since_ns(probe.sent) > loss_timeout_ns {
            if self.direction.late(number) {
                let earlier = self.past_losses.iter_mut().find(|losses| losses.0 == minute);
                match earlier {
                    Some((_, losses)) => losses.revoke_ingress(),
                    None => self.direction.revoke_ingress(),
                }
            }
            return Reply::Late;
        }
        probe.answer = Some(Answered { number, latest, t2_wire: t2 });
        let answered = *probe;
        self.pass_outcomes();
        Reply::First(answered)
    }

    /// Returns the probes that are lost now; removes those older than twice the timeout.
    pub(super) fn time_out(&mut self, loss_timeout_ns: u64, now: Monotonic) -> Vec<Probe> {
        let lost = self.lose(|probe| now.since_ns(probe.sent) > loss_timeout_ns);
        let kept_ns = loss_timeout_ns.saturating_mul(2);
        while self.passed > 0
            && self.probes.front().is_some_and(|probe| now.since_ns(probe.sent) > kept_ns)
        {
            self.probes.pop_front();
            self.passed -= 1;
        }
        lost
    }

    /// Abandons all probes without an outcome and returns them.
    pub(super) fn abandon(&mut self) -> Vec<Probe> {
        self.probes.iter_mut().skip(self.passed).for_each(|probe| {
            probe.abandoned = probe.answer.is_none() && !probe.lost;
        });
        self.lose(|_| true)
    }

    fn lose(&mut self, is_due: impl Fn(&Probe) -> bool) -> Vec<Probe> {
        let mut lost = Vec::new();
        for probe in self.probes.iter_mut().skip(self.passed) {
            if !is_due(probe) {
                break;
            }
            if probe.answer.is_none() && !probe.lost {
                probe.lost = true;
                lost.push(*probe);
            }
        }
        self.pass_outcomes();
        lost
    }

    /// Passes outcomes to the direction of losses, in the order of the probes.
    fn pass_outcomes(&mut self) {
        while let Some(probe) = self.probes.get(self.passed).copied() {
            let (t1, lost, minute) = (probe.t1, probe.answer.is_none(), minute_of(probe.t1));
            match probe.answer {
                // A reply shows the direction of the losses before it, including those of the
                // previous minute. It is therefore passed on before the next minute begins.
                Some(Answered { number, latest, t2_wire }) => {
                    self.numbering.replied(probe.sequence, number, t2_wire);
                    self.direction.received(probe.sequence, number, latest);
                    self.begin_minute(minute);
                }
                None if probe.lost => {
                    self.begin_minute(minute);
                    if probe.abandoned {
                        self.direction.abandoned();
                    } else {
                        self.direction.lost(probe.sequence);
                    }
                }
                None => return,
            }
            self.amend();
            self.passed += 1;
            if !self.probes[self.passed - 1].abandoned {
                self.outcomes.push_back((t1, lost));
            }
        }
    }

    fn begin_minute(&mut self, minute: u64) {
        if minute > self.minute {
            let before = std::mem::replace(&mut self.minute, minute);
            self.past_losses.push((before, self.direction.end_part()));
        }
    }

    /// Adds the directions of losses in past minutes that have become known since, latest minute
    /// first.
    fn amend(&mut self) {
        let mut later = self.direction.take_attributed_later();
        let mut moved = self.direction.take_moved_to_ingress();
        for (_, losses) in self.past_losses.iter_mut().rev() {
            losses.amend(&mut later);
            losses.move_to_ingress(&mut moved);
        }
    }

    /// Ends the minutes up to this one. All of their probes must have an outcome, and later replies
    /// no longer change the directions of their losses.
    pub(super) fn end_minutes(&mut self, minute: u64) {
        self.begin_minute(minute + 1);
    }

    /// Returns T1 of the next probe with a known outcome, and true if it was lost.
    pub(super) fn poll_outcome(&mut self) -> Option<(UnixTime, bool)> {
        self.outcomes.pop_front()
    }

    /// Returns the number of the first probe that may still be answered in time; the number of the
    /// next probe if there is none.
    pub(super) fn first_open(&self) -> u32 {
        self.probes.get(self.passed).map_or(self.next, |probe| probe.sequence)
    }

    /// Returns the send time of the first probe without an outcome.
    pub(super) fn first_undecided(&self) -> Option<Monotonic> {
        self.probes.get(self.passed).map(|probe| probe.sent)
    }

    /// Returns true if replies have shown that the reflector numbers them itself.
    pub(super) fn has_own_numbers(&self) -> bool {
        self.numbering.is_seen()
    }

    /// Returns the losses by direction in past minutes of the test.
    pub(super) fn past_losses(&self) -> Directions<'_> {
        self.directions(&self.past_losses)
    }

    /// Returns the losses by direction so far.
    pub(super) fn losses_so_far(&self) -> Vec<MinuteLosses> {
        let so_far = (self.minute, self.direction.so_far());
        self.past_losses.iter().copied().chain([so_far]).collect()
    }

    /// Ends a test and returns its losses by direction.
    pub(super) fn end_test(&mut self) -> Vec<MinuteLosses> {
        let last = self.direction.end_test();
        self.amend();
        let mut losses = std::mem::take(&mut self.past_losses);
        losses.push((self.minute, last));
        losses
    }

    /// Returns these losses with the kind of the reflector's numbering. The losses are absent if
    /// the numbering does not show their directions.
    pub(super) fn directions<'a>(&self, losses: &'a [MinuteLosses]) -> Directions<'a> {
        let losses = self.numbering.is_known().then_some(losses);
        Directions { losses, numbering: self.numbering.kind() }
    }
}
