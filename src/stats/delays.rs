//! Delay statistics of the samples of a test.

use std::collections::VecDeque;

use super::{DelayStats, Figures, Histogram, Moments, Sample, TEST_BUCKETS};
use crate::{model::TimestampSource, time::StampSource};

/// Largest distance between the sequence numbers of kept samples. A sample that is further away
/// discards the others.
const MAX_DISTANCE: usize = 1 << 20;

/// Moments and histogram of one quantity.
#[derive(Clone, Debug, Default)]
struct Series {
    moments: Moments,
    histogram: Histogram,
}

impl Series {
    fn add(&mut self, value: i64) {
        self.moments.add(value);
        self.histogram.add(value, TEST_BUCKETS);
    }

    fn clear(&mut self) {
        self.moments = Moments::default();
        self.histogram.clear();
    }

    fn stats(&self) -> Option<Box<DelayStats>> {
        let histogram = (self.moments.count() > 0).then(|| (&self.histogram).into());
        Some(Box::new(DelayStats { histogram, ..(&self.moments).into() }))
    }

    /// Returns the moments of the values less their minimum.
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
    /// Removes the samples and keeps the allocations.
    pub(super) fn clear(&mut self) {
        let Self { rtt, egress, ingress, rtt_jitter, egress_jitter, ingress_jitter, processing } =
            self;
        for series in [rtt, egress, ingress, rtt_jitter, egress_jitter, ingress_jitter] {
            series.clear();
        }
        *processing = Moments::default();
    }

    /// Returns the number of samples.
    pub(super) fn count(&self) -> u64 {
        self.rtt.moments.count()
    }

    pub(super) fn add(&mut self, sample: &Sample, neighbours: &mut Neighbours) {
        self.rtt.add(sample.rtt_ns);
        if sample.has_one_way() {
            self.egress.add(sample.egress_ns);
            self.ingress.add(sample.ingress_ns);
            self.processing.add(sample.processing_ns.max(0));
        }
        neighbours.for_each_pair(sample, |earlier, later| {
            self.rtt_jitter.add(later.rtt_ns - earlier.rtt_ns);
            if earlier.has_one_way && later.has_one_way {
                self.egress_jitter.add(later.egress_ns - earlier.egress_ns);
                self.ingress_jitter.add(later.ingress_ns - earlier.ingress_ns);
            }
        });
    }

    pub(super) fn write_to(&self, figures: &mut Figures) {
        figures.rtt = self.rtt.stats();
        figures.egress = self.egress.stats();
        figures.ingress = self.ingress.stats();
        figures.rtt_jitter = self.rtt_jitter.stats();
        figures.egress_jitter = self.egress_jitter.stats();
        figures.ingress_jitter = self.ingress_jitter.stats();
        figures.reflector_processing = Some(Box::new((&self.processing).into()));
        figures.egress_delay_variation = self.egress.variation();
        figures.ingress_delay_variation = self.ingress.variation();
    }
}

/// Samples kept for the delay variation against their neighbours.
#[derive(Clone, Debug, Default)]
pub(super) struct Neighbours {
    /// Samples by sequence number from `first` on, as long as a neighbour may still arrive.
    latest: VecDeque<Option<Neighbour>>,
    first: u32,
    previous_rtt_ns: Option<i64>,
    /// Interarrival jitter times 16, as in the sample code of RFC 3550 appendix A.8.
    jitter_16_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    has_one_way: bool,
    rtt_ns: i64,
    egress_ns: i64,
    ingress_ns: i64,
}

impl Neighbours {
    pub(super) fn clear(&mut self) {
        self.latest.clear();
        self.previous_rtt_ns = None;
        self.jitter_16_ns = 0;
    }

    /// Returns the interarrival jitter (RFC 3550 §6.4.1).
    pub(super) fn interarrival_jitter_ns(&self) -> u64 {
        self.jitter_16_ns >> 4
    }

