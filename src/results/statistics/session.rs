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

/// Metadata of the statistics of a session.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Meta {
    /// Epoch: the number of resets.
    #[prost(uint64, tag = "1")]
    epoch: u64,
    /// Number of tests added to the moving average.
    #[prost(uint64, tag = "2")]
    tests: u64,
    /// Number of slots in the ring of the moving average.
    #[prost(uint64, tag = "3")]
    ring: u64,
    /// True if minutes of the running test are already counted.
    #[prost(bool, tag = "4")]
    has_pieces: bool,
}

/// Function that adds a result to statistics.
type Add = fn(&mut Totals, &TestResult);

/// Statistics in parts, with the parts that changed.
#[derive(Debug)]
pub(super) struct Session {
    meta: Meta,
    parts: BTreeMap<Part, Packed>,
    /// Start of the latest ended interval of each level; later results of ended intervals are left
    /// out.
    finished: [Option<u64>; 4],
    changed: Vec<Part>,
    /// Latest result, encoded as in the log.
    last: Option<Bytes>,
    /// Latest results that are not stored yet, encoded, in the order of their tests.
    history: VecDeque<Bytes>,
    /// Intervals that began before this time are suspect; `None` until the next result sets it.
    since_ns: Option<u64>,
    /// Subject of the latest result.
    subject: Option<Arc<Subject>>,
    pub(super) plan: Plan,
}

impl Session {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            meta: Meta { ring: plan.moving_average_size as u64, ..Meta::default() },
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

    /// Returns the subject of the session's records.
    pub(super) fn subject(&self, (connection, session): &Key) -> Arc<Subject> {
        let from_names = || {
            Subject::new(connection, session, (*self.plan.labels).clone(), self.plan.keeping).into()
        };
        self.subject.clone().unwrap_or_else(from_names)
    }

    pub(super) fn set_subject(&mut self, subject: &Arc<Subject>) {
        self.subject = Some(subject.clone());
    }

    /// Restores a stored part.
    pub(super) fn restore(&mut self, part: Part, content: Vec<u8>) {
        match part {
            Part::Meta => {
                self.meta = Meta::decode(content.as_slice()).unwrap_or_default();
                return;
            }
            Part::Last => {
                self.last = Some(content.into());
                return;
            }
            Part::All
            | Part::BeforeCurrent
            | Part::Running(..)
            | Part::Finished(_)
            | Part::WindowSlot(_) => {}
        }
        let packed = Packed(content.into());
        if let Part::Finished(level) = part {
            self.finished[level as usize] = packed.unpack().interval_start_unix_ns;
        }
        self.parts.insert(part, packed);
    }

    /// Adds the result of a test. `minute` is the minute in which all of its probes were sent, if
    /// it was one. Parts for which `has` returns true include it already.
    pub(super) fn test(
        &mut self,
        result: &TestResult,
        content: &Bytes,
        minute: Option<u64>,
        disturbed: &VecDeque<u64>,
        has: impl Fn(Part) -> bool,
    ) {
        // Minutes of a longer test were added one by one; its outcome counts in the last one.
        let (minute, add): (u64, Add) = match minute {
            Some(minute) => (minute, Totals::add_result),
            None => (result.end_unix_ns / MINUTE_NS, Totals::add_outcome),
        };
        self.count(result, content, add, (minute, add), disturbed, has);
    }

