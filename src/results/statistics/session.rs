//! The statistics of one session.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;

use super::{
    super::Subject,
    Key, Plan,
    part::{Level, Packed, Part},
};
use crate::{
    model::ResultKeeping,
    proto::{Figures, IntervalResult, Statistics, StatisticsScope, TestOutcome, TestResult},
    stats::{MINUTE_NS, add_outcome, add_result, merge},
    time::{NANOS_PER_SECOND, UnixTime},
};

/// How long after the last fate of its probes an interval is closed: reports may be on their way.
const REPORTS_NS: u64 = 2 * NANOS_PER_SECOND;

/// An interval that is so many behind the latest one is made anew.
const CLOCK_WAS_WRONG: u64 = 3;

/// What is told of the session itself.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Head {
    /// How often the statistics were begun anew.
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
            Part::All | Part::Running(..) | Part::Finished(_) | Part::Moving(_) => {}
        }
        let packed = Packed(content.into());
        if let Part::Finished(level) = part {
            let start = packed.unpack().interval_start;
            self.finished[level as usize] = start.map(|start| UnixTime::from_proto(&start).0);
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
        let start_ns = time_ns(result.start.as_ref());
        self.seen(start_ns);
        // What was sent in it was told by the minute, where there was more than one; that it ended
        // counts in the last of them.
        let (minute, add): (u64, fn(&mut Statistics, &TestResult)) = match minute {
            Some(minute) => (minute, add_result),
            None => (time_ns(result.end.as_ref()) / MINUTE_NS, add_outcome),
        };
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
        self.in_minute(minute, disturbed, &has, |statistics| add(statistics, result));
        if result.outcome() == TestOutcome::Stopped {
            self.not_whole(time_ns(result.end.as_ref()));
            self.since_ns = None;
        }
        if let ResultKeeping::InMemory(most) = self.plan.keeping {
            self.history.push_back(content.clone());
            self.history.drain(..self.history.len().saturating_sub(most));
        }
    }

    /// What was sent in one minute of a test that is longer.
    pub(super) fn minute(&mut self, minute: u64, figures: &Figures, disturbed: &VecDeque<u64>) {
        self.seen(minute * MINUTE_NS);
        self.set_pieces(true);
        let mut all = self.all();
        merge(all.figures.get_or_insert_with(Default::default), figures);
        all.since.get_or_insert_with(|| UnixTime(minute * MINUTE_NS).to_proto());
        self.set(Part::All, all);
        self.in_minute(minute, disturbed, &|_| false, |statistics| {
            merge(statistics.figures.get_or_insert_with(Default::default), figures);
        });
    }

    /// The result of a test out of the log, which has nothing of its minutes. Where none of them was
    /// counted it counts as a whole, in the minute in which it ended.
    pub(super) fn test_again(
        &mut self,
        result: &TestResult,
        content: &Bytes,
        has: impl Fn(Part) -> bool,
    ) {
        let (start, end) = (time_ns(result.start.as_ref()), time_ns(result.end.as_ref()));
        let (start, end) = (start / MINUTE_NS, end / MINUTE_NS);
        let minute = (start == end || !self.head.has_pieces).then_some(end);
        self.test(result, content, minute, &VecDeque::new(), has);
    }

    fn set_pieces(&mut self, has_pieces: bool) {
        if mem::replace(&mut self.head.has_pieces, has_pieces) != has_pieces {
            self.changed.push(Part::Head);
        }
    }

    /// An interval out of the log: it was told already, and is not again. Parts that have it, by
    /// `has`, are left alone.
    pub(super) fn interval_again(&mut self, result: &IntervalResult, has: impl Fn(Part) -> bool) {
        let level = Level::ALL.into_iter().find(|level| level.scope() == result.scope());
        let Some(level) = level else { return };
        if has(Part::Finished(level)) {
            return;
        }
        let start_ns = time_ns(result.start.as_ref());
        let part = Part::Running(level, start_ns);
        self.changed.push(part);
        // The tests are counted in the part, the figures of the record are whole.
        let counted = self.parts.remove(&part).as_ref().map(Packed::unpack);
        let statistics = Statistics {
            interval_start: result.start,
            suspect: result.suspect,
            figures: result.figures.clone(),
            ..counted.unwrap_or_else(|| empty(level.scope()))
        };
        self.finish(level, start_ns, statistics, &VecDeque::new(), has);
    }

    /// Intervals that are over by now.
    pub(super) fn close(&mut self, now_ns: u64, disturbed: &VecDeque<u64>) -> Vec<IntervalResult> {
        let grace_ns = self.plan.loss_timeout_ns + REPORTS_NS;
        let mut closed = Vec::new();
        for level in Level::ALL {
            let length_ns = level.length_ns();
            let of_level = Part::Running(level, 0)..=Part::Running(level, u64::MAX);
            let starts = self.parts.range(of_level).filter_map(|(part, _)| part.running());
            let starts = starts.map(|(_, start_ns)| start_ns);
            let over: Vec<u64> = starts
                .filter(|start_ns| start_ns.saturating_add(length_ns + grace_ns) <= now_ns)
                .collect();
            for start_ns in over {
                let part = Part::Running(level, start_ns);
                let Some(packed) = self.parts.remove(&part) else { continue };
                self.changed.push(part);
                let statistics = packed.unpack();
                closed.push(IntervalResult {
                    scope: level.scope().into(),
                    start: statistics.interval_start,
                    end: Some(UnixTime(start_ns + length_ns).to_proto()),
                    suspect: statistics.suspect,
                    figures: statistics.figures.clone(),
                });
                self.finish(level, start_ns, statistics, disturbed, |_| false);
            }
        }
        closed
    }

    fn finish(
        &mut self,
        level: Level,
        start_ns: u64,
        statistics: Statistics,
        disturbed: &VecDeque<u64>,
        has: impl Fn(Part) -> bool,
    ) {
        if level == Level::Minute {
            for longer in &Level::ALL[1..] {
                if !has(Part::Running(*longer, longer.start_ns(start_ns))) {
                    self.add_to_longer(*longer, start_ns, &statistics, disturbed);
                }
            }
        }
        self.finished[level as usize] = Some(start_ns);
        self.set(Part::Finished(level), statistics);
    }

    /// Something made the intervals that are running now other than whole.
    pub(super) fn not_whole(&mut self, at_ns: u64) {
        let running: Vec<Part> = self
            .parts
            .keys()
            .filter(|part| {
                part.running().is_some_and(|(level, start_ns)| level.start_ns(at_ns) == start_ns)
            })
            .copied()
            .collect();
        for part in running {
            let statistics = self.parts.get(&part).map(Packed::unpack).unwrap_or_default();
            if !statistics.suspect {
                self.set(part, Statistics { suspect: true, ..statistics });
            }
        }
    }

    /// It was not followed for some time; the next result tells since when it is again.
    pub(super) fn paused(&mut self) {
        self.since_ns = None;
        self.set_pieces(false);
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

    /// What there is in the scopes that are wanted, without names.
    pub(super) fn statistics(
        &self,
        wanted: impl Fn(StatisticsScope) -> bool,
        running: bool,
        history: bool,
    ) -> Vec<Statistics> {
        let unpack = |part| self.parts.get(&part).map(Packed::unpack);
        let mut found = Vec::new();
        if wanted(StatisticsScope::LastTest) {
            let read = |octets: &Bytes| TestResult::decode(octets.clone()).ok();
            found.extend(self.last.as_ref().and_then(read).map(|last| {
                let results = self.history.iter().filter(|_| history).filter_map(read);
                let mut statistics = empty(StatisticsScope::LastTest);
                add_result(&mut statistics, &last);
                Statistics { history: results.collect(), ..statistics }
            }));
        }
        if wanted(StatisticsScope::AllTests) {
            found.extend(unpack(Part::All));
        }
        if wanted(StatisticsScope::MovingAverage) && self.plan.moving_average_size > 0 {
            found.extend(self.moving_average());
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

    /// What is to be stored; `None` stands for "no longer there".
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
            Part::All | Part::Running(..) | Part::Finished(_) | Part::Moving(_) => {
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

    /// Everything is to be stored again.
    pub(super) fn mark_all_changed(&mut self) {
        self.changed = self.all_parts();
    }

    fn all(&self) -> Statistics {
        let kept = self.parts.get(&Part::All);
        kept.map_or_else(|| empty(StatisticsScope::AllTests), Packed::unpack)
    }

    fn set(&mut self, part: Part, statistics: Statistics) {
        self.parts.insert(part, Packed::of(statistics));
        self.changed.push(part);
    }

    /// The first result behind a pause tells from when on intervals are whole.
    fn seen(&mut self, start_ns: u64) {
        if self.since_ns.is_none() {
            self.since_ns = Some(start_ns);
            self.not_whole(start_ns);
        }
    }

    fn in_minute(
        &mut self,
        minute: u64,
        disturbed: &VecDeque<u64>,
        has: &impl Fn(Part) -> bool,
        add: impl FnOnce(&mut Statistics),
    ) {
        let start_ns = minute * MINUTE_NS;
        let part = Part::Running(Level::Minute, start_ns);
        if self.is_late(Level::Minute, start_ns) || has(part) {
            return;
        }
        let mut statistics = self.interval(Level::Minute, start_ns, disturbed);
        add(&mut statistics);
        self.set(part, statistics);
    }

    /// Whether an interval is over. One that is far behind the latest is not late: the clock was
    /// wrong then.
    fn is_late(&self, level: Level, start_ns: u64) -> bool {
        let finished = self.finished[level as usize];
        finished.is_some_and(|finished| {
            (start_ns..=start_ns + CLOCK_WAS_WRONG * level.length_ns()).contains(&finished)
        })
    }

    fn add_to_longer(
        &mut self,
        level: Level,
        minute_ns: u64,
        minute: &Statistics,
        disturbed: &VecDeque<u64>,
    ) {
        let start_ns = level.start_ns(minute_ns);
        if self.is_late(level, start_ns) {
            return;
        }
        let mut statistics = self.interval(level, start_ns, disturbed);
        add_statistics(&mut statistics, minute);
        self.set(Part::Running(level, start_ns), statistics);
    }

    /// An interval that is not over, as it is or as it begins.
    fn interval(&self, level: Level, start_ns: u64, disturbed: &VecDeque<u64>) -> Statistics {
        if let Some(packed) = self.parts.get(&Part::Running(level, start_ns)) {
            return packed.unpack();
        }
        let whole = start_ns..start_ns + level.length_ns();
        Statistics {
            interval_start: Some(UnixTime(start_ns).to_proto()),
            suspect: self.since_ns.is_none_or(|since| start_ns < since)
                || disturbed.iter().any(|at| whole.contains(at)),
            ..empty(level.scope())
        }
    }

    /// The intervals of a level that are not over, with what is in minutes that are not.
    fn running(&self, level: Level) -> Vec<Statistics> {
        let minutes = Part::Running(Level::Minute, 0)..=Part::Running(Level::Minute, u64::MAX);
        let mut found: BTreeMap<u64, Statistics> = BTreeMap::new();
        for (part, packed) in &self.parts {
            if let Some((of, start_ns)) = part.running()
                && of == level
            {
                found.insert(start_ns, packed.unpack());
            }
        }
        if level != Level::Minute {
            for (part, packed) in self.parts.range(minutes) {
                let Some((_, minute_ns)) = part.running() else { continue };
                let start_ns = level.start_ns(minute_ns);
                let statistics = found
                    .entry(start_ns)
                    .or_insert_with(|| self.interval(level, start_ns, &VecDeque::new()));
                add_statistics(statistics, &packed.unpack());
            }
        }
        found.into_values().map(|one| Statistics { running: true, ..one }).collect()
    }

    fn moving(&mut self, result: &TestResult) {
        let size = self.head.ring;
        if size == 0 || result.outcome() == TestOutcome::Unreachable {
            return;
        }
        let place = (self.head.tests % size) as u16;
        self.head.tests += 1;
        self.changed.push(Part::Head);
        let mut statistics = empty(StatisticsScope::MovingAverage);
        add_result(&mut statistics, result);
        self.set(Part::Moving(place), statistics);
    }

    fn moving_average(&self) -> Option<Statistics> {
        let size = self.head.ring;
        let oldest = self.head.tests.saturating_sub(size);
        let mut average: Option<Statistics> = None;
        for test in oldest..self.head.tests {
            let Some(packed) = self.parts.get(&Part::Moving((test % size) as u16)) else {
                continue;
            };
            match &mut average {
                None => average = Some(packed.unpack()),
                Some(average) => add_statistics(average, &packed.unpack()),
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

fn empty(scope: StatisticsScope) -> Statistics {
    Statistics { scope: scope.into(), ..Statistics::default() }
}

/// Adds statistics of a later time.
fn add_statistics(into: &mut Statistics, later: &Statistics) {
    into.since = into.since.or(later.since);
    into.until = later.until.or(into.until);
    into.tests_complete += later.tests_complete;
    into.tests_interrupted += later.tests_interrupted;
    into.tests_unreachable += later.tests_unreachable;
    into.tests_stopped += later.tests_stopped;
    into.suspect |= later.suspect;
    if let Some(figures) = &later.figures {
        merge(into.figures.get_or_insert_with(Default::default), figures);
    }
}

fn time_ns(time: Option<&prost_types::Timestamp>) -> u64 {
    time.map_or(0, |time| UnixTime::from_proto(time).0)
}
