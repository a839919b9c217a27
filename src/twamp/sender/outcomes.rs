//! Outcomes of probes that are not answered in time.

use super::{
    Phase, SenderEvent, SessionSender, outstanding::Probe, test_run::MINUTE_CLOSE_DELAY_NS,
};
use crate::{
    model::{ProbeStatus, TimestampSource},
    stats::{ProbeResult, minute_of},
    time::{Now, UnixTime},
};

impl SessionSender {
    pub(super) fn handle_lost(&mut self, probes: &[Probe]) {
        if let Phase::Testing(test) = &mut self.phase {
            probes.iter().for_each(|probe| test.figures.lost(probe.t1));
        }
        self.count_outcomes();
        self.report_outcomes(probes, ProbeStatus::Lost);
    }

    /// Abandons the probes in flight; their outcomes remain unknown.
    pub(super) fn abandon_probes(&mut self) {
        let abandoned = self.outstanding.abandon();
        if let Phase::Testing(test) = &mut self.phase {
            abandoned.iter().for_each(|probe| test.figures.abandoned(probe.t1));
        }
        self.count_outcomes();
        self.report_outcomes(&abandoned, ProbeStatus::Abandoned);
    }

    /// Counts the known outcomes, in the order of the probes, into loss runs and availability.
    pub(super) fn count_outcomes(&mut self) {
        let Self { outstanding, track, phase, config, .. } = self;
        while let Some((t1, lost)) = outstanding.poll_outcome() {
            if let Phase::Testing(test) = phase {
                test.figures.outcome(t1, lost, track, &config.availability);
            }
        }
    }

    /// Closes the minutes whose probes all have an outcome.
    pub(super) fn close_minutes(&mut self, now: Now) {
        let Phase::Testing(test) = &mut self.phase else { return };
        let delay_ns = self.config.loss_timeout_ns.saturating_add(MINUTE_CLOSE_DELAY_NS);
        let over = UnixTime(now.unix.0.saturating_sub(delay_ns));
        let Some(minute) = minute_of(over).checked_sub(1) else { return };
        self.outstanding.end_minutes(minute);
        let losses = self.outstanding.past_losses();
        let started = test.started.unix;
        while let Some((minute, figures)) = test.figures.close(minute, losses) {
            self.events.push_back(SenderEvent::Minute(minute, Box::new(figures), started));
        }
        test.set_minute_closes(self.config.loss_timeout_ns, now);
    }

    fn report_outcomes(&mut self, probes: &[Probe], status: ProbeStatus) {
        for probe in probes {
            let (at, source) = probe.sent_at();
            self.events.push_back(SenderEvent::Probe(ProbeResult {
                test_number: self.test_number,
                sequence: probe.sequence,
                sent_unix_ns: at.0,
                transmit_timestamp_source: TimestampSource::from(source).into(),
                status: status.into(),
                ..ProbeResult::default()
            }));
        }
    }
}