    /// Adds a result to all tests by `add`, and to a minute by `add_to_minute`.
    fn count(
        &mut self,
        result: &TestResult,
        content: &Bytes,
        add: Add,
        (minute, add_to_minute): (u64, Add),
        disturbed: &VecDeque<u64>,
        has: impl Fn(Part) -> bool,
    ) {
        self.end_interruption(result.start_unix_ns);
        self.set_pieces(false);
        if !has(Part::All) {
            let mut all = self.all();
            add(&mut all, result);
            self.set(Part::All, all);
        }
        self.last = Some(content.clone());
        self.changed.push(Part::Last);
        if !has(Part::Meta) {
            self.add_to_moving_average(result);
        }
        self.in_minute(minute, disturbed, &has, |statistics| add_to_minute(statistics, result));
        if result.outcome() == TestOutcome::Stopped {
            self.mark_suspect(result.end_unix_ns);
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
        self.end_interruption(started.0);
        self.set_pieces(true);
        let mut all = self.all();
        all.add_figures(figures);
        all.start_unix_ns.get_or_insert(minute * MINUTE_NS);
        self.set(Part::All, all);
        self.in_minute(minute, disturbed, &|_| false, |totals| totals.add_figures(figures));
    }

    /// Adds the result of a test from the log, which does not have the minutes of the test. To all
    /// tests it adds the whole result, replacing minutes that were counted. To its last minute it
    /// adds the figures only if none of them was counted in another minute.
    pub(super) fn replay_test(
        &mut self,
        result: &TestResult,
        content: &Bytes,
        has: impl Fn(Part) -> bool,
    ) {
        let (start, end) = (result.start_unix_ns / MINUTE_NS, result.end_unix_ns / MINUTE_NS);
        let (mut add, mut add_to_minute): (Add, Add) = (Totals::add_result, Totals::add_result);
        if start != end {
            let has_pieces = self.meta.has_pieces;
            let before = self.parts.remove(&Part::BeforeCurrent);
            match before.filter(|_| has_pieces && !has(Part::All)) {
                Some(before) => drop(self.parts.insert(Part::All, before)),
                // The statistics were reset during the test.
                None if has_pieces => add = Totals::add_outcome,
                None => {}
            }
            let finished = self.finished[Level::Minute as usize];
            if has_pieces || finished.is_some_and(|finished| finished >= start * MINUTE_NS) {
                add_to_minute = Totals::add_outcome;
            }
        }
        self.count(result, content, add, (end, add_to_minute), &VecDeque::new(), has);
    }

    /// Sets `has_pieces`: minutes of the running test are counted. Keeps the statistics from before
    /// it.
    fn set_pieces(&mut self, has_pieces: bool) {
        if mem::replace(&mut self.meta.has_pieces, has_pieces) == has_pieces {
            return;
        }
        self.changed.extend([Part::Meta, Part::BeforeCurrent]);
        if has_pieces {
            let all = self.parts.get(&Part::All).cloned();
            let all =
                all.unwrap_or_else(|| Packed::from_totals(Totals::new(StatisticsScope::AllTests)));
            self.parts.insert(Part::BeforeCurrent, all);
        } else {
            self.parts.remove(&Part::BeforeCurrent);
        }
    }

    /// Marks all intervals as suspect after an interruption: results may be missing, also of an
    /// ended interval. The next result ends the interruption.
    pub(super) fn mark_interrupted(&mut self) {
        self.since_ns = None;
        self.mark_suspect_where(|_, _| true);
        self.set_pieces(false);
    }

    pub(super) fn epoch(&self) -> u64 {
        self.meta.epoch
    }

    /// Resets everything and returns the new epoch.
    pub(super) fn clear(&mut self) -> u64 {
        self.changed.extend(self.parts.keys());
        self.parts.clear();
        self.changed.push(Part::Last);
        self.last = None;
        self.history.clear();
        self.meta = Meta { epoch: self.meta.epoch + 1, tests: 0, ..self.meta };
        self.finished = [None; 4];
        self.changed.push(Part::Meta);
        self.since_ns = None;
        self.meta.epoch
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
        found.iter_mut().for_each(|statistics| statistics.epoch = self.meta.epoch);
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
            Part::Meta => Some(self.meta.encode_to_vec()),
            Part::Last => self.last.as_ref().map(|last| last.to_vec()),
            Part::All
            | Part::BeforeCurrent
            | Part::Running(..)
            | Part::Finished(_)
            | Part::WindowSlot(_) => self.parts.get(&part).map(|packed| packed.0.to_vec()),
        };
        changed.into_iter().map(|part| (part, content(part))).collect()
    }

    /// Returns all parts, to remove them from the store.
    pub(super) fn all_parts(&self) -> Vec<Part> {
        self.parts
            .keys()
            .copied()
            .chain([Part::Meta, Part::Last])
            .chain(self.changed.iter().copied())
            .collect()
    }

    /// Marks a part as changed because it was not stored.
    pub(super) fn mark_changed(&mut self, part: Part) {
        self.changed.push(part);
    }

    /// Marks everything as changed, to store it again.
    fn mark_all_changed(&mut self) {
        self.changed = self.all_parts();
    }

    fn all(&self) -> Totals {
        let kept = self.parts.get(&Part::All);
        kept.map_or_else(|| Totals::new(StatisticsScope::AllTests), Packed::unpack)
    }

    fn set(&mut self, part: Part, totals: Totals) {
        self.parts.insert(part, Packed::from_totals(totals));
        self.changed.push(part);
    }

    fn add_to_moving_average(&mut self, result: &TestResult) {
        let size = self.meta.ring;
        if size == 0 || result.outcome() == TestOutcome::Unreachable {
            return;
        }
        let slot = (self.meta.tests % size) as u16;
        self.meta.tests += 1;
        self.changed.push(Part::Meta);
        let mut totals = Totals::new(StatisticsScope::MovingAverage);
        totals.add_result(result);
        self.set(Part::WindowSlot(slot), totals);
    }

    fn moving_average(&self) -> Option<Totals> {
        let size = self.meta.ring;
        let oldest = self.meta.tests.saturating_sub(size);
        let mut average: Option<Totals> = None;
        for test in oldest..self.meta.tests {
            let Some(packed) = self.parts.get(&Part::WindowSlot((test % size) as u16)) else {
                continue;
            };
            match &mut average {
                None => average = Some(packed.unpack()),
                Some(average) => average.add(&packed.unpack()),
            }
        }
        average
    }

    /// Applies a plan. Another size of the moving average resets it.
    pub(super) fn set_plan(&mut self, plan: Plan) {
        if plan.moving_average_size as u64 != self.meta.ring {
            let ring: Vec<Part> = self
                .parts
                .range(Part::WindowSlot(0)..=Part::WindowSlot(u16::MAX))
                .map(|(part, _)| *part)
                .collect();
            ring.iter().for_each(|part| drop(self.parts.remove(part)));
            self.changed.extend(ring);
            self.changed.push(Part::Meta);
            self.meta.tests = 0;
            self.meta.ring = plan.moving_average_size as u64;
        }
        if plan.is_persistent() && !self.plan.is_persistent() {
            self.mark_all_changed();
            self.history.clear();
        }
        self.plan = plan;
    }
}
