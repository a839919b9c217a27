//! Figures of one test while it runs.

use super::{Moments, direction::Attribution};
use crate::proto::{Figures, OneWayValidity, TimestampSource};

/// Replies remembered for the variation between neighbours: a reply that comes later than so
/// many after its neighbour adds none.
const NEIGHBOURS: usize = 16;

/// One answered probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub struct Sample {
    /// Sequence Number of the probe.
    pub sequence: u32,
    /// (T4-T1)-(T3-T2), nanoseconds.
    pub rtt_ns: i64,
    /// T2-T1, nanoseconds.
    pub egress_ns: i64,
    /// T4-T3, nanoseconds.
    pub ingress_ns: i64,
    /// T3-T2, nanoseconds.
    pub processing_ns: i64,
    /// T4 came from the kernel.
    pub kernel_receive_stamp: bool,
    /// T1 came from the kernel.
    pub kernel_transmit_stamp: bool,
    /// Both ends say that their clocks are synchronised.
    pub synchronised: bool,
    /// The local clock was stepped between T1 and T4.
    pub clock_stepped: bool,
    /// Sender TTL of the reply.
    pub egress_ttl: u8,
    /// TOS with which the probe came to the reflector, where it tells.
    pub egress_tos: Option<u8>,
    /// T3 was corrected by what the reflector told later.
    pub t3_followed_up: bool,
    /// TTL of the reply's own packet.
    pub ingress_ttl: Option<u8>,
    /// TOS of the reply's own packet.
    pub ingress_tos: Option<u8>,
}

impl Sample {
    /// A sample from which delays can be taken: time passed on both clocks.
    pub fn is_valid(&self) -> bool {
        self.rtt_ns >= 0 && self.processing_ns >= 0 && !self.clock_stepped
    }

    fn validity(&self) -> OneWayValidity {
        if self.clock_stepped {
            OneWayValidity::ClockStepped
        } else if self.egress_ns < 0 || self.ingress_ns < 0 {
            OneWayValidity::Negative
        } else if self.synchronised {
            OneWayValidity::Valid
        } else {
            OneWayValidity::ClockUnsynchronised
        }
    }
}

/// Gathers the figures of one test.
#[derive(Clone, Debug, Default)]
pub struct TestFigures {
    counts: Figures,
    delays: Delays,
    schedule_error: Moments,
    highest_sequence: Option<u32>,
}

/// What is made of the times in samples, all of the same sources.
#[derive(Clone, Debug, Default)]
struct Delays {
    /// Of all samples so far.
    sources: Option<StampSources>,
    rtt: Moments,
    egress: Moments,
    ingress: Moments,
    rtt_jitter: Moments,
    egress_jitter: Moments,
    ingress_jitter: Moments,
    processing: Moments,
    neighbours: Vec<Option<Neighbour>>,
    previous_rtt_ns: Option<i64>,
    /// Interarrival jitter times 16, as in the sample code of RFC 3550 appendix A.8.
    jitter_16_ns: u64,
}

/// What is remembered of a sample for the variation against its neighbours.
#[derive(Clone, Copy, Debug)]
struct Neighbour {
    sequence: u32,
    rtt_ns: i64,
    egress_ns: i64,
    ingress_ns: i64,
}

/// Whether T1 and T4 are the kernel's; the more of them, the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct StampSources {
    transmit: bool,
    receive: bool,
}

impl TestFigures {
    /// For a test of so many probes.
    pub fn new(probes_scheduled: u64) -> Self {
        Self { counts: Figures { probes_scheduled, ..Figures::default() }, ..Self::default() }
    }

    /// A probe was sent, so late against its schedule.
    pub fn sent(&mut self, schedule_error_ns: u64) {
        self.counts.probes_sent += 1;
        self.schedule_error.add(schedule_error_ns as i64);
    }

    /// Probes that were due will not be sent.
    pub fn not_sent(&mut self, probes: u64) {
        self.counts.probes_not_sent += probes;
    }

    /// A probe was lost.
    pub fn lost(&mut self) {
        self.counts.probes_lost += 1;
    }

    /// Probes of which nobody waits to see what becomes.
    pub fn abandoned(&mut self, probes: u64) {
        self.counts.probes_abandoned += probes;
    }

    /// An answer came after the loss timeout.
    pub fn late(&mut self) {
        self.counts.probes_late += 1;
    }

    /// One more answer to an answered probe.
    pub fn duplicate(&mut self) {
        self.counts.probes_duplicate += 1;
    }

    /// A datagram that answers no probe.
    pub fn ignored(&mut self) {
        self.counts.packets_ignored += 1;
    }

    /// Packets that the socket had no room for.
    pub fn dropped(&mut self, packets: u64) {
        self.counts.packets_dropped += packets;
    }