    /// Passes the sample to `pair` together with the samples of the previous and of the next probe,
    /// as far as they have arrived.
    fn for_each_pair(&mut self, sample: &Sample, mut pair: impl FnMut(&Neighbour, &Neighbour)) {
        if let Some(previous) = self.previous_rtt_ns.replace(sample.rtt_ns) {
            let distance = sample.rtt_ns.abs_diff(previous);
            self.jitter_16_ns =
                (self.jitter_16_ns + distance).saturating_sub((self.jitter_16_ns + 8) >> 4);
        }
        let this = Neighbour {
            has_one_way: sample.has_one_way(),
            rtt_ns: sample.rtt_ns,
            egress_ns: sample.egress_ns,
            ingress_ns: sample.ingress_ns,
        };
        let index = self.make_room(sample.sequence);
        let of = |index: usize| self.latest.get(index).copied().flatten();
        if let Some(earlier) = index.checked_sub(1).and_then(of) {
            pair(&earlier, &this);
        }
        if let Some(later) = of(index + 1) {
            pair(&this, &later);
        }
        self.latest[index] = Some(this);
        // Samples whose later neighbour can no longer arrive are not needed.
        while self.latest.len() > 1 && before(self.first.wrapping_add(1), sample.first_open) {
            self.latest.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    /// Returns the index of a probe, with space made for it.
    fn make_room(&mut self, sequence: u32) -> usize {
        let distance = i64::from(sequence.wrapping_sub(self.first) as i32);
        if self.latest.is_empty() || distance.unsigned_abs() as usize > MAX_DISTANCE {
            self.latest.clear();
            self.first = sequence;
        }
        while before(sequence, self.first) {
            self.latest.push_front(None);
            self.first = self.first.wrapping_sub(1);
        }
        let index = sequence.wrapping_sub(self.first) as usize;
        if index >= self.latest.len() {
            self.latest.resize(index + 1, None);
        }
        index
    }
}

/// Compares sequence numbers modulo 2^32.
fn before(sequence: u32, other: u32) -> bool {
    (sequence.wrapping_sub(other) as i32) < 0
}

/// Sources of T1 and T4, ordered by their distance to the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StampSources {
    transmit: StampSource,
    receive: StampSource,
}

impl StampSources {
    pub(super) fn from_sample(sample: &Sample) -> Self {
        Self {
            transmit: sample.transmit_timestamp_source,
            receive: sample.receive_timestamp_source,
        }
    }

    pub(super) fn write_to(sources: Option<Self>, figures: &mut Figures) {
        let source = |of: fn(Self) -> StampSource| {
            sources.map_or(TimestampSource::Unspecified, |sources| of(sources).into())
        };
        figures.transmit_timestamp_source = source(|sources| sources.transmit).into();
        figures.receive_timestamp_source = source(|sources| sources.receive).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jitter_of(samples: &[(u32, i64, u32)]) -> (u64, i64, i64) {
        let (mut neighbours, mut differences) = (Neighbours::default(), Vec::new());
        for (sequence, rtt_ns, first_open) in samples {
            let (sequence, rtt_ns, first_open) = (*sequence, *rtt_ns, *first_open);
            let sample = Sample { sequence, first_open, rtt_ns, ..Sample::default() };
            neighbours.for_each_pair(&sample, |earlier, later| {
                differences.push(later.rtt_ns - earlier.rtt_ns);
            });
        }
        let bound = |of: fn(&[i64]) -> Option<i64>| of(&differences).unwrap_or_default();
        let least = bound(|all| all.iter().copied().min());
        let most = bound(|all| all.iter().copied().max());
        assert!(neighbours.latest.len() <= samples.len());
        (differences.len() as u64, least, most)
    }

    #[test]
    fn a_neighbour_that_comes_long_after_the_others_counts() {
        // Probe 1 is answered after a thousand later ones.
        let mut samples = vec![(0, 10, 1)];
        samples.extend((2..1_000).map(|sequence| (sequence, 10, 1)));
        samples.push((1, 1_000, 1_000));
        samples.push((1_000, 10, 1_001));
        assert_eq!(jitter_of(&samples), (1_000, -990, 990));
    }

    #[test]
    fn lost_probes_have_no_neighbours_and_cost_no_memory() {
        let mut neighbours = Neighbours::default();
        let mut pairs = 0;
        // Every second probe is lost, and sequence numbers wrap.
        for step in 0..10_000u32 {
            let sequence = (u32::MAX - 9_999).wrapping_add(step * 2);
            let first_open = sequence.wrapping_add(1);
            let sample = Sample { sequence, first_open, ..Sample::default() };
            neighbours.for_each_pair(&sample, |_, _| pairs += 1);
            assert!(neighbours.latest.len() <= 3, "{}", neighbours.latest.len());
        }
        assert_eq!(pairs, 0);
    }
}
