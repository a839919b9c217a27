//! Loss runs and availability: both follow the outcomes of probes in the order of the probes, and
//! continue from one test to the next.

use super::{Availability, Figures, LossBursts};
use crate::model::AvailabilityRule;

/// State of the loss runs and the availability of a session.
#[derive(Clone, Debug, Default)]
pub struct OutcomeTrack {
    /// Number of consecutive losses, up to the latest probe.
    run: u64,
    interval: Interval,
    availability: Window,
}

/// Probes of the interval that is being filled.
#[derive(Clone, Copy, Debug, Default)]
struct Interval {
    probes: u64,
    lost: u64,
}

/// The sliding window of availability.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    unavailable: bool,
    /// Number of consecutive intervals that contradict the current state and are too few to change
    /// it.
    contrary: u64,
    /// Consecutive intervals of high loss while available.
    high_loss: u64,
}

impl OutcomeTrack {
    /// Counts the outcome of the next probe into the figures.
    pub fn count(&mut self, lost: bool, rule: &AvailabilityRule, figures: &mut Figures) {
        if lost {
            self.run += 1;
            let bursts = figures.loss_bursts.get_or_insert_with(LossBursts::default);
            bursts.max_length = bursts.max_length.max(self.run);
        } else {
            self.end_run(figures);
        }
        self.interval.probes += 1;
        self.interval.lost += u64::from(lost);
        if self.interval.probes >= rule.probes_per_interval {
            self.end_interval(rule, figures);
        }
    }

    fn end_interval(&mut self, rule: &AvailabilityRule, figures: &mut Figures) {
        let Interval { probes, lost } = std::mem::take(&mut self.interval);
        let high = lost * 100 >= rule.loss_percent * probes;
        self.availability.add_interval(high, rule, figures);
    }

    /// Counts probes that were due while the reflector was unreachable as lost for availability.
    pub fn unreachable(&mut self, probes: u64, rule: &AvailabilityRule, figures: &mut Figures) {
        // The open interval is filled first.
        let open = self.interval.probes.min(1) * (rule.probes_per_interval - self.interval.probes);
        let first = probes.min(open);
        self.interval.probes += first;
        self.interval.lost += first;
        if first > 0 && self.interval.probes >= rule.probes_per_interval {
            self.end_interval(rule, figures);
        }
        let rest = probes - first;
        let intervals = rest / rule.probes_per_interval;
        let left = rest % rule.probes_per_interval;
        if rest > 0 {
            self.interval = Interval { probes: left, lost: left };
        }
        if intervals == 0 {
            return;
        }
        // After these intervals the path is unavailable, and further ones are only counted.
        let singly = intervals.min(rule.consecutive_intervals * 2);
        for _ in 0..singly {
            self.availability.add_interval(true, rule, figures);
        }
        let counts = figures.availability.get_or_insert_with(Availability::default);
        counts.unavailable_intervals += intervals - singly;
    }

    fn end_run(&mut self, figures: &mut Figures) {
        let run = std::mem::take(&mut self.run);
        if run == 0 {
            return;
        }
        let bursts = figures.loss_bursts.get_or_insert_with(LossBursts::default);
        let class = run.ilog2() as usize;
        if bursts.counts_by_length.len() <= class {
            bursts.counts_by_length.resize(class + 1, 0);
        }
        bursts.counts_by_length[class] += 1;
        bursts.bursts += 1;
        bursts.max_length = bursts.max_length.max(run);
    }
}

impl Window {
    fn add_interval(&mut self, high_loss: bool, rule: &AvailabilityRule, figures: &mut Figures) {
        let counts = figures.availability.get_or_insert_with(Availability::default);
        if high_loss != self.unavailable {
            self.contrary += 1;
            self.high_loss += u64::from(high_loss);
            if self.contrary >= rule.consecutive_intervals {
                // The change takes effect from the first of these intervals.
                let changed = std::mem::take(&mut self.contrary);
                self.unavailable = high_loss;
                if high_loss {
                    counts.unavailable_intervals += changed;
                    self.high_loss = 0;
                } else {
                    counts.available_intervals += changed;
                }
            }
            return;
        }
        // Intervals in the other state were too few for a change.
        let contrary = std::mem::take(&mut self.contrary) + 1;
        if self.unavailable {
            counts.unavailable_intervals += contrary;
            return;
        }
        counts.available_intervals += contrary;
        let high_loss = std::mem::take(&mut self.high_loss);
        counts.high_loss_intervals += high_loss;
        counts.consecutive_high_loss_intervals +=
            u64::from(high_loss >= rule.consecutive_high_loss_intervals);
    }
}