    /// A packet with a wrong HMAC.
    pub fn not_genuine(&mut self) {
        self.counts.packets_not_genuine += 1;
    }

    /// The first answer to a probe, in order of arrival.
    pub fn received(&mut self, sample: &Sample) {
        self.counts.probes_received += 1;
        self.counts.kernel_receive_stamps += u64::from(sample.kernel_receive_stamp);
        self.counts.kernel_transmit_stamps += u64::from(sample.kernel_transmit_stamp);
        self.counts.reflector_stamps_corrected += u64::from(sample.t3_followed_up);
        self.counts.egress_ttl = sample.egress_ttl.into();
        self.counts.egress_tos = sample.egress_tos.map(u32::from);
        self.counts.ingress_ttl = sample.ingress_ttl.map_or(0, u32::from);
        self.counts.ingress_tos = sample.ingress_tos.map_or(0, u32::from);
        if self
            .highest_sequence
            .is_some_and(|highest| sample.sequence.wrapping_sub(highest) as i32 <= 0)
        {
            self.counts.probes_reordered += 1;
        } else {
            self.highest_sequence = Some(sample.sequence);
        }
        let validity = (sample.validity() as i32).max(self.counts.one_way_validity);
        self.counts.one_way_validity = validity;
        if !sample.is_valid() {
            self.counts.samples_invalid += 1;
            return;
        }
        let sources = StampSources {
            transmit: sample.kernel_transmit_stamp,
            receive: sample.kernel_receive_stamp,
        };
        match self.delays.sources {
            Some(known) if sources < known => {
                self.counts.samples_other_stamps += 1;
                return;
            }
            Some(known) if sources > known => {
                // Better ones come after all: what was before them is left out.
                self.counts.samples_other_stamps += self.delays.rtt.count();
                self.delays = Delays::default();
            }
            _ => {}
        }
        self.delays.sources = Some(sources);
        self.delays.add(sample);
    }

    /// The figures so far. `attribution` is `None` where directions cannot be told.
    pub fn figures(&self, attribution: Option<Attribution>) -> Figures {
        let placed = attribution.unwrap_or_default();
        let delays = &self.delays;
        let source = |of: fn(StampSources) -> bool| match delays.sources.map(of) {
            None => TimestampSource::Unspecified,
            Some(false) => TimestampSource::User,
            Some(true) => TimestampSource::Kernel,
        };
        Figures {
            lost_egress: attribution.map(|placed| placed.egress),
            lost_ingress: attribution.map(|placed| placed.ingress),
            lost_unattributed: self
                .counts
                .probes_lost
                .saturating_sub(placed.egress + placed.ingress),
            rtt: Some((&delays.rtt).into()),
            egress: Some((&delays.egress).into()),
            ingress: Some((&delays.ingress).into()),
            rtt_jitter: Some((&delays.rtt_jitter).into()),
            egress_jitter: Some((&delays.egress_jitter).into()),
            ingress_jitter: Some((&delays.ingress_jitter).into()),
            reflector_processing: Some((&delays.processing).into()),
            schedule_error: Some((&self.schedule_error).into()),
            interarrival_jitter_ns: delays.jitter_16_ns >> 4,
            transmit_stamp: source(|sources| sources.transmit).into(),
            receive_stamp: source(|sources| sources.receive).into(),
            ..self.counts.clone()
        }
    }
}

impl Delays {
    fn add(&mut self, sample: &Sample) {
        self.rtt.add(sample.rtt_ns);
        self.egress.add(sample.egress_ns);
        self.ingress.add(sample.ingress_ns);
        self.processing.add(sample.processing_ns);
        self.interarrival(sample.rtt_ns);
        self.neighbouring(sample);
    }

    fn interarrival(&mut self, rtt_ns: i64) {
        if let Some(previous) = self.previous_rtt_ns.replace(rtt_ns) {
            let distance = rtt_ns.abs_diff(previous);
            self.jitter_16_ns =
                (self.jitter_16_ns + distance).saturating_sub((self.jitter_16_ns + 8) >> 4);
        }
    }

