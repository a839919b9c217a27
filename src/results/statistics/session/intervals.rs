//! Intervals by the clock of one session: which are running, when they are over, and whether they are
//! whole.

use std::collections::{BTreeMap, VecDeque};

use super::{
    super::part::{Level, Packed, Part},
    Session, add_statistics, empty, time_ns,
};
use crate::{
    proto::{IntervalResult, Statistics},
    stats::MINUTE_NS,
    time::{NANOS_PER_SECOND, UnixTime},
};

/// Delay between the last outcome of its probes and the end of an interval: reports may still be
/// queued.
const REPORTS_NS: u64 = 2 * NANOS_PER_SECOND;

/// An interval that is so many behind the latest one is made anew.
const CLOCK_WAS_WRONG: u64 = 3;

impl Session {
    /// Intervals that are over by now.
    pub(in super::super) fn close(
        &mut self,
        now_ns: u64,
        disturbed: &VecDeque<u64>,
    ) -> Vec<IntervalResult> {
        let mut closed = Vec::new();
        // A minute that is over goes into longer ones, which may be over as well.
        for level in Level::ALL {
            let length_ns = level.length_ns();
            let over: Vec<u64> =
                self.over(now_ns).filter(|(of, _)| *of == level).map(|(_, start)| start).collect();
            for start_ns in over {
                let part = Part::Running(level, start_ns);
                let Some(packed) = self.parts.remove(&part) else { continue };
                self.changed.push(part);
                let statistics = packed.unpack();
                closed.push(IntervalResult {
                    scope: level.scope().into(),
                    start_time: statistics.interval_start_time,
                    end_time: Some(UnixTime(start_ns + length_ns).to_proto()),
                    suspect: statistics.suspect,
                    figures: statistics.figures.clone(),
                });
                self.finish(level, start_ns, statistics, disturbed, |_| false);
            }
        }
        closed
    }

    /// Lists the intervals that have ended and are not closed yet.
    pub(in super::super) fn over(&self, now_ns: u64) -> impl Iterator<Item = (Level, u64)> {
        let grace_ns = self.plan.loss_timeout_ns + REPORTS_NS;
        let running = self.parts.keys().filter_map(|part| part.running());
        running.filter(move |(level, start_ns)| {
            start_ns.saturating_add(level.length_ns() + grace_ns) <= now_ns
        })
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

    /// An interval out of the log: it was told already, and is not again. Parts that have it, by
    /// `has`, are left alone.
    pub(in super::super) fn interval_again(
        &mut self,
        result: &IntervalResult,
        has: impl Fn(Part) -> bool,
    ) {
        let level = Level::ALL.into_iter().find(|level| level.scope() == result.scope());
        let Some(level) = level else { return };
        if has(Part::Finished(level)) {
            return;
        }
        let start_ns = time_ns(result.start_time.as_ref());
        let part = Part::Running(level, start_ns);
        self.changed.push(part);
        // The tests are counted in the part, the figures of the record are whole.
        let counted = self.parts.remove(&part).as_ref().map(Packed::unpack);
        let statistics = Statistics {
            interval_start_time: result.start_time,
            suspect: result.suspect,
            figures: result.figures.clone(),
            ..counted.unwrap_or_else(|| empty(level.scope()))
        };
        self.finish(level, start_ns, statistics, &VecDeque::new(), has);
    }

    /// Something made the intervals that are running now other than whole.
    pub(in super::super) fn not_whole(&mut self, at_ns: u64) {
        self.none_whole(|level, start_ns| level.start_ns(at_ns) == start_ns);
    }

    /// Marks the open intervals that `which` selects as incomplete.
    pub(super) fn none_whole(&mut self, which: impl Fn(Level, u64) -> bool) {
        let running: Vec<Part> = self
            .parts
            .keys()
            .filter(|part| part.running().is_some_and(|(level, start_ns)| which(level, start_ns)))
            .copied()
            .collect();
        for part in running {
            let statistics = self.parts.get(&part).map(Packed::unpack).unwrap_or_default();
            if !statistics.suspect {
                self.set(part, Statistics { suspect: true, ..statistics });
            }
        }
    }

    pub(super) fn in_minute(
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

    /// Returns whether an interval has ended. One far before the latest is not late: the clock was
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
            interval_start_time: Some(UnixTime(start_ns).to_proto()),
            suspect: self.since_ns.is_none_or(|since| start_ns < since)
                || disturbed.iter().any(|at| whole.contains(at)),
            ..empty(level.scope())
        }
    }

    /// The intervals of a level that are not over, with what is in minutes that are not.
    pub(super) fn running(&self, level: Level) -> Vec<Statistics> {
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
        found.into_values().map(|one| Statistics { current: true, ..one }).collect()
    }

    /// The first result behind a pause tells from when on intervals are whole.
    pub(super) fn seen(&mut self, start_ns: u64) {
        if self.since_ns.is_none() {
            self.since_ns = Some(start_ns);
            self.not_whole(start_ns);
        }
    }
}
