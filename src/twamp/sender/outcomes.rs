//! Outcomes of probes that are not answered in time.

use super::{Phase, SenderEvent, SessionSender, course::CLOSES_BEHIND_NS, outstanding::Probe};
use crate::{
    model::{ProbeStatus, TimestampSource},
    stats::{ProbeResult, minute_of},
    time::{Now, UnixTime},
};

impl SessionSender {
    pub(super) fn lose(&mut self, probes: &[Probe]) {
        if let Phase::Testing(test) = &mut self.phase {
            probes.iter().for_each(|probe| test.figures.lost(probe.t1));
        }
        self.settle_fates();
        self.tell_fates(probes, ProbeStatus::Lost);
    }

    /// Gives up the probes in flight: their outcome is unknown.
    pub(super) fn abandon(&mut self) {
        let abandoned = self.outstanding.give_up();
        if let Phase::Testing(test) = &mut self.phase {
            abandoned.iter().for_each(|probe| test.figures.abandoned(probe.t1));
        }
        self.settle_fates();
        self.tell_fates(&abandoned, ProbeStatus::Abandoned);
    }

    /// Fates that are known now, in the order of the probes, into runs and availability.
    pub(super) fn settle_fates(&mut self) {
        let Self { outstanding, track, phase, config, .. } = self;
        while let Some((t1, lost)) = outstanding.poll_fate() {
            if let Phase::Testing(test) = phase {
                test.figures.fate(t1, lost, track, &config.availability);
            }
        }
    }

    /// Closes the minutes whose probes all have an outcome.
    pub(super) fn close_minutes(&mut self, now: Now) {
        let Phase::Testing(test) = &mut self.phase else { return };
        let rest_ns = self.config.loss_timeout_ns.saturating_add(CLOSES_BEHIND_NS);
        let over = UnixTime(now.unix.0.saturating_sub(rest_ns));
        let Some(minute) = minute_of(over).checked_sub(1) else { return };
        self.outstanding.end_minutes(minute);
        let placed = self.outstanding.placed();
        let started = test.started.unix;
        while let Some((minute, figures)) = test.figures.close(minute, placed) {
            self.events.push_back(SenderEvent::Minute(minute, Box::new(figures), started));
        }
        test.set_minute_closes(self.config.loss_timeout_ns, now);
    }

    fn tell_fates(&mut self, probes: &[Probe], status: ProbeStatus) {
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
