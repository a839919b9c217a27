//! Figures of a running test, in one piece for each minute by the clock: the outcome of a probe
//! counts in the minute in which it was sent. A test is the sum of its pieces, and so is a minute.

use std::collections::VecDeque;

use super::{
    Figures, Moments, Sample,
    bursts::OutcomeTrack,
    delays::{Delays, Neighbours, StampSources},
    direction::Attribution,
    figures::{clear_delays, merge},
    reordering::{self, Arrivals},
};
use crate::{
    model::AvailabilityRule,
    time::{NANOS_PER_SECOND, StampSource, UnixTime},
};

/// Nanoseconds of a minute.
pub const MINUTE_NS: u64 = 60 * NANOS_PER_SECOND;

/// Minute by the clock, and the losses by direction among the probes sent in it.
pub type MinuteLosses = (u64, Attribution);

/// State that continues from one test of a session to the next.
#[derive(Clone, Debug, Default)]
pub struct Track {
    /// Loss runs and availability.
    pub outcomes: OutcomeTrack,
    arrivals: Arrivals,
    path: Path,
}

/// TTL and TOS of the latest probe and its reply.
#[derive(Clone, Copy, Debug, Default)]
struct Path {
    egress_ttl: Option<u8>,
    egress_tos: Option<u8>,
    ingress_ttl: Option<u8>,
    ingress_tos: Option<u8>,
}

impl Track {
    /// Starts over with the sequence numbers of a new session.
    pub fn session_started(&mut self) {
        self.arrivals = Arrivals::default();
    }
}

/// Gathers the figures of one test.
#[derive(Clone, Debug)]
pub struct TestFigures {
    probes_scheduled: u64,
    /// Minute that counts events without a probe of their own.
    minute: u64,
    /// Minutes that are still open, oldest first.
    pieces: VecDeque<Piece>,
    /// Closed minutes of a test that is longer than one.
    closed: Option<Box<Figures>>,
    /// Timestamp sources of all samples so far.
    sources: Option<StampSources>,
    neighbours: Neighbours,
    /// Allocation reused by the next piece.
    spare: Option<Piece>,
}

/// Figures of the probes that were sent in one minute.
#[derive(Clone, Debug, Default)]
struct Piece {
    minute: u64,
    counts: Figures,
    delays: Delays,
    schedule_error: Moments,
}

/// Returns the minute of a time, counted from 1970.
pub fn minute_of(time: UnixTime) -> u64 {
    time.0 / MINUTE_NS
}

impl TestFigures {
    /// Creates the figures of a test of `probes_scheduled` probes that begins now.
    pub fn new(probes_scheduled: u64, now: UnixTime) -> Self {
        Self {
            probes_scheduled,
            minute: minute_of(now),
            // Most tests have a single piece.
            pieces: VecDeque::with_capacity(1),
            closed: None,
            sources: None,
            neighbours: Neighbours::default(),
            spare: None,
        }
    }

    /// Creates the figures of the next test, reusing the allocations of this one.
    pub fn recycle(mut self, probes_scheduled: u64, now: UnixTime) -> Self {
        self.neighbours.clear();
        self.spare = self.pieces.pop_front().or(self.spare);
        self.pieces.clear();
        Self { probes_scheduled, minute: minute_of(now), closed: None, sources: None, ..self }
    }

    /// Sets the current minute.
    pub fn advance_to(&mut self, now: UnixTime) {
        self.minute = self.minute.max(minute_of(now));
    }

    /// Counts a probe that was sent at `t1`. Returns whether it is the first of a minute.
    pub fn sent(&mut self, t1: UnixTime, schedule_error_ns: u64) -> bool {
        let minute = minute_of(t1);
        let begins = self.pieces.back().is_none_or(|piece| piece.minute < minute);
        let piece = self.piece(minute);
        piece.counts.probes_sent += 1;
        piece.schedule_error.add(schedule_error_ns as i64);
        begins
    }

