//! Reports of a session: single probes in batches, results of tests, and thresholds that were crossed.

use std::io;

use super::Session;
use crate::{
    model::{FailureCause, TestOutcome},
    proto::{Event, EventType, Statistics, StatisticsScope},
    results::{PROBES_PER_RECORD, convert},
    stats::{TestResult, ThresholdChange},
    time::{Now, UnixTime},
    twamp::{
        connection::{Failure, SessionStage},
        sender::SenderEvent,
    },
};

/// Range of the time for which the result of a probe waits for others to share its record. The time
/// is that of a dozen probes, because a record with a single probe is mostly overhead.
const MIN_BATCH_NS: u64 = 40_000_000;
const MAX_BATCH_NS: u64 = 1_250_000_000;

/// An ended test that is not yet reported.
pub(super) struct FinishedTest {
    result: Box<TestResult>,
    /// Minute that the whole test is in.
    minute: Option<u64>,
    /// True if the test completes an iteration.
    iteration: bool,
    now: Now,
}

impl Session {
    pub(super) fn report(&mut self, now: Now) {
        while let Some(event) = self.machine.poll_event() {
            if let SenderEvent::Probe(probe) = &event {
                let crossed = self.thresholds.probe(probe, now.unix);
                self.report_thresholds(crossed, now);
            }
            match event {
                SenderEvent::Probe(probe) if self.config.store_probes => {
                    if self.probes.is_empty() {
                        self.probes_due = now.monotonic.plus_ns(self.batch_ns());
                    }
                    self.probes.push(probe);
                    if self.probes.len() >= PROBES_PER_RECORD {
                        self.flush_probes(now);
                    }
                }
                SenderEvent::Probe(_) => {}
                SenderEvent::Test(result, minute) => {
                    self.flush_probes(now);
                    self.test_ended(result, minute, now);
                }
                SenderEvent::Minute(minute, figures, started) => {
                    self.tools.results.minute(self.subject.clone(), minute, figures, started);
                }
                SenderEvent::Completed => {
                    self.tools.progress.set_stage(&self.config.name, SessionStage::Completed);
                }
            }
        }
    }

    fn batch_ns(&self) -> u64 {
        let dozen_ns = self.config.probe_interval_ns.saturating_mul(12);
        dozen_ns.clamp(MIN_BATCH_NS, MAX_BATCH_NS)
    }

    fn test_ended(&mut self, result: Box<TestResult>, minute: Option<u64>, now: Now) {
        let sent = result.figures.as_ref().filter(|figures| figures.probes_sent > 0);
        let refusal = self.refusal.take().filter(|_| sent.is_none());
        let probes = sent.map_or(0, |figures| figures.probes_sent);
        let answered = sent.map(|figures| figures.probes_received > 0);
        let answered = answered.or_else(|| refusal.as_ref().map(|_| false));
        // A firewall rule blocks only probes. Another attempt to connect would succeed and change
        // nothing.
        let refused = refusal.filter(|error| error.kind() != io::ErrorKind::PermissionDenied);
        let refused = refused.zip(self.link.as_ref());
        let refused = refused.map(|(error, link)| Failure::from_send_error(&error, link.remote));
        let (name, progress) = (&self.config.name, &self.tools.progress);
        let end = progress.test_ended(name, answered, probes, refused, now.monotonic);
        let is_first = std::mem::take(&mut self.is_first_test);
        self.report_unexplained(is_first && answered == Some(true));
        let test = FinishedTest { result, minute, iteration: end.completes_iteration, now };
        if end.may_have_expired && self.may_expire {
            self.unexplained = Some(Box::new(test));
        } else {
            self.report_test(test);
        }
        if let Some(due) = self.machine.poll_deadline() {
            self.tools.progress.set_stage(&self.config.name, SessionStage::Between(due));
        }
    }

    /// Reports the test whose session may have expired before it. `has_expired` is true if a new
    /// session is answered: then the expiry caused the loss, not the path.
    pub(super) fn report_unexplained(&mut self, has_expired: bool) {
        let Some(mut test) = self.unexplained.take() else { return };
        if has_expired {
            test.result.set_outcome(TestOutcome::Interrupted);
            test.result.set_cause(FailureCause::SessionExpired);
        }
        self.report_test(*test);
    }

    fn report_test(&mut self, test: FinishedTest) {
        let FinishedTest { result, minute, iteration, now } = test;
        let crossed = self.thresholds.test_ended(&result, now.unix);
        let test_number = result.test_number;
        self.tools.results.test(self.subject.clone(), result, minute, now.unix);
        self.tools.status.count_finished_test(&self.config.name);
        let done = |kind: EventType| Event { r#type: kind.into(), test_number, ..Event::default() };
        if self.config.test_done_events {
            self.report_event(done(EventType::TestDone), now);
        }
        self.report_thresholds(crossed, now);
        if iteration && self.iteration_done_events {
            let connection = self.subject.for_connection();
            let event = Event { test_number: 0, ..done(EventType::TestIterationDone) };
            self.tools.results.event(connection, event, now.unix);
        }
    }

    pub(super) fn report_thresholds(&self, changes: Vec<ThresholdChange>, now: Now) {
        for change in changes {
            self.report_event(threshold_event(change), now);
        }
    }

    fn report_event(&self, event: Event, now: Now) {
        self.tools.results.event(self.subject.clone(), event, now.unix);
    }

    pub(super) fn flush_probes(&mut self, now: Now) {
        if !self.probes.is_empty() {
            let probes = self.probes.drain(..).collect();
            self.tools.results.probes(self.subject.clone(), probes, now.unix);
        }
    }

    pub(super) fn current_statistics(&self, now: Now) -> Option<Statistics> {
        let (since, figures) = self.machine.current()?;
        let mut figures = convert::figures(figures);
        convert::add_percentiles(&mut figures, &self.config.percentiles);
        Some(Statistics {
            connection: self.subject.connection().to_owned(),
            session: self.subject.session().to_owned(),
            scope: StatisticsScope::CurrentTest.into(),
            start_time: Some(since.to_proto()),
            end_time: Some(now.unix.to_proto()),
            figures: Some(Box::new(figures)),
            ..Statistics::default()
        })
    }
}

/// Returns the event of a threshold that was raised or cleared.
fn threshold_event(change: ThresholdChange) -> Event {
    let ThresholdChange { threshold, limit, value, test_number, cleared_since } = change;
    let kind = match cleared_since {
        Some(_) => EventType::ThresholdCleared,
        None => EventType::ThresholdRaised,
    };
    Event {
        r#type: kind.into(),
        threshold: threshold.into(),
        value: value as i64,
        limit: limit as i64,
        start_time: cleared_since.map(UnixTime::to_proto),
        test_number,
        ..Event::default()
    }
}
