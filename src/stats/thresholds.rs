//! Thresholds. A value that meets or exceeds its limit raises the threshold once. Consecutive tests
//! that stay clearly below the limit clear it. Delays of single probes raise it at once, but clear
//! it only at the end of a test, so that a value around its limit does not cause an event for each
//! probe.

use super::{DelayStats, ProbeResult, TestResult, sample::MAX_STAMP_SKEW_NS};
use crate::{
    model::{OneWayValidity, ProbeStatus, TestOutcome, Threshold, ThresholdLimit, Thresholds},
    time::UnixTime,
};

/// A threshold raised or cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThresholdChange {
    /// Threshold that was crossed.
    pub threshold: Threshold,
    /// Limit of the threshold: nanoseconds or probes.
    pub limit: u64,
    /// Value that crossed it: nanoseconds or probes.
    pub value: u64,
    /// Number of the test; 0 if it was cleared outside of a test.
    pub test_number: u64,
    /// Time at which it was raised; `None` for one that is raised now.
    pub cleared_since: Option<UnixTime>,
}

#[derive(Clone, Copy, Debug)]
struct Raised {
    value: u64,
    since: UnixTime,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    raised: Option<Raised>,
    /// Number of consecutive tests that stayed clearly below the limit.
    clear: u32,
    /// Worst value of the running test; `None` before the first.
    worst: Option<u64>,
}

/// Monitor of the limits of one session.
#[derive(Debug, Default)]
pub struct ThresholdMonitor {
    thresholds: Thresholds,
    /// State of each limit, in the order of the limits.
    states: Vec<State>,
    /// Consecutive lost probes up to the latest one.
    successive_loss: u64,
    unreachable: bool,
}

impl ThresholdMonitor {
    /// Replaces the limits. Thresholds whose limit is removed or changed are cleared.
    pub fn set(&mut self, thresholds: &Thresholds) -> Vec<ThresholdChange> {
        let mut cleared = Vec::new();
        let mut known = Vec::new();
        for (limit, state) in self.thresholds.limits.iter().zip(&self.states) {
            if thresholds.limits.contains(limit) {
                known.push((*limit, *state));
            } else if let Some(raised) = state.raised {
                cleared.push(limit.change(raised.value, 0, Some(raised)));
            }
        }
        let state = |limit| {
            let found = known.iter().find(|(known, _)| known == limit);
            found.map(|(_, state)| *state).unwrap_or_default()
        };
        self.states = thresholds.limits.iter().map(state).collect();
        self.thresholds.clone_from(thresholds);
        cleared
    }

    /// Clears all raised thresholds while measurements pause; the limits remain.
    pub fn clear_all(&mut self) -> Vec<ThresholdChange> {
        let limits = self.thresholds.clone();
        let cleared = self.set(&Thresholds::default());
        self.set(&limits);
        cleared
    }

    /// Sets whether the session is established. Nothing is judged while it is not.
    pub fn set_reachable(&mut self, reachable: bool) {
        self.unreachable = !reachable;
        self.successive_loss = 0;
    }

    /// Judges the outcome of a probe.
    pub fn probe(&mut self, probe: &ProbeResult, now: UnixTime) -> Vec<ThresholdChange> {
        let decided = probe.status() != ProbeStatus::Abandoned;
        if self.unreachable || !decided || self.thresholds.limits.is_empty() {
            return Vec::new();
        }
        let received = probe.status() == ProbeStatus::Received;
        self.successive_loss = if received { 0 } else { self.successive_loss + 1 };
        let mut events = Vec::new();
        // Impossible delays are ignored, as in the statistics.
        let validity = probe.one_way_validity();
        let has_rtt =
            validity != OneWayValidity::ClockStepped && probe.rtt_ns.is_none_or(|ns| ns >= 0);
        let has_one_way = validity != OneWayValidity::TaiOffset
            && probe.reflector_processing_ns.is_none_or(|ns| ns >= -MAX_STAMP_SKEW_NS);
        let delay = |ns: Option<i64>| ns.filter(|_| has_rtt).and_then(|ns| u64::try_from(ns).ok());
        let one_way = |ns| delay(ns).filter(|_| has_one_way);
        for index in 0..self.states.len() {
            let value = match self.thresholds.limits[index].threshold {
                Threshold::SuccessiveLoss => Some(self.successive_loss),
                Threshold::Rtt => delay(probe.rtt_ns),
                Threshold::EgressTime => one_way(probe.egress_ns),
                Threshold::IngressTime => one_way(probe.ingress_ns),
                Threshold::Unspecified
                | Threshold::TotalLoss
                | Threshold::MaxRtt
                | Threshold::JitterRtt
                | Threshold::StdDevRtt
                | Threshold::JitterEgress
                | Threshold::StdDevEgress
                | Threshold::JitterIngress
                | Threshold::StdDevIngress => None,
            };
            if let Some(value) = value {
                events.extend(self.judge(index, value, probe.test_number, now));
            }
        }
        events
    }

