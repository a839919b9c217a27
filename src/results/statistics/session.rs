//! The statistics of one session.

mod intervals;

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;

use super::{
    super::{Subject, convert},
    Key, Plan,
    part::{Level, Packed, Part},
    totals::Totals,
};
use crate::{
    model::{ResultKeeping, TestOutcome},
    proto::{Statistics, StatisticsScope},
    stats::{Figures, MINUTE_NS, TestResult},
    time::UnixTime,
};

/// Metadata of the session.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Head {
    /// Epoch: the number of resets.
    #[prost(uint64, tag = "1")]
    epoch: u64,
    /// Tests that went into the moving average.
    #[prost(uint64, tag = "2")]
    tests: u64,
    /// Places in the ring that they stand in.
    #[prost(uint64, tag = "3")]
    ring: u64,
    /// Of a test that has yet to end, what was sent in some minute is counted.
    #[prost(bool, tag = "4")]
    has_pieces: bool,
}

/// Function that adds a result to statistics.
type Add = fn(&mut Totals, &TestResult);

/// Statistics in parts, and which of them changed.
#[derive(Debug)]
pub(super) struct Session {
    head: Head,
    parts: BTreeMap<Part, Packed>,
    /// The latest intervals that are over: what comes late for one of them is left out.
    finished: [Option<u64>; 4],
    changed: Vec<Part>,
    /// The last result, encoded: as it is in the log.
    last: Option<Bytes>,
    /// Encoded results, the latest last, where they are not stored.
    history: VecDeque<Bytes>,
    /// Intervals that began before this are not whole; `None` until the next result tells.
    since_ns: Option<u64>,
    /// To whom its latest result belonged.
    subject: Option<Arc<Subject>>,
    pub(super) plan: Plan,
}

