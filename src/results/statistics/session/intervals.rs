//! Intervals by the clock of one session.

use std::collections::{BTreeMap, VecDeque};

use super::{
    super::{
        part::{Level, Packed, Part},
        totals::{IntervalResult, Totals},
    },
    Session,
};
use crate::{proto::Statistics, stats::MINUTE_NS, time::NANOS_PER_SECOND};

/// Delay between the last outcome of its probes and the end of an interval: reports may still be
/// queued.
const REPORT_DELAY_NS: u64 = 2 * NANOS_PER_SECOND;

/// Number of intervals before the latest one beyond which a result starts a new interval, because
/// the clock was wrong.
const MAX_LATE_INTERVALS: u64 = 3;

impl Session {
    /// Closes the intervals that have ended and returns them.
    pub(in super::super) fn close(
        &mut self,
        now_ns: u64,
        disturbed: &VecDeque<u64>,
    ) -> Vec<IntervalResult> {
        let mut closed = Vec::new();
        // An ended minute is added to longer intervals, which may have ended as well.
        for level in Level::ALL {
            let length_ns = level.length_ns();
            let over: Vec<u64> =
                self.over(now_ns).filter(|(of, _)| *of == level).map(|(_, start)| start).collect();
            for start_ns in over {
                let part = Part::Running(level, start_ns);
                let Some(packed) = self.parts.remove(&part) else { continue };
                self.changed.push(part);
                let totals = packed.unpack();
                closed.push(IntervalResult {
                    scope: level.scope().into(),
                    start_unix_ns: start_ns,
                    end_unix_ns: start_ns + length_ns,
                    suspect: totals.suspect,
                    figures: totals.figures.clone(),
                });
                self.finish(level, start_ns, totals, disturbed, |_| false);
            }
        }
        closed
    }

    /// Lists the intervals that have ended and are not closed yet.
    pub(in super::super) fn over(&self, now_ns: u64) -> impl Iterator<Item = (Level, u64)> {
        let grace_ns = self.plan.loss_timeout_ns + REPORT_DELAY_NS;
        let running = self.parts.keys().filter_map(|part| part.running());
        running.filter(move |(level, start_ns)| {
            start_ns.saturating_add(level.length_ns() + grace_ns) <= now_ns
        })
    }

    fn finish(
        &mut self,
        level: Level,
        start_ns: u64,
        totals: Totals,
        disturbed: &VecDeque<u64>,
        has: impl Fn(Part) -> bool,
    ) {
        if level == Level::Minute {
            for longer in &Level::ALL[1..] {
                if !has(Part::Running(*longer, longer.start_ns(start_ns))) {
                    self.add_to_longer(*longer, start_ns, &totals, disturbed);
                }
            }
        }
        self.finished[level as usize] = Some(start_ns);
        self.set(Part::Finished(level), totals);
    }

    /// Adds an interval from the log, without reporting it again. Parts for which `has` returns
    /// true include it already.
    pub(in super::super) fn replay_interval(
        &mut self,
        result: &IntervalResult,
        has: impl Fn(Part) -> bool,
    ) {
        let level = Level::ALL.into_iter().find(|level| level.scope() == result.scope());
        let Some(level) = level else { return };
        if has(Part::Finished(level)) {
            return;
        }
        let start_ns = result.start_unix_ns;
        let part = Part::Running(level, start_ns);
        self.changed.push(part);
        // The part has the number of tests, the record has complete figures.
        let counted = self.parts.remove(&part).as_ref().map(Packed::unpack);
        let totals = Totals {
            interval_start_unix_ns: Some(start_ns),
            suspect: result.suspect,
            figures: result.figures.clone(),
            ..counted.unwrap_or_else(|| Totals::new(level.scope()))
        };
        self.finish(level, start_ns, totals, &VecDeque::new(), has);
    }

