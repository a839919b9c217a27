//! Beginning and end of tests.

use super::{MAX_OVERDUE_NS, Phase, SenderConfig, SenderEvent, SessionSender};
use crate::{
    model::{FailureCause, TestOutcome},
    stats::{Figures, MINUTE_NS, TestFigures, TestResult, minute_of},
    time::{Monotonic, NANOS_PER_SECOND, Now, UnixTime},
};

/// Delay between the last outcome of the probes of a minute and the close of that minute. The first
/// replies of the next minute show the direction of its last losses.
pub(super) const MINUTE_CLOSE_DELAY_NS: u64 = NANOS_PER_SECOND;

#[derive(Debug)]
pub(super) struct Test {
    pub(super) started: Now,
    pub(super) figures: TestFigures,
    /// Probes that were sent or skipped.
    pub(super) handled: u32,
    pub(super) next_due: Monotonic,
    pub(super) last_due: Monotonic,
    /// Time at which all outcomes are known; `None` until all probes were sent or skipped.
    pub(super) ends: Option<Monotonic>,
    /// Outcome unless the test is interrupted.
    pub(super) outcome: TestOutcome,
    /// True if at least one probe was sent.
    pub(super) sent: bool,
    /// Number of probes that this host refused to send to the reflector, and the cause of the
    /// latest refusal.
    pub(super) refused: (u64, FailureCause),
    /// Time at which the oldest open minute is complete.
    pub(super) minute_closes: Option<Monotonic>,
}

impl SessionSender {
    pub(super) fn begin_test(&mut self, due: Monotonic, now: Now) {
        self.test_number += 1;
        // After a suspension of the host the schedule starts over.
        let start = if now.monotonic.since_ns(due) > MAX_OVERDUE_NS { now.monotonic } else { due };
        self.phase = Phase::Testing(Box::new(Test {
            started: now,
            figures: match self.spare.take() {
                Some(figures) => figures.recycle(self.config.probe_count.into(), now.unix),
                None => TestFigures::new(self.config.probe_count.into(), now.unix),
            },
            handled: 0,
            next_due: start,
            last_due: start,
            ends: None,
            outcome: TestOutcome::Complete,
            sent: false,
            refused: (0, FailureCause::Unspecified),
            minute_closes: None,
        }));
        let missed = std::mem::take(&mut self.missed);
        if let (1.., Phase::Testing(test)) = (missed, &mut self.phase) {
            let (track, rule) = (&mut self.track, &self.config.availability);
            test.figures.unreachable(missed, track, rule, now.unix);
        }
    }

    /// Counts the probes that became due by now while the reflector was unreachable.
    pub(super) fn count_missed(&mut self, now: Monotonic) {
        if let Some((since, most)) = self.missing.take()
            && since <= now
        {
            let bursts = now.since_ns(since) / self.config.probe_interval_ns + 1;
            self.missed += bursts.saturating_mul(self.config.burst_size.into()).min(most);
        }
    }

    pub(super) fn unreachable_test(
        &mut self,
        cause: FailureCause,
        attempts: u64,
        due: Monotonic,
        now: Now,
    ) {
        self.test_number += 1;
        let probes = u64::from(self.config.probe_count);
        let start = now.unix.plus_ns(-(now.monotonic.since_ns(due) as i64));
        // Probes of this test lower availability only as they become due.
        self.count_missed(due);
        self.missing = Some((due, probes));
        let mut figures =
            Figures { probes_scheduled: probes, probes_not_sent: probes, ..Figures::default() };
        let missed = std::mem::take(&mut self.missed);
        self.track.outcomes.unreachable(missed, &self.config.availability, &mut figures);
        let result = TestResult {
            test_number: self.test_number,
            outcome: TestOutcome::Unreachable.into(),
            start_unix_ns: start.0,
            end_unix_ns: now.unix.0,
            cause: cause.into(),
            attempts,
            figures: Some(Box::new(figures)),
        };
        let minute = Some(minute_of(start));
        self.events.push_back(SenderEvent::Test(Box::new(result), minute));
        let duration = self
            .config
            .span_ns(self.config.probe_count)
            .saturating_sub(self.config.probe_interval_ns)
            .saturating_add(self.config.loss_timeout_ns)
            .saturating_add(self.config.test_interval_ns);
        (self.phase, self.is_inter_test_gap) = (Phase::Idle(Some(due.plus_ns(duration))), true);
    }