impl Session {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            head: Head { ring: plan.moving_average_size as u64, ..Head::default() },
            parts: BTreeMap::new(),
            finished: [None; 4],
            changed: Vec::new(),
            last: None,
            history: VecDeque::new(),
            since_ns: None,
            subject: None,
            plan,
        }
    }

    /// To whom its records belong.
    pub(super) fn subject(&self, (connection, session): &Key) -> Arc<Subject> {
        let of_names = || {
            Subject::new(connection, session, (*self.plan.labels).clone(), self.plan.keeping).into()
        };
        self.subject.clone().unwrap_or_else(of_names)
    }

    pub(super) fn of(&mut self, subject: &Arc<Subject>) {
        self.subject = Some(subject.clone());
    }

    /// Takes up a part as it was kept.
    pub(super) fn restore(&mut self, part: Part, content: Vec<u8>) {
        match part {
            Part::Head => {
                self.head = Head::decode(content.as_slice()).unwrap_or_default();
                return;
            }
            Part::Last => {
                self.last = Some(content.into());
                return;
            }
            Part::All | Part::Before | Part::Running(..) | Part::Finished(_) | Part::Moving(_) => {}
        }
        let packed = Packed(content.into());
        if let Part::Finished(level) = part {
            self.finished[level as usize] = packed.unpack().interval_start_unix_ns;
        }
        self.parts.insert(part, packed);
    }

    /// A test ended; all that was sent in it was sent in one minute, where it is told which.
    /// Parts that have it already, by `has`, are left alone.
    pub(super) fn test(
        &mut self,
        result: &TestResult,
        content: &Bytes,
        minute: Option<u64>,
        disturbed: &VecDeque<u64>,
        has: impl Fn(Part) -> bool,
    ) {
        // A test of several minutes was added minute by minute; its end counts in the last of them.
        let (minute, add): (u64, Add) = match minute {
            Some(minute) => (minute, Totals::add_result),
            None => (result.end_unix_ns / MINUTE_NS, Totals::add_outcome),
        };
        self.count(result, content, add, (minute, add), disturbed, has);
    }

    /// Counts a result over all tests in one way, and in a minute in another one.
    fn count(
        &mut self,
        result: &TestResult,
        content: &Bytes,
        add: Add,
        (minute, add_to_minute): (u64, Add),
        disturbed: &VecDeque<u64>,
        has: impl Fn(Part) -> bool,
    ) {
        self.seen(result.start_unix_ns);
        self.set_pieces(false);
        if !has(Part::All) {
            let mut all = self.all();
            add(&mut all, result);
            self.set(Part::All, all);
        }
        self.last = Some(content.clone());
        self.changed.push(Part::Last);
        if !has(Part::Head) {
            self.moving(result);
        }
        self.in_minute(minute, disturbed, &has, |statistics| add_to_minute(statistics, result));
        if result.outcome() == TestOutcome::Stopped {
            self.not_whole(result.end_unix_ns);
            self.since_ns = None;
        }
        if let ResultKeeping::InMemory(most) = self.plan.keeping {
            self.history.push_back(content.clone());
            self.history.drain(..self.history.len().saturating_sub(most));
        }
    }

    /// Adds one minute of a longer test.
    pub(super) fn minute(
        &mut self,
        minute: u64,
        figures: &Figures,
        started: UnixTime,
        disturbed: &VecDeque<u64>,
    ) {
        self.seen(started.0);
        self.set_pieces(true);
        let mut all = self.all();
        all.add_figures(figures);
        all.start_unix_ns.get_or_insert(minute * MINUTE_NS);
        self.set(Part::All, all);
        self.in_minute(minute, disturbed, &|_| false, |totals| totals.add_figures(figures));
    }

    /// The result of a test out of the log, which has nothing of its minutes: over all tests it counts
    /// as a whole, beside what there was before its first piece was counted. By the minute it counts
    /// where it ended, unless some of it was counted in another minute already.
    pub(super) fn test_again(
        &mut self,
        result: &TestResult,
        content: &Bytes,
        has: impl Fn(Part) -> bool,
    ) {
        let (start, end) = (result.start_unix_ns / MINUTE_NS, result.end_unix_ns / MINUTE_NS);
        let (mut add, mut add_to_minute): (Add, Add) = (Totals::add_result, Totals::add_result);
        if start != end {
            let has_pieces = self.head.has_pieces;
            let before = self.parts.remove(&Part::Before);
            match before.filter(|_| has_pieces && !has(Part::All)) {
                Some(before) => drop(self.parts.insert(Part::All, before)),
                // They were begun anew within it.
                None if has_pieces => add = Totals::add_outcome,
                None => {}
            }
            let told = self.finished[Level::Minute as usize];
            if has_pieces || told.is_some_and(|told| told >= start * MINUTE_NS) {
                add_to_minute = Totals::add_outcome;
            }
        }
        self.count(result, content, add, (end, add_to_minute), &VecDeque::new(), has);
    }

    /// Marks the running test as counted in part, which keeps the statistics from before it.
    fn set_pieces(&mut self, has_pieces: bool) {
        if mem::replace(&mut self.head.has_pieces, has_pieces) == has_pieces {
            return;
        }
        self.changed.extend([Part::Head, Part::Before]);
        if has_pieces {
            let all = self.parts.get(&Part::All).cloned();
            let all = all.unwrap_or_else(|| Packed::of(Totals::new(StatisticsScope::AllTests)));
            self.parts.insert(Part::Before, all);
        } else {
            self.parts.remove(&Part::Before);
        }
    }

    /// It was not followed for some time; the next result tells since when it is again. What was under
    /// way may have been lost, also of an interval that was over.
    pub(super) fn paused(&mut self) {
        self.since_ns = None;
        self.none_whole(|_, _| true);
        self.set_pieces(false);
    }

    pub(super) fn epoch(&self) -> u64 {
        self.head.epoch
    }

    /// Begins everything anew; the new epoch.
    pub(super) fn clear(&mut self) -> u64 {
        self.changed.extend(self.parts.keys());
        self.parts.clear();
        self.changed.push(Part::Last);
        self.last = None;
        self.history.clear();
        self.head = Head { epoch: self.head.epoch + 1, tests: 0, ..self.head };
        self.finished = [None; 4];
        self.changed.push(Part::Head);
        self.since_ns = None;
        self.head.epoch
    }

    /// Returns the statistics of the selected scopes, without names.
    pub(super) fn statistics(
        &self,
        wanted: impl Fn(StatisticsScope) -> bool,
        running: bool,
        history: bool,
    ) -> Vec<Statistics> {
        let unpack = |part| self.parts.get(&part).map(|packed| packed.unpack().into());
        let mut found: Vec<Statistics> = Vec::new();
        if wanted(StatisticsScope::LastTest) {
            let read = |octets: &Bytes| TestResult::decode(octets.clone()).ok();
            found.extend(self.last.as_ref().and_then(read).map(|last| {
                let results = self.history.iter().filter(|_| history).filter_map(read);
                let mut totals = Totals::new(StatisticsScope::LastTest);
                totals.add_result(&last);
                Statistics { history: results.map(convert::test_result).collect(), ..totals.into() }
            }));
        }
        if wanted(StatisticsScope::AllTests) {
            found.extend(unpack(Part::All));
        }
        if wanted(StatisticsScope::MovingAverage) && self.plan.moving_average_size > 0 {
            found.extend(self.moving_average().map(Statistics::from));
        }
        for level in Level::ALL.into_iter().filter(|level| wanted(level.scope())) {
            found.extend(unpack(Part::Finished(level)));
            if running {
                found.extend(self.running(level));
            }
        }
        found.iter_mut().for_each(|statistics| statistics.epoch = self.head.epoch);
        found
    }

    /// Returns the parts to store; `None` removes a part.
    pub(super) fn take_changed(&mut self) -> Vec<(Part, Option<Vec<u8>>)> {
        let mut changed = mem::take(&mut self.changed);
        if !self.plan.is_persistent() {
            return Vec::new();
        }
        changed.sort_unstable();
        changed.dedup();
        let content = |part: Part| match part {
            Part::Head => Some(self.head.encode_to_vec()),
            Part::Last => self.last.as_ref().map(|last| last.to_vec()),
            Part::All | Part::Before | Part::Running(..) | Part::Finished(_) | Part::Moving(_) => {
                self.parts.get(&part).map(|packed| packed.0.to_vec())
            }
        };
        changed.into_iter().map(|part| (part, content(part))).collect()
    }

    /// All parts, to be removed from the store.
    pub(super) fn all_parts(&self) -> Vec<Part> {
        self.parts
            .keys()
            .copied()
            .chain([Part::Head, Part::Last])
            .chain(self.changed.iter().copied())
            .collect()
    }

    /// A part that was not stored.
    pub(super) fn changed_still(&mut self, part: Part) {
        self.changed.push(part);
    }

    /// Everything is to be stored again.
    fn mark_all_changed(&mut self) {
        self.changed = self.all_parts();
    }

    fn all(&self) -> Totals {
        let kept = self.parts.get(&Part::All);
        kept.map_or_else(|| Totals::new(StatisticsScope::AllTests), Packed::unpack)
    }

    fn set(&mut self, part: Part, totals: Totals) {
        self.parts.insert(part, Packed::of(totals));
        self.changed.push(part);
    }

    fn moving(&mut self, result: &TestResult) {
        let size = self.head.ring;
        if size == 0 || result.outcome() == TestOutcome::Unreachable {
            return;
        }
        let place = (self.head.tests % size) as u16;
        self.head.tests += 1;
        self.changed.push(Part::Head);
        let mut totals = Totals::new(StatisticsScope::MovingAverage);
        totals.add_result(result);
        self.set(Part::Moving(place), totals);
    }

    fn moving_average(&self) -> Option<Totals> {
        let size = self.head.ring;
        let oldest = self.head.tests.saturating_sub(size);
        let mut average: Option<Totals> = None;
        for test in oldest..self.head.tests {
            let Some(packed) = self.parts.get(&Part::Moving((test % size) as u16)) else {
                continue;
            };
            match &mut average {
                None => average = Some(packed.unpack()),
                Some(average) => average.add(&packed.unpack()),
            }
        }
        average
    }

    /// Another size makes a ring of another length: it begins anew.
    pub(super) fn set_plan(&mut self, plan: Plan) {
        if plan.moving_average_size as u64 != self.head.ring {
            let ring: Vec<Part> = self
                .parts
                .range(Part::Moving(0)..=Part::Moving(u16::MAX))
                .map(|(part, _)| *part)
                .collect();
            ring.iter().for_each(|part| drop(self.parts.remove(part)));
            self.changed.extend(ring);
            self.changed.push(Part::Head);
            self.head.tests = 0;
            self.head.ring = plan.moving_average_size as u64;
        }
        if plan.is_persistent() && !self.plan.is_persistent() {
            self.mark_all_changed();
            self.history.clear();
        }
        self.plan = plan;
    }
}
