//! What is made of the times in the samples of a test.

use super::{BUCKETS_OF_A_TEST, Histogram, Moments, Sample};
use crate::{
    proto::{DelayStats, Figures, TimestampSource},
    time::StampSource,
};

/// Replies remembered for the variation between neighbours: a reply that comes later than so
/// many after its neighbour adds none.
const NEIGHBOURS: usize = 16;

/// One quantity.
#[derive(Clone, Debug, Default)]
struct Series {
    moments: Moments,
    histogram: Histogram,
}

impl Series {
    fn add(&mut self, value: i64) {
        self.moments.add(value);
        self.histogram.add(value, BUCKETS_OF_A_TEST);
    }

    fn clear(&mut self) {
        self.moments = Moments::default();
        self.histogram.clear();
    }

    fn told(&self) -> Option<Box<DelayStats>> {
        let histogram = (self.moments.count() > 0).then(|| (&self.histogram).into());
        Some(Box::new(DelayStats { histogram, ..(&self.moments).into() }))
    }

    /// By how much the values are above their minimum.
    fn variation(&self) -> Option<Box<DelayStats>> {
        Some(Box::new((&self.moments.above_minimum()).into()))
    }
}

/// Delays of samples, all of the same sources.
#[derive(Clone, Debug, Default)]
pub(super) struct Delays {
    rtt: Series,
    egress: Series,
    ingress: Series,
    rtt_jitter: Series,
    egress_jitter: Series,
    ingress_jitter: Series,
    processing: Moments,
}

impl Delays {
    /// Without samples, and with the room that there was.
    pub(super) fn clear(&mut self) {
        let Self { rtt, egress, ingress, rtt_jitter, egress_jitter, ingress_jitter, processing } =
            self;
        for series in [rtt, egress, ingress, rtt_jitter, egress_jitter, ingress_jitter] {
            series.clear();
        }
        *processing = Moments::default();
    }

    /// Samples so far.
    pub(super) fn count(&self) -> u64 {
        self.rtt.moments.count()
    }

    pub(super) fn add(&mut self, sample: &Sample, neighbours: &mut Neighbours) {
        self.rtt.add(sample.rtt_ns);
        self.egress.add(sample.egress_ns);
        self.ingress.add(sample.ingress_ns);
        self.processing.add(sample.processing_ns);
        neighbours.pairs(sample, |earlier, later| {
            self.rtt_jitter.add(later.rtt_ns - earlier.rtt_ns);
            self.egress_jitter.add(later.egress_ns - earlier.egress_ns);
            self.ingress_jitter.add(later.ingress_ns - earlier.ingress_ns);
        });
    }

    pub(super) fn tell(&self, figures: &mut Figures) {
        figures.rtt = self.rtt.told();
        figures.egress = self.egress.told();
        figures.ingress = self.ingress.told();
        figures.rtt_jitter = self.rtt_jitter.told();
        figures.egress_jitter = self.egress_jitter.told();
        figures.ingress_jitter = self.ingress_jitter.told();
        figures.reflector_processing = Some(Box::new((&self.processing).into()));
        figures.egress_variation = self.egress.variation();
        figures.ingress_variation = self.ingress.variation();
    }
}

/// What is remembered of samples for the variation against the next ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Neighbours {
    latest: Vec<Option<Neighbour>>,
    previous_rtt_ns: Option<i64>,
    /// Interarrival jitter times 16, as in the sample code of RFC 3550 appendix A.8.
    jitter_16_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    sequence: u32,
    rtt_ns: i64,
    egress_ns: i64,
    ingress_ns: i64,
}

impl Neighbours {
    pub(super) fn clear(&mut self) {
        self.latest.fill(None);
        self.previous_rtt_ns = None;
        self.jitter_16_ns = 0;
    }

    /// RFC 3550 §6.4.1.
    pub(super) fn interarrival_jitter_ns(&self) -> u64 {
        self.jitter_16_ns >> 4
    }

    /// The probes just before and just after, if their answers are here.
    fn pairs(&mut self, sample: &Sample, mut pair: impl FnMut(&Neighbour, &Neighbour)) {
        if let Some(previous) = self.previous_rtt_ns.replace(sample.rtt_ns) {
            let distance = sample.rtt_ns.abs_diff(previous);
            self.jitter_16_ns =
                (self.jitter_16_ns + distance).saturating_sub((self.jitter_16_ns + 8) >> 4);
        }
        self.latest.resize(NEIGHBOURS, None);
        let at = |sequence: u32| sequence as usize % NEIGHBOURS;
        let this = Neighbour {
            sequence: sample.sequence,
            rtt_ns: sample.rtt_ns,
            egress_ns: sample.egress_ns,
            ingress_ns: sample.ingress_ns,
        };
        let of = |sequence: u32| self.latest[at(sequence)].filter(|s| s.sequence == sequence);
        if let Some(earlier) = of(sample.sequence.wrapping_sub(1)) {
            pair(&earlier, &this);
        }
        if let Some(later) = of(sample.sequence.wrapping_add(1)) {
            pair(&this, &later);
        }
        self.latest[at(sample.sequence)] = Some(this);
    }
}

/// Where T1 and T4 are from; the nearer to the wire, the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StampSources {
    transmit: StampSource,
    receive: StampSource,
}

impl StampSources {
    pub(super) fn of(sample: &Sample) -> Self {
        Self { transmit: sample.transmit_stamp, receive: sample.receive_stamp }
    }

    pub(super) fn tell(sources: Option<Self>, figures: &mut Figures) {
        let source = |of: fn(Self) -> StampSource| {
            sources.map_or(TimestampSource::Unspecified, |sources| of(sources).into())
        };
        figures.transmit_stamp = source(|sources| sources.transmit).into();
        figures.receive_stamp = source(|sources| sources.receive).into();
    }
}
