//! What becomes of probes that are not answered in time.

use super::{Phase, SenderEvent, SessionSender, outstanding::Probe};
use crate::proto::{ProbeResult, ProbeStatus, TimestampSource};

impl SessionSender {
    pub(super) fn lose(&mut self, probes: &[Probe]) {
        if let Phase::Testing(test) = &mut self.phase {
            probes.iter().for_each(|_| test.figures.lost());
        }
        self.tell_fates(probes, ProbeStatus::Lost);
    }

    /// What becomes of the probes under way, nobody waits to see.
    pub(super) fn abandon(&mut self) {
        let abandoned = self.outstanding.give_up();
        if let Phase::Testing(test) = &mut self.phase {
            test.figures.abandoned(abandoned.len() as u64);
        }
        self.tell_fates(&abandoned, ProbeStatus::Abandoned);
    }

    fn tell_fates(&mut self, probes: &[Probe], status: ProbeStatus) {
        for probe in probes {
            self.events.push_back(SenderEvent::Probe(ProbeResult {
                test_number: self.test_number,
                sequence: probe.sequence,
                sent_unix_ns: probe.transmitted.unwrap_or(probe.t1).0,
                transmit_stamp: stamp_source(probe.transmitted.is_some()).into(),
                status: status.into(),
                ..ProbeResult::default()
            }));
        }
    }
}

/// Where a time is from.
pub(super) fn stamp_source(kernel: bool) -> TimestampSource {
    if kernel { TimestampSource::Kernel } else { TimestampSource::User }
}