    /// Judges the figures of a test that ended.
    pub fn test_ended(&mut self, result: &TestResult, now: UnixTime) -> Vec<ThresholdChange> {
        let judged = matches!(result.outcome(), TestOutcome::Complete | TestOutcome::Stopped);
        let figures = result.figures.as_ref().filter(|figures| judged && figures.probes_sent > 0);
        let Some(figures) = figures else {
            self.states.iter_mut().for_each(|state| state.worst = None);
            return Vec::new();
        };
        let mut events = Vec::new();
        let some =
            |stats: &Option<Box<DelayStats>>| stats.clone().filter(|stats| stats.samples > 0);
        let jitter = |stats| some(stats).map(|stats| stats.max_ns.abs_diff(stats.min_ns));
        let deviation = |stats| some(stats).map(|stats| stats.stddev_ns as u64);
        for index in 0..self.states.len() {
            let value = match self.thresholds.limits[index].threshold {
                Threshold::TotalLoss => Some(figures.probes_lost),
                Threshold::MaxRtt => some(&figures.rtt).map(|rtt| positive(rtt.max_ns)),
                Threshold::JitterRtt => jitter(&figures.rtt),
                Threshold::StdDevRtt => deviation(&figures.rtt),
                Threshold::JitterEgress => jitter(&figures.egress),
                Threshold::StdDevEgress => deviation(&figures.egress),
                Threshold::JitterIngress => jitter(&figures.ingress),
                Threshold::StdDevIngress => deviation(&figures.ingress),
                Threshold::Unspecified
                | Threshold::SuccessiveLoss
                | Threshold::Rtt
                | Threshold::EgressTime
                | Threshold::IngressTime => None,
            };
            if let Some(value) = value {
                events.extend(self.judge(index, value, result.test_number, now));
            }
            events.extend(self.clear(index, result.test_number));
        }
        events
    }

    fn judge(
        &mut self,
        index: usize,
        value: u64,
        test: u64,
        now: UnixTime,
    ) -> Option<ThresholdChange> {
        let limit = self.thresholds.limits[index];
        let state = &mut self.states[index];
        state.worst = state.worst.max(Some(value));
        if value < limit.limit || state.raised.is_some() {
            return None;
        }
        state.raised = Some(Raised { value, since: now });
        state.clear = 0;
        Some(limit.change(value, test, None))
    }

    /// Clears the threshold at the end of a test, if enough consecutive tests have stayed below the
    /// limit.
    fn clear(&mut self, index: usize, test: u64) -> Option<ThresholdChange> {
        let (limit, state) = (self.thresholds.limits[index], &mut self.states[index]);
        let worst = state.worst.take()?;
        let raised = state.raised?;
        let below = u128::from(limit.limit) * u128::from(self.thresholds.clear_percent) / 100;
        state.clear = if u128::from(worst) <= below { state.clear + 1 } else { 0 };
        if state.clear < self.thresholds.clear_after_tests {
            return None;
        }
        state.raised = None;
        Some(limit.change(worst, test, Some(raised)))
    }
}

impl ThresholdLimit {
    fn change(self, value: u64, test_number: u64, cleared: Option<Raised>) -> ThresholdChange {
        let Self { threshold, limit } = self;
        let cleared_since = cleared.map(|raised| raised.since);
        ThresholdChange { threshold, limit, value, test_number, cleared_since }
    }
}

