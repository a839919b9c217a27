//! Figures of a running test, kept in one piece for each minute of the clock. The outcome of a
//! probe counts in the minute in which the probe was sent. The figures of a test are the sum of its
//! pieces; the figures of a minute are the sum of all pieces of this minute.

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
    model::{AvailabilityRule, ReflectorNumbering},
    time::{NANOS_PER_SECOND, StampSource, UnixTime},
};

/// Nanoseconds of a minute.
pub const MINUTE_NS: u64 = 60 * NANOS_PER_SECOND;

/// Minute by the clock, and the losses by direction among the probes sent in it.
pub type MinuteLosses = (u64, Attribution);

/// Losses of a test by direction, and the numbering of replies on which they depend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Directions<'a> {
    /// Losses by minute; `None` if directions are unknown.
    pub losses: Option<&'a [MinuteLosses]>,
    /// Numbering of replies by the reflector.
    pub numbering: ReflectorNumbering,
}

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
    /// Minute in which events are counted that belong to no probe.
    minute: u64,
    /// Minutes that are still open, oldest first.
    pieces: VecDeque<Piece>,
    /// Sum of the closed minutes of a test that spans several.
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

    /// Counts a probe that was sent at `t1`. Returns true if it is the first of a minute.
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

    /// Counts a reply without an estimate of the reflector's clock.
    pub fn without_error_estimate(&mut self) {
        self.latest().replies_without_error_estimate += 1;
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
        let is_less_exact = sample.has_rtt() && self.sources.is_some_and(|known| sources < known);
        if sample.has_rtt() && self.sources.is_some_and(|known| sources > known) {
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
        track.path.record(sample, counts);
        if let Some(extent) = extent {
            counts.probes_reordered += 1;
            reordering::count(&mut counts.reordering, extent);
        }
        counts.one_way_validity = (sample.validity() as i32).max(counts.one_way_validity);
        counts.samples_invalid += u64::from(!sample.has_one_way());
        if !sample.has_rtt() {
            return;
        }
        if is_less_exact {
            counts.samples_other_timestamp_source += 1;
        } else {
            self.sources = Some(sources);
            delays.add(sample, &mut self.neighbours);
        }
    }

    /// Returns the figures so far.
    pub fn figures(&self, directions: Directions<'_>) -> Figures {
        let mut whole = self.closed.as_deref().cloned();
        for piece in &self.pieces {
            let figures = self.piece_figures(piece, directions);
            match &mut whole {
                None => whole = Some(figures),
                Some(whole) => merge(whole, &figures),
            }
        }
        let whole = whole.unwrap_or_else(|| self.piece_figures(&Piece::default(), directions));
        Figures { probes_scheduled: self.probes_scheduled, ..whole }
    }

    /// Removes and returns the oldest piece if it is of `minute` or of an earlier minute. These
    /// minutes must have ended.
    pub fn close(&mut self, minute: u64, directions: Directions<'_>) -> Option<(u64, Figures)> {
        self.pieces.front().filter(|piece| piece.minute <= minute)?;
        let piece = self.pieces.pop_front()?;
        let figures = self.piece_figures(&piece, directions);
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

    fn piece_figures(&self, piece: &Piece, directions: Directions<'_>) -> Figures {
        let mut figures = piece.counts.clone();
        figures.probes_scheduled = figures.probes_sent + figures.probes_not_sent;
        let mut by_direction = 0;
        if let Some(losses) = directions.losses {
            let mine = losses.iter().filter(|(minute, _)| *minute == piece.minute);
            let (egress, ingress) = mine.fold((0, 0), |(egress, ingress), (_, losses)| {
                (egress + losses.egress, ingress + losses.ingress)
            });
            (figures.probes_lost_egress, figures.probes_lost_ingress) =
                (Some(egress), Some(ingress));
            by_direction = egress + ingress;
        }
        if figures.probes_received > 0 {
            figures.reflector_numbering = directions.numbering.into();
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

    /// Returns the index of the piece of a minute, or of the next later piece. A minute after all
    /// pieces adds a piece.
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
    fn record(&mut self, sample: &Sample, counts: &mut Figures) {
        counts.egress_ttl = sample.egress_ttl.into();
        counts.egress_tos = sample.egress_tos.map(u32::from);
        counts.ingress_ttl = sample.ingress_ttl.map_or(0, u32::from);
        counts.ingress_tos = sample.ingress_tos.map_or(0, u32::from);
        let record = |known: &mut Option<u8>, now: Option<u8>, changes: &mut u64| {
            *changes += u64::from(now.is_some() && known.is_some_and(|known| Some(known) != now));
            *known = now.or(*known);
        };
        record(&mut self.egress_ttl, Some(sample.egress_ttl), &mut counts.egress_ttl_changes);
        record(&mut self.ingress_ttl, sample.ingress_ttl, &mut counts.ingress_ttl_changes);
        record(&mut self.egress_tos, sample.egress_tos, &mut counts.egress_tos_changes);
        record(&mut self.ingress_tos, sample.ingress_tos, &mut counts.ingress_tos_changes);
    }
}

#[cfg(test)]
mod tests;