    /// Counts probes that were due and are not sent.
    pub fn not_sent(&mut self, probes: u64, now: UnixTime) {
        self.piece(minute_of(now)).counts.probes_not_sent += probes;
    }

    /// Counts probes that could not be sent as lost for availability.
    pub fn unreachable(
        &mut self,
        probes: u64,
        track: &mut Track,
        rule: &AvailabilityRule,
        now: UnixTime,
    ) {
        let counts = &mut self.piece(minute_of(now)).counts;
        track.outcomes.unreachable(probes, rule, counts);
    }

    /// Counts the probe that was sent at `t1` as lost.
    pub fn lost(&mut self, t1: UnixTime) {
        self.piece(minute_of(t1)).counts.probes_lost += 1;
    }

    /// Counts the outcome of the next probe, in the order of the probes.
    pub fn outcome(
        &mut self,
        t1: UnixTime,
        lost: bool,
        track: &mut Track,
        rule: &AvailabilityRule,
    ) {
        track.outcomes.count(lost, rule, &mut self.piece(minute_of(t1)).counts);
    }

    /// Counts the probe that was sent at `t1` as abandoned.
    pub fn abandoned(&mut self, t1: UnixTime) {
        self.piece(minute_of(t1)).counts.probes_abandoned += 1;
    }

    /// Counts a reply that arrived after the loss timeout.
    pub fn late(&mut self) {
        self.latest().probes_late += 1;
    }

    /// Counts a further reply to an answered probe.
    pub fn duplicate(&mut self) {
        self.latest().probes_duplicate += 1;
    }

    /// Counts a datagram that answers no probe.
    pub fn ignored(&mut self) {
        self.latest().packets_ignored += 1;
    }

    /// Counts packets dropped because the receive buffer was full.
    pub fn dropped(&mut self, packets: u64) {
        if packets > 0 {
            self.latest().packets_dropped += packets;
        }
    }

    /// Counts a packet with a wrong HMAC.
    pub fn integrity_failed(&mut self) {
        self.latest().packets_integrity_failed += 1;
    }

    /// Adds the first reply to a probe, in order of arrival.
    pub fn received(&mut self, sample: &Sample, track: &mut Track) {
        let sources = StampSources::from_sample(sample);
        let is_less_exact = sample.is_valid() && self.sources.is_some_and(|known| sources < known);
        if sample.is_valid() && self.sources.is_some_and(|known| sources > known) {
            // More exact timestamps replace all samples before them.
            self.restart_delays();
        }
        let extent = track.arrivals.add(sample.sequence);
        let minute = minute_of(sample.t1);
        let known = self.pieces.iter().rposition(|piece| piece.minute == minute);
        let known = known.unwrap_or_else(|| self.index(minute));
        let Piece { counts, delays, .. } = &mut self.pieces[known];
        counts.probes_received += 1;
        counts.kernel_receive_timestamps +=
            u64::from(sample.receive_timestamp_source > StampSource::User);
        counts.kernel_transmit_timestamps +=
            u64::from(sample.transmit_timestamp_source > StampSource::User);
        counts.reflector_timestamps_corrected += u64::from(sample.t3_followed_up);
        counts.clock_error_ns = counts.clock_error_ns.max(sample.clock_error_ns);
        counts.reflector_clock_error_ns =
            counts.reflector_clock_error_ns.max(sample.reflector_clock_error_ns);
        track.path.follow(sample, counts);
        if let Some(extent) = extent {
            counts.probes_reordered += 1;
            reordering::count(&mut counts.reordering, extent);
        }
        counts.one_way_validity = (sample.validity() as i32).max(counts.one_way_validity);
        if !sample.is_valid() {
            counts.samples_invalid += 1;
        } else if is_less_exact {
            counts.samples_other_timestamp_source += 1;
        } else {
            self.sources = Some(sources);
            delays.add(sample, &mut self.neighbours);
        }
    }