/// Adds the bursts of a later test.
pub(super) fn merge_bursts(into: &mut Option<LossBursts>, later: Option<&LossBursts>) {
    let Some(later) = later else { return };
    let into = into.get_or_insert_with(LossBursts::default);
    into.bursts += later.bursts;
    into.max_length = into.max_length.max(later.max_length);
    if into.counts_by_length.len() < later.counts_by_length.len() {
        into.counts_by_length.resize(later.counts_by_length.len(), 0);
    }
    into.counts_by_length
        .iter_mut()
        .zip(&later.counts_by_length)
        .for_each(|(into, later)| *into += later);
}

/// Adds the availability of a later test.
pub(super) fn merge_availability(into: &mut Option<Availability>, later: Option<&Availability>) {
    let Some(later) = later else { return };
    let into = into.get_or_insert_with(Availability::default);
    into.available_intervals += later.available_intervals;
    into.unavailable_intervals += later.unavailable_intervals;
    into.high_loss_intervals += later.high_loss_intervals;
    into.consecutive_high_loss_intervals += later.consecutive_high_loss_intervals;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(probes_per_interval: u64, consecutive_intervals: u64) -> AvailabilityRule {
        AvailabilityRule {
            probes_per_interval,
            loss_percent: 50,
            consecutive_intervals,
            consecutive_high_loss_intervals: 2,
        }
    }

    /// Returns the figures of outcomes as a string: `.` answered, `x` lost, `u` not sent.
    fn figures_of(outcomes: &str, rule: &AvailabilityRule) -> Figures {
        let (mut state, mut figures) = (OutcomeTrack::default(), Figures::default());
        for outcome in outcomes.chars() {
            match outcome {
                'u' => state.unreachable(1, rule, &mut figures),
                outcome => state.count(outcome == 'x', rule, &mut figures),
            }
        }
        figures
    }

    fn availability(outcomes: &str, rule: &AvailabilityRule) -> [u64; 4] {
        let a = figures_of(outcomes, rule).availability.unwrap();
        [
            a.available_intervals,
            a.unavailable_intervals,
            a.high_loss_intervals,
            a.consecutive_high_loss_intervals,
        ]
    }

    #[test]
    fn runs_are_counted_by_length() {
        let bursts = figures_of("x.xx..xxxxx.xx", &rule(1, 10)).loss_bursts.unwrap();
        assert_eq!((bursts.bursts, bursts.max_length), (3, 5), "the last one has not ended");
        assert_eq!(bursts.counts_by_length, [1, 1, 1]);
    }

    #[test]
    fn a_change_of_availability_counts_from_its_first_interval() {
        let rule = rule(1, 3);
        assert_eq!(availability("..x..xx...", &rule), [10, 0, 3, 1]);
        assert_eq!(availability("..xxx", &rule), [2, 3, 0, 0]);
        assert_eq!(availability("..xxx..x...", &rule), [5, 6, 0, 0]);
        assert_eq!(availability(".uuu", &rule), [1, 3, 0, 0]);
    }

    #[test]
    fn an_interval_is_of_high_loss_once_its_losses_reach_the_limit() {
        let rule = rule(4, 2);
        assert_eq!(availability("...x..xx....", &rule), [3, 0, 1, 0]);
        let mut figures = Figures::default();
        let mut track = OutcomeTrack::default();
        track.count(false, &rule, &mut figures);
        track.unreachable(4_000_000, &rule, &mut figures);
        assert_eq!(figures.availability.unwrap().unavailable_intervals, 1_000_000);
        // The remainder stays: the first interval was begun by an answered probe.
        assert_eq!(track.interval.probes, 1);
        // An interval that began well is not of high loss because one probe was not sent.
        assert_eq!(availability("...u....", &rule), [2, 0, 0, 0]);
    }
}