    /// Removes the intervals that begin after `now_ns`, open or ended; returns true if there were
    /// any.
    pub(in super::super) fn forget_future(&mut self, now_ns: u64) -> bool {
        let finished = self.finished;
        let is_future = |part: &Part| match part {
            Part::Running(_, start_ns) => *start_ns > now_ns,
            Part::Finished(level) => finished[*level as usize].is_some_and(|start| start > now_ns),
            Part::Meta | Part::All | Part::BeforeCurrent | Part::Last | Part::WindowSlot(_) => {
                false
            }
        };
        let future: Vec<Part> = self.parts.keys().copied().filter(is_future).collect();
        for part in &future {
            self.parts.remove(part);
            if let Part::Finished(level) = part {
                self.finished[*level as usize] = None;
            }
        }
        self.changed.extend(&future);
        !future.is_empty()
    }

    /// Marks the open intervals around a time as suspect.
    pub(in super::super) fn mark_suspect(&mut self, at_ns: u64) {
        self.mark_suspect_where(|level, start_ns| level.start_ns(at_ns) == start_ns);
    }

    /// Marks the open intervals that `which` selects as suspect.
    pub(super) fn mark_suspect_where(&mut self, which: impl Fn(Level, u64) -> bool) {
        let running: Vec<Part> = self
            .parts
            .keys()
            .filter(|part| part.running().is_some_and(|(level, start_ns)| which(level, start_ns)))
            .copied()
            .collect();
        for part in running {
            let totals = self.parts.get(&part).map(Packed::unpack).unwrap_or_default();
            if !totals.suspect {
                self.set(part, Totals { suspect: true, ..totals });
            }
        }
    }

    pub(super) fn in_minute(
        &mut self,
        minute: u64,
        disturbed: &VecDeque<u64>,
        has: &impl Fn(Part) -> bool,
        add: impl FnOnce(&mut Totals),
    ) {
        let start_ns = minute * MINUTE_NS;
        let part = Part::Running(Level::Minute, start_ns);
        if self.is_late(Level::Minute, start_ns) || has(part) {
            return;
        }
        let mut totals = self.interval(Level::Minute, start_ns, disturbed);
        add(&mut totals);
        self.set(part, totals);
    }

    /// Returns true if an interval has ended. One far before the latest is not late, because the
    /// clock was wrong.
    fn is_late(&self, level: Level, start_ns: u64) -> bool {
        let finished = self.finished[level as usize];
        finished.is_some_and(|finished| {
            (start_ns..=start_ns + MAX_LATE_INTERVALS * level.length_ns()).contains(&finished)
        })
    }

    fn add_to_longer(
        &mut self,
        level: Level,
        minute_ns: u64,
        minute: &Totals,
        disturbed: &VecDeque<u64>,
    ) {
        let start_ns = level.start_ns(minute_ns);
        if self.is_late(level, start_ns) {
            return;
        }
        let mut totals = self.interval(level, start_ns, disturbed);
        totals.add(minute);
        self.set(Part::Running(level, start_ns), totals);
    }

    /// Returns the totals of an open interval, or those with which it begins.
    fn interval(&self, level: Level, start_ns: u64, disturbed: &VecDeque<u64>) -> Totals {
        if let Some(packed) = self.parts.get(&Part::Running(level, start_ns)) {
            return packed.unpack();
        }
        let whole = start_ns..start_ns + level.length_ns();
        Totals {
            interval_start_unix_ns: Some(start_ns),
            suspect: self.since_ns.is_none_or(|since| start_ns < since)
                || disturbed.iter().any(|at| whole.contains(at)),
            ..Totals::new(level.scope())
        }
    }

    /// Returns the open intervals of a level, including open minutes within them.
    pub(super) fn running(&self, level: Level) -> Vec<Statistics> {
        let minutes = Part::Running(Level::Minute, 0)..=Part::Running(Level::Minute, u64::MAX);
        let mut found: BTreeMap<u64, Totals> = BTreeMap::new();
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
                let totals = found
                    .entry(start_ns)
                    .or_insert_with(|| self.interval(level, start_ns, &VecDeque::new()));
                totals.add(&packed.unpack());
            }
        }
        found.into_values().map(|one| Statistics { current: true, ..one.into() }).collect()
    }

    /// Ends an interruption with its first result: intervals that begin later are complete.
    pub(super) fn end_interruption(&mut self, start_ns: u64) {
        if self.since_ns.is_none() {
            self.since_ns = Some(start_ns);
            self.mark_suspect(start_ns);
        }
    }
}