    /// Returns the figures so far. `losses` is `None` if the directions of losses are unknown.
    pub fn figures(&self, losses: Option<&[MinuteLosses]>) -> Figures {
        let mut whole = self.closed.as_deref().cloned();
        for piece in &self.pieces {
            let figures = self.piece_figures(piece, losses);
            match &mut whole {
                None => whole = Some(figures),
                Some(whole) => merge(whole, &figures),
            }
        }
        let whole = whole.unwrap_or_else(|| self.piece_figures(&Piece::default(), losses));
        Figures { probes_scheduled: self.probes_scheduled, ..whole }
    }

    /// Removes and returns the oldest piece if it is of `minute` or an earlier one, which have
    /// ended.
    pub fn close(
        &mut self,
        minute: u64,
        losses: Option<&[MinuteLosses]>,
    ) -> Option<(u64, Figures)> {
        self.pieces.front().filter(|piece| piece.minute <= minute)?;
        let piece = self.pieces.pop_front()?;
        let figures = self.piece_figures(&piece, losses);
        match &mut self.closed {
            None => self.closed = Some(Box::new(figures.clone())),
            Some(closed) => merge(closed, &figures),
        }
        let minute = piece.minute;
        self.spare = Some(piece);
        Some((minute, figures))
    }

    /// Returns the oldest minute that is still open.
    pub fn first_minute(&self) -> Option<u64> {
        self.pieces.front().map(|piece| piece.minute)
    }

    /// Returns the minute that contains the whole test; `None` if there are several.
    pub fn only_minute(&self) -> Option<u64> {
        match (&self.closed, self.pieces.len()) {
            (None, 1) => Some(self.pieces[0].minute),
            _ => None,
        }
    }

    fn piece_figures(&self, piece: &Piece, losses: Option<&[MinuteLosses]>) -> Figures {
        let mut figures = piece.counts.clone();
        figures.probes_scheduled = figures.probes_sent + figures.probes_not_sent;
        let mut by_direction = 0;
        if let Some(losses) = losses {
            let mine = losses.iter().filter(|(minute, _)| *minute == piece.minute);
            let (egress, ingress) = mine.fold((0, 0), |(egress, ingress), (_, losses)| {
                (egress + losses.egress, ingress + losses.ingress)
            });
            (figures.probes_lost_egress, figures.probes_lost_ingress) =
                (Some(egress), Some(ingress));
            by_direction = egress + ingress;
        }
        figures.probes_lost_unattributed = figures.probes_lost.saturating_sub(by_direction);
        piece.delays.write_to(&mut figures);
        figures.schedule_error = Some(Box::new((&piece.schedule_error).into()));
        figures.interarrival_jitter_ns = self.neighbours.interarrival_jitter_ns();
        StampSources::write_to(self.sources.filter(|_| piece.delays.count() > 0), &mut figures);
        figures
    }

    fn restart_delays(&mut self) {
        for piece in &mut self.pieces {
            piece.counts.samples_other_timestamp_source += piece.delays.count();
            piece.delays = Delays::default();
        }
        self.closed.as_deref_mut().map(clear_delays);
        self.neighbours.clear();
    }

    fn latest(&mut self) -> &mut Figures {
        let minute = self.pieces.back().map_or(self.minute, |piece| piece.minute.max(self.minute));
        &mut self.piece(minute).counts
    }

    fn piece(&mut self, minute: u64) -> &mut Piece {
        let index = self.index(minute);
        &mut self.pieces[index]
    }

    /// Returns the index of the piece of a minute, or the next one; a later minute adds a piece.
    fn index(&mut self, minute: u64) -> usize {
        if self.pieces.back().is_none_or(|latest| latest.minute < minute) {
            let Piece { mut delays, .. } = self.spare.take().unwrap_or_default();
            delays.clear();
            self.pieces.push_back(Piece { minute, delays, ..Piece::default() });
        }
        self.pieces.iter().position(|piece| piece.minute >= minute).unwrap_or(0)
    }
}