fn positive(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Figures;

    const NOW: UnixTime = UnixTime(1);

    fn monitor(threshold: Threshold, limit: u64) -> ThresholdMonitor {
        let mut monitor = ThresholdMonitor::default();
        let limits = vec![ThresholdLimit { threshold, limit }];
        monitor.set(&Thresholds { limits, clear_percent: 90, clear_after_tests: 2 });
        monitor
    }

    fn probe(rtt_ns: Option<i64>) -> ProbeResult {
        let status = if rtt_ns.is_some() { ProbeStatus::Received } else { ProbeStatus::Lost };
        ProbeResult { status: status.into(), rtt_ns, ..ProbeResult::default() }
    }

    fn test(outcome: TestOutcome, figures: Figures) -> TestResult {
        let figures = Some(Figures { probes_sent: 10, ..figures });
        TestResult {
            outcome: outcome.into(),
            figures: figures.map(Box::new),
            ..TestResult::default()
        }
    }

    fn complete() -> TestResult {
        test(TestOutcome::Complete, Figures::default())
    }

    fn are_cleared(changes: &[ThresholdChange]) -> Vec<bool> {
        changes.iter().map(|change| change.cleared_since.is_some()).collect()
    }

    #[test]
    fn an_impossible_delay_neither_raises_nor_clears() {
        let mut monitor = monitor(Threshold::Rtt, 1_000);
        let backwards =
            ProbeResult { reflector_processing_ns: Some(-100_001), ..probe(Some(1_000)) };
        assert_eq!(monitor.probe(&backwards, NOW).len(), 1, "the rtt is of one clock");
        assert!(monitor.test_ended(&complete(), NOW).is_empty());
        for _ in 0..10 {
            assert!(monitor.probe(&probe(Some(-1)), NOW).is_empty());
            assert!(monitor.test_ended(&complete(), NOW).is_empty());
        }
    }

    #[test]
    fn a_delay_raises_at_once_and_once_and_clears_after_quiet_tests() {
        let mut monitor = monitor(Threshold::Rtt, 1_000);
        assert!(monitor.probe(&probe(Some(999)), NOW).is_empty());
        let raised = monitor.probe(&probe(Some(1_000)), NOW);
        assert_eq!(are_cleared(&raised), [false], "met is enough");
        assert_eq!((raised[0].value, raised[0].limit), (1_000, 1_000));
        assert!(monitor.probe(&probe(Some(5_000)), NOW).is_empty(), "raised already");
        assert!(monitor.test_ended(&complete(), NOW).is_empty());
        // Below the limit, but not clearly.
        monitor.probe(&probe(Some(901)), NOW);
        assert!(monitor.test_ended(&complete(), NOW).is_empty());
        monitor.probe(&probe(Some(900)), NOW);
        assert!(monitor.test_ended(&complete(), NOW).is_empty());
        // A test without a value says nothing.
        monitor.probe(&probe(None), NOW);
        assert!(monitor.test_ended(&complete(), NOW).is_empty());
        monitor.probe(&probe(Some(500)), UnixTime(9));
        let cleared = monitor.test_ended(&complete(), UnixTime(9));
        assert_eq!(are_cleared(&cleared), [true]);
        assert_eq!((cleared[0].value, cleared[0].cleared_since), (500, Some(NOW)));
        assert_eq!(monitor.probe(&probe(Some(1_000)), NOW).len(), 1, "and again");
    }

    #[test]
    fn successive_losses_continue_across_tests() {
        let mut monitor = monitor(Threshold::SuccessiveLoss, 3);
        assert!(monitor.probe(&probe(None), NOW).is_empty());
        assert!(monitor.probe(&probe(None), NOW).is_empty());
        monitor.test_ended(&complete(), NOW);
        assert_eq!(monitor.probe(&probe(None), NOW).len(), 1);
        monitor.probe(&probe(Some(1)), NOW);
        assert!(monitor.probe(&probe(None), NOW).is_empty());
    }

    #[test]
    fn nothing_is_judged_without_a_session_or_in_an_interrupted_test() {
        let mut monitor = monitor(Threshold::TotalLoss, 1);
        let lost = Figures { probes_lost: 5, ..Figures::default() };
        for outcome in [TestOutcome::Interrupted, TestOutcome::Unreachable] {
            assert!(monitor.test_ended(&test(outcome, lost.clone()), NOW).is_empty());
        }
        assert_eq!(monitor.test_ended(&test(TestOutcome::Complete, lost), NOW).len(), 1);
        let mut monitor = self::monitor(Threshold::SuccessiveLoss, 1);
        monitor.set_reachable(false);
        assert!(monitor.probe(&probe(None), NOW).is_empty());
        monitor.set_reachable(true);
        assert_eq!(monitor.probe(&probe(None), NOW).len(), 1);
    }

    #[test]
    fn a_removed_limit_clears_its_threshold_and_a_kept_limit_does_not() {
        let mut monitor = monitor(Threshold::Rtt, 10);
        monitor.probe(&probe(Some(50)), NOW);
        let same = monitor.thresholds.clone();
        assert!(monitor.set(&same).is_empty());
        assert!(monitor.probe(&probe(Some(50)), NOW).is_empty(), "still raised");
        let other = vec![ThresholdLimit { threshold: Threshold::Rtt, limit: 20 }];
        let cleared = monitor.set(&Thresholds { limits: other, ..same });
        assert_eq!(are_cleared(&cleared), [true]);
        assert_eq!((cleared[0].value, cleared[0].limit), (50, 10));
        assert_eq!(monitor.probe(&probe(Some(50)), NOW).len(), 1);
    }
}