    /// Variation against the probes just before and just after, if their answers are here.
    fn neighbouring(&mut self, sample: &Sample) {
        self.neighbours.resize(NEIGHBOURS, None);
        let at = |sequence: u32| sequence as usize % NEIGHBOURS;
        let sample = &Neighbour {
            sequence: sample.sequence,
            rtt_ns: sample.rtt_ns,
            egress_ns: sample.egress_ns,
            ingress_ns: sample.ingress_ns,
        };
        let mut pair = |earlier: &Neighbour, later: &Neighbour| {
            self.rtt_jitter.add(later.rtt_ns - earlier.rtt_ns);
            self.egress_jitter.add(later.egress_ns - earlier.egress_ns);
            self.ingress_jitter.add(later.ingress_ns - earlier.ingress_ns);
        };
        let before = sample.sequence.wrapping_sub(1);
        let after = sample.sequence.wrapping_add(1);
        let of = |sequence: u32| self.neighbours[at(sequence)].filter(|s| s.sequence == sequence);
        if let Some(earlier) = of(before) {
            pair(&earlier, sample);
        }
        if let Some(later) = of(after) {
            pair(sample, &later);
        }
        self.neighbours[at(sample.sequence)] = Some(*sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `metrics/worked-example` of the reference vectors.
    #[test]
    fn worked_example() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/vectors.json")).unwrap();
        let example = vectors["vectors"]
            .as_array()
            .unwrap()
            .iter()
            .find(|vector| vector["name"] == "metrics/worked-example")
            .unwrap();
        let mut figures = TestFigures::new(8);
        let mut seen = Vec::new();
        for record in example["in"]["records"].as_array().unwrap() {
            let field = |name: &str| record[name].as_i64().unwrap();
            let (t1, t2, t3, t4) = (field("T1"), field("T2"), field("T3"), field("T4"));
            if seen.contains(&field("sseq")) {
                figures.duplicate();
                continue;
            }
            seen.push(field("sseq"));
            figures.received(&Sample {
                sequence: field("sseq") as u32,
                rtt_ns: (t4 - t1) - (t3 - t2),
                egress_ns: t2 - t1,
                ingress_ns: t4 - t3,
                processing_ns: t3 - t2,
                ..Sample::default()
            });
        }
        let (got, expected) = (figures.figures(None), &example["out"]);
        assert_eq!(got.probes_received, expected["received_unique"].as_u64().unwrap());
        assert_eq!(got.probes_duplicate, expected["duplicates"].as_u64().unwrap());
        assert_eq!(got.probes_reordered, expected["reordered_by_sender_seq"].as_u64().unwrap());
        let rtts: Vec<i64> =
            expected["rtt_ns"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
        let rtt = got.rtt.unwrap();
        assert_eq!(rtt.min_ns, *rtts.iter().min().unwrap());
        assert_eq!(rtt.max_ns, *rtts.iter().max().unwrap());
        let mean = rtts.iter().sum::<i64>() as f64 / rtts.len() as f64;
        assert!((rtt.mean_ns - mean).abs() < 1.0);
    }

    #[test]
    fn validity_is_that_of_the_worst_sample() {
        let mut figures = TestFigures::new(2);
        figures.received(&Sample { synchronised: true, ..Sample::default() });
        assert_eq!(figures.figures(None).one_way_validity(), OneWayValidity::Valid);
        figures.received(&Sample { sequence: 1, egress_ns: -5, rtt_ns: 3, ..Sample::default() });
        assert_eq!(figures.figures(None).one_way_validity(), OneWayValidity::Negative);
    }

    #[test]
    fn stamps_of_different_sources_are_never_mixed() {
        let sample = |sequence, rtt_ns, kernel_transmit_stamp| Sample {
            sequence,
            rtt_ns,
            kernel_transmit_stamp,
            kernel_receive_stamp: true,
            ..Sample::default()
        };
        let mut figures = TestFigures::new(5);
        figures.received(&sample(0, 90, false));
        let source = figures.figures(None).transmit_stamp();
        assert_eq!(source, TimestampSource::User, "as long as there is nothing better");
        figures.received(&sample(1, 10, true));
        figures.received(&sample(2, 80, false));
        figures.received(&sample(3, 20, true));
        let got = figures.figures(None);
        let (rtt, jitter) = (got.rtt.unwrap(), got.rtt_jitter.unwrap());
        assert_eq!((rtt.samples, rtt.min_ns, rtt.max_ns), (2, 10, 20));
        assert_eq!(jitter.samples, 0, "the two are no neighbours");
        assert_eq!((got.samples_other_stamps, got.kernel_transmit_stamps), (2, 2));
        assert_eq!((got.probes_received, got.kernel_receive_stamps), (4, 4));
        assert_eq!((got.transmit_stamp(), got.receive_stamp()), {
            (TimestampSource::Kernel, TimestampSource::Kernel)
        });
    }

    #[test]
    fn a_sample_that_cannot_be_is_counted_and_left_out() {
        let mut figures = TestFigures::new(1);
        figures.received(&Sample { rtt_ns: -1, ..Sample::default() });
        let got = figures.figures(None);
        assert_eq!((got.probes_received, got.samples_invalid), (1, 1));
        assert_eq!(got.rtt.unwrap().samples, 0);
    }
}