    /// Ends the running test early. The next test is due at the same time as without the early end.
    pub(super) fn end_early(&mut self, outcome: TestOutcome, cause: FailureCause, now: Now) {
        let Phase::Testing(test) = &mut self.phase else { return };
        let left = self.config.probe_count - test.handled;
        test.figures.not_sent(left.into(), now.unix);
        if left > 0 && test.outcome == TestOutcome::Complete {
            self.missing = Some((test.next_due, left.into()));
        }
        let next = test
            .last_due
            .plus_ns(self.config.span_ns(left))
            .plus_ns(self.config.loss_timeout_ns)
            .plus_ns(self.config.test_interval_ns);
        // Replies to probes in flight can no longer arrive.
        let stopped = test.outcome == TestOutcome::Stopped;
        self.abandon_probes();
        if stopped {
            self.end_test(TestOutcome::Stopped, FailureCause::Unspecified, None, now);
        } else {
            self.end_test(outcome, cause, Some(next), now);
        }
    }

    pub(super) fn end_test(
        &mut self,
        outcome: TestOutcome,
        cause: FailureCause,
        next: Option<Monotonic>,
        now: Now,
    ) {
        self.release_all();
        let Phase::Testing(test) = std::mem::replace(&mut self.phase, Phase::Idle(next)) else {
            return;
        };
        self.is_inter_test_gap = next.is_some();
        let (mut test, losses) = (test, self.outstanding.end_test());
        let (mut outcome, mut cause) = (outcome, cause);
        if let (refused @ 1.., why) = test.refused {
            let (track, rule) = (&mut self.track, &self.config.availability);
            test.figures.unreachable(refused, track, rule, now.unix);
            if outcome == TestOutcome::Complete && !test.sent {
                (outcome, cause) = (TestOutcome::Unreachable, why);
            }
        }
        let stamp = self.carrier.stamp.as_mut().map(|stamp| Box::new(stamp.take_figures()));
        let directions = self.outstanding.directions(&losses);
        let figures = Figures { stamp, ..test.figures.figures(directions) };
        let minute = test.figures.only_minute();
        while minute.is_none()
            && let Some((minute, figures)) = test.figures.close(u64::MAX, directions)
        {
            self.events.push_back(SenderEvent::Minute(
                minute,
                Box::new(figures),
                test.started.unix,
            ));
        }
        self.spare = Some(test.figures);
        let result = TestResult {
            test_number: self.test_number,
            outcome: outcome.into(),
            start_unix_ns: test.started.unix.0,
            end_unix_ns: now.unix.0,
            cause: cause.into(),
            attempts: 0,
            figures: Some(Box::new(figures)),
        };
        self.events.push_back(SenderEvent::Test(Box::new(result), minute));
        self.tests_finished += 1;
        if let Some(config) = self.next_config.take() {
            self.set_config(config, now.monotonic);
        }
        self.complete();
    }
}

impl Test {
    /// Sets the time at which the oldest open minute closes.
    pub(super) fn set_minute_closes(&mut self, loss_timeout_ns: u64, now: Now) {
        self.minute_closes = self.figures.first_minute().map(|minute| {
            let closes =
                UnixTime((minute + 1) * MINUTE_NS + loss_timeout_ns + MINUTE_CLOSE_DELAY_NS);
            now.monotonic.plus_ns(closes.0.saturating_sub(now.unix.0))
        });
    }

    pub(super) fn advance(&mut self, config: &SenderConfig, gap_ns: u64, now: Monotonic) {
        self.handled += 1;
        self.last_due = self.next_due;
        self.next_due = self.next_due.plus_ns(gap_ns);
        if self.handled >= config.probe_count {
            // The test ends just after the outcome of the last probe, which may have been sent
            // late; a test without a sent probe does not wait.
            let last = self.last_due.max(now);
            let wait_ns = if self.sent { config.loss_timeout_ns + 1 } else { 0 };
            self.ends = Some(last.plus_ns(wait_ns));
        }
    }
}