impl Path {
    fn follow(&mut self, sample: &Sample, counts: &mut Figures) {
        counts.egress_ttl = sample.egress_ttl.into();
        counts.egress_tos = sample.egress_tos.map(u32::from);
        counts.ingress_ttl = sample.ingress_ttl.map_or(0, u32::from);
        counts.ingress_tos = sample.ingress_tos.map_or(0, u32::from);
        let follow = |known: &mut Option<u8>, now: Option<u8>, changes: &mut u64| {
            *changes += u64::from(now.is_some() && known.is_some_and(|known| Some(known) != now));
            *known = now.or(*known);
        };
        follow(&mut self.egress_ttl, Some(sample.egress_ttl), &mut counts.egress_ttl_changes);
        follow(&mut self.ingress_ttl, sample.ingress_ttl, &mut counts.ingress_ttl_changes);
        follow(&mut self.egress_tos, sample.egress_tos, &mut counts.egress_tos_changes);
        follow(&mut self.ingress_tos, sample.ingress_tos, &mut counts.ingress_tos_changes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{OneWayValidity, TimestampSource};

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
        let mut track = Track::default();
        let mut figures = TestFigures::new(8, UnixTime(0));
        let mut seen = Vec::new();
        for record in example["in"]["records"].as_array().unwrap() {
            let field = |name: &str| record[name].as_i64().unwrap();
            let (t1, t2, t3, t4) = (field("T1"), field("T2"), field("T3"), field("T4"));
            if seen.contains(&field("sseq")) {
                figures.duplicate();
                continue;
            }
            seen.push(field("sseq"));
            figures.received(
                &Sample {
                    sequence: field("sseq") as u32,
                    rtt_ns: (t4 - t1) - (t3 - t2),
                    egress_ns: t2 - t1,
                    ingress_ns: t4 - t3,
                    processing_ns: t3 - t2,
                    ..Sample::default()
                },
                &mut track,
            );
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
        let mut track = Track::default();
        let mut figures = TestFigures::new(2, UnixTime(0));
        figures.received(&Sample { synchronised: true, ..Sample::default() }, &mut track);
        assert_eq!(figures.figures(None).one_way_validity(), OneWayValidity::Valid);
        figures.received(
            &Sample { sequence: 1, egress_ns: -5, rtt_ns: 3, ..Sample::default() },
            &mut track,
        );
        assert_eq!(figures.figures(None).one_way_validity(), OneWayValidity::Negative);
    }

    #[test]
    fn stamps_of_different_sources_are_never_mixed() {
        let sample = |sequence, rtt_ns, transmit_timestamp_source| Sample {
            sequence,
            rtt_ns,
            transmit_timestamp_source,
            receive_timestamp_source: StampSource::Kernel,
            ..Sample::default()
        };
        let mut track = Track::default();
        let mut figures = TestFigures::new(5, UnixTime(0));
        figures.received(&sample(0, 90, StampSource::User), &mut track);
        let source = figures.figures(None).transmit_timestamp_source();
        assert_eq!(source, TimestampSource::User, "as long as there is nothing better");
        figures.received(&sample(1, 10, StampSource::Kernel), &mut track);
        figures.received(&sample(2, 80, StampSource::User), &mut track);
        figures.received(&sample(3, 20, StampSource::Kernel), &mut track);
        let got = figures.figures(None);
        let (rtt, jitter) = (got.rtt.as_ref().unwrap(), got.rtt_jitter.as_ref().unwrap());
        assert_eq!((rtt.samples, rtt.min_ns, rtt.max_ns), (2, 10, 20));
        assert_eq!(jitter.samples, 0, "the two are no neighbours");
        assert_eq!((got.samples_other_timestamp_source, got.kernel_transmit_timestamps), (2, 2));
        assert_eq!((got.probes_received, got.kernel_receive_timestamps), (4, 4));
        assert_eq!((got.transmit_timestamp_source(), got.receive_timestamp_source()), {
            (TimestampSource::Kernel, TimestampSource::Kernel)
        });
        figures.received(&sample(4, 5, StampSource::Hardware), &mut track);
        let got = figures.figures(None);
        assert_eq!((got.rtt.as_ref().unwrap().samples, got.transmit_timestamp_source()), {
            (1, TimestampSource::Hardware)
        });
    }

    #[test]
    fn a_sample_that_cannot_be_is_counted_and_left_out() {
        let mut track = Track::default();
        let mut figures = TestFigures::new(1, UnixTime(0));
        figures.received(&Sample { rtt_ns: -1, ..Sample::default() }, &mut track);
        let got = figures.figures(None);
        assert_eq!((got.probes_received, got.samples_invalid), (1, 1));
        assert_eq!(got.rtt.unwrap().samples, 0);
    }

    #[test]
    fn a_probe_counts_in_the_minute_in_which_it_was_sent() {
        let at = |seconds: u64| UnixTime(seconds * NANOS_PER_SECOND);
        let sample = |sequence, seconds, rtt_ns| Sample {
            sequence,
            t1: at(seconds),
            rtt_ns,
            egress_ns: rtt_ns - 5,
            ..Sample::default()
        };
        let mut track = Track::default();
        let mut figures = TestFigures::new(4, UnixTime(0));
        for seconds in [58, 59, 60, 61] {
            assert_eq!(figures.sent(at(seconds), 7), seconds == 58 || seconds == 60);
        }
        assert_eq!(figures.only_minute(), None);
        // The first answers of the later minute are here before the last of the earlier.
        figures.received(&sample(2, 60, 30), &mut track);
        figures.received(&sample(1, 59, 20), &mut track);
        figures.lost(at(58));
        figures.received(&sample(3, 61, 50), &mut track);
        let losses = [(0, Attribution { egress: 1, ..Attribution::default() })];
        let so_far = figures.figures(Some(&losses));
        let (minute, first) = figures.close(0, Some(&losses)).unwrap();
        assert_eq!((minute, first.probes_sent, first.probes_received), (0, 2, 1));
        assert_eq!(
            (first.probes_lost, first.probes_lost_egress, first.probes_reordered),
            (1, Some(1), 1)
        );
        assert!(figures.close(0, None).is_none(), "the next minute is open");
        let (_, second) = figures.close(1, Some(&losses)).unwrap();
        assert_eq!((second.probes_sent, second.probes_lost_egress), (2, Some(0)));
        let jitter = |figures: &Figures| figures.rtt_jitter.as_ref().unwrap().samples;
        assert_eq!(jitter(&first) + jitter(&second), 2, "also across the boundary");
        assert_eq!(second.egress_delay_variation.as_ref().unwrap().max_ns, 20);
        let whole = figures.figures(Some(&losses));
        assert_eq!(whole.rtt, so_far.rtt);
        assert_eq!((whole.probes_scheduled, whole.probes_sent, whole.probes_lost), (4, 4, 1));
        assert_eq!((whole.rtt.unwrap().samples, whole.probes_lost_egress), (3, Some(1)));
    }

    #[test]
    fn changes_of_the_path_are_counted() {
        let mut track = Track::default();
        let mut figures = TestFigures::new(4, UnixTime(0));
        for (sequence, ttl, tos) in [(0, 60, Some(0)), (1, 60, None), (2, 59, Some(4))] {
            let sample = Sample {
                sequence,
                egress_ttl: ttl,
                ingress_tos: tos,
                egress_tos: tos,
                ..Sample::default()
            };
            figures.received(&sample, &mut track);
        }
        let got = figures.figures(None);
        assert_eq!((got.egress_ttl_changes, got.ingress_ttl_changes), (1, 0));
        assert_eq!((got.egress_tos_changes, got.ingress_tos_changes), (1, 1));
        let mut next = TestFigures::new(1, UnixTime(0));
        next.received(&Sample { egress_ttl: 60, ..Sample::default() }, &mut track);
        assert_eq!(next.figures(None).egress_ttl_changes, 1, "and from test to test");
    }
}
