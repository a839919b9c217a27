//! Checks of replies, and the samples that are made of them.

use std::mem::swap;

use super::{
    Discard, Phase, SenderEvent, SessionSender,
    outstanding::{Probe, Reply},
};
use crate::{
    model::{ProbeStatus, TestOutcome, TimestampSource},
    stats::{ProbeResult, Sample},
    time::{ErrorEstimate, Monotonic, Now, StampSource, TimestampFormat, UnixTime},
    twamp::PacketMeta,
    wire::format::{ReplyHeader, Unreadable},
};

/// Difference between the progress of the realtime and of the monotonic clock beyond which the
/// realtime clock counts as stepped. Without a step the difference is smaller.
const CLOCK_STEP_NS: u64 = 5_000_000;
/// Largest correction of T3 by a follow-up; larger ones are ignored.
const MAX_FOLLOW_UP_NS: i64 = 1_000_000_000;

/// Longest plausible time for which a reply waits in the socket. A longer time means that the clock
/// was stepped after the timestamp.
const MAX_QUEUED_NS: i64 = 1_000_000_000;

/// Sample whose T3 may still be corrected (STAMP: Follow-Up Telemetry).
#[derive(Debug)]
pub(super) struct PendingSample {
    sample: Sample,
    /// Sequence Number of the reply.
    number: u32,
    /// T1 to T4, from which the delays were computed.
    times: [UnixTime; 4],
    received: Monotonic,
}

impl SessionSender {
    /// Handles a datagram from the reflector's address and port; returns the reason if it is not
    /// measured.
    pub fn handle_reply(&mut self, packet: &[u8], meta: &PacketMeta, now: Now) -> Option<Discard> {
        let (reply, times) = match self.read_reply(packet, meta) {
            Ok(read) => read,
            Err(discard) => {
                self.count_discarded(discard);
                return Some(discard);
            }
        };
        let reply_kind = self.outstanding.accept_reply(
            (reply.probe.sequence, reply.probe.timestamp),
            (reply.sequence, reply.receive_timestamp),
            self.config.loss_timeout_ns,
            arrival(meta, now),
        );
        self.count_outcomes();
        let discard = match reply_kind {
            Reply::First(probe) => {
                self.measure(&reply, times, probe, (packet, meta), now);
                return None;
            }
            Reply::Duplicate => Discard::Duplicate,
            Reply::Late => Discard::Late,
            Reply::Unknown => Discard::NoProbe,
        };
        self.count_discarded(discard);
        Some(discard)
    }

    /// Reads and checks a reply; returns it with T2 and T3.
    fn read_reply(
        &mut self,
        packet: &[u8],
        meta: &PacketMeta,
    ) -> Result<(ReplyHeader, [UnixTime; 2]), Discard> {
        let mut reply = match self.carrier.format.read_reply(packet) {
            Ok(reply) => reply,
            Err(Unreadable::BadMac) => return Err(Discard::BadMac),
            Err(Unreadable::TooShort) => return Err(Discard::TooShort),
        };
        // Some reflectors swap T1 and T3.
        let sequence = reply.probe.sequence;
        let is_t1 = |time| self.outstanding.has_carried(sequence, time);
        if !is_t1(reply.probe.timestamp) && is_t1(reply.timestamp) {
            swap(&mut reply.timestamp, &mut reply.probe.timestamp);
        }
        let (t4, format) = (meta.received, self.timestamp_format(&reply));
        let t2 = format.decode(reply.receive_timestamp, t4).ok_or(Discard::NoTime)?;
        let t3 = format.decode(reply.timestamp, t4).ok_or(Discard::NoTime)?;
        if self.carrier.stamp.as_mut().is_some_and(|stamp| !stamp.accepts_ssid(reply.probe.ssid)) {
            return Err(Discard::OtherSession);
        }
        if reply.error_estimate.is_unknown() && self.config.strict_error_estimate {
            return Err(Discard::UnknownErrorEstimate);
        }
        Ok((reply, [t2, t3]))
    }

    /// Returns the format of T2 and T3.
    fn timestamp_format(&self, reply: &ReplyHeader) -> TimestampFormat {
        match self.carrier.honours_z_bit {
            true => reply.error_estimate.format(),
            false => TimestampFormat::Ntp,
        }
    }

    fn count_discarded(&mut self, discard: Discard) {
        let Phase::Testing(test) = &mut self.phase else { return };
        match discard {
            Discard::BadMac => test.figures.integrity_failed(),
            Discard::Duplicate => test.figures.duplicate(),
            Discard::Late => test.figures.late(),
            Discard::TooShort
            | Discard::NoTime
            | Discard::OtherSession
            | Discard::UnknownErrorEstimate
            | Discard::NoProbe => test.figures.ignored(),
        }
    }

    /// Makes a sample of the first reply to a probe.
    fn measure(
        &mut self,
        reply: &ReplyHeader,
        [t2, t3]: [UnixTime; 2],
        probe: Probe,
        (packet, meta): (&[u8], &PacketMeta),
        now: Now,
    ) {
        let Phase::Testing(test) = &mut self.phase else { return };
        if reply.error_estimate.is_unknown() {
            test.figures.without_error_estimate();
        }
        let (t4, format) = (meta.received, self.timestamp_format(reply));
        let octets = self.carrier.format.reply_octets();
        let (mut egress_tos, mut follow_up) = (reply.sender_tos, None);
        if let Some(stamp) = &mut self.carrier.stamp {
            let tlvs = stamp.read_tlvs(reply.sequence, packet.get(octets..).unwrap_or_default());
            egress_tos = tlvs.egress_tos;
            follow_up = tlvs.follow_up;
        }
        let (t1, transmit_timestamp_source) = probe.sent_at();
        let by_clock = now.unix.since_ns(probe.t1);
        let by_monotonic = now.monotonic.since_ns(probe.sent) as i64;
        let sample = Sample {
            sequence: probe.sequence,
            t1: probe.t1,
            clock_error_ns: known_error(reply.probe.error_estimate),
            reflector_clock_error_ns: known_error(reply.error_estimate),
            receive_timestamp_source: meta.stamp,
            transmit_timestamp_source,
            synchronised: self.carrier.shares_clock || is_synchronised(reply),
            clock_stepped: by_clock.abs_diff(by_monotonic) > CLOCK_STEP_NS,
            egress_ttl: reply.sender_ttl,
            egress_tos,
            ingress_ttl: meta.ttl,
            ingress_tos: meta.tos,
            ..delays([t1, t2, t3, t4], Sample::default())
        };
        let (number, received) = (reply.sequence, now.monotonic);
        let pending = PendingSample { sample, number, times: [t1, t2, t3, t4], received };
        self.pending_samples.push_back(pending);
        if self.carrier.stamp.as_ref().is_some_and(|stamp| stamp.follows_up()) {
            if let Some((number, time)) = follow_up {
                self.follow_up(number, format.decode(time, t4));
            }
        } else {
            self.release_all();
        }
        let Phase::Testing(test) = &mut self.phase else { return };
        if test.outcome == TestOutcome::Stopped && self.outstanding.first_undecided().is_none() {
            // This was the last reply that the stopped test waited for.
            test.ends = Some(now.monotonic);
        }
    }

    /// Corrects the sample of a reply by its real transmit time. Then releases this sample and all
    /// earlier ones, which no later follow-up corrects.
    fn follow_up(&mut self, number: u32, time: Option<UnixTime>) {
        let Some(index) = self.pending_samples.iter().position(|pending| pending.number == number)
        else {
            return;
        };
        if let Some(time) = time {
            self.pending_samples[index].correct(time);
        }
        for _ in 0..=index {
            self.release();
        }
    }

    /// Releases samples that waited for a follow-up for the loss timeout.
    pub(super) fn release_overdue(&mut self, now: Monotonic) {
        while self.pending_samples.front().is_some_and(|pending| self.release_due(pending) <= now) {
            self.release();
        }
    }

    pub(super) fn release_due(&self, pending: &PendingSample) -> Monotonic {
        pending.received.plus_ns(self.config.loss_timeout_ns)
    }

    pub(super) fn release_all(&mut self) {
        while !self.pending_samples.is_empty() {
            self.release();
        }
    }

    fn release(&mut self) {
        let Some(PendingSample { mut sample, number, times: [t1, ..], .. }) =
            self.pending_samples.pop_front()
        else {
            return;
        };
        let waiting = self.pending_samples.iter().map(|pending| pending.sample.sequence);
        sample.first_open =
            waiting.chain([self.outstanding.first_open()]).min().unwrap_or_default();
        let Phase::Testing(test) = &mut self.phase else { return };
        test.figures.received(&sample, &mut self.track);
        self.events.push_back(SenderEvent::Probe(ProbeResult {
            test_number: self.test_number,
            sequence: sample.sequence,
            sent_unix_ns: t1.0,
            status: ProbeStatus::Received.into(),
            rtt_ns: Some(sample.rtt_ns),
            egress_ns: Some(sample.egress_ns),
            ingress_ns: Some(sample.ingress_ns),
            reflector_processing_ns: Some(sample.processing_ns),
            reflector_sequence: Some(number),
            egress_ttl: Some(sample.egress_ttl.into()),
            ingress_ttl: sample.ingress_ttl.map(u32::from),
            ingress_tos: sample.ingress_tos.map(u32::from),
            egress_tos: sample.egress_tos.map(u32::from),
            transmit_timestamp_source: TimestampSource::from(sample.transmit_timestamp_source)
                .into(),
            receive_timestamp_source: Some(
                TimestampSource::from(sample.receive_timestamp_source).into(),
            ),
            one_way_validity: Some(sample.validity().into()),
            reflector_timestamp_corrected: sample.t3_followed_up,
        }));
    }
}

/// Returns the arrival time of a reply, which may have waited in the socket since.
fn arrival(meta: &PacketMeta, now: Now) -> Monotonic {
    let waited_ns = now.unix.since_ns(meta.received);
    let is_plausible = meta.stamp > StampSource::User && (0..=MAX_QUEUED_NS).contains(&waited_ns);
    Monotonic(now.monotonic.0 - if is_plausible { waited_ns as u64 } else { 0 })
}

impl PendingSample {
    fn correct(&mut self, t3: UnixTime) {
        let [t1, t2, known_t3, t4] = self.times;
        // An equal time means that the reflector had no exact one.
        if (1..=MAX_FOLLOW_UP_NS).contains(&t3.since_ns(known_t3)) {
            let sample = Sample { t3_followed_up: true, ..self.sample };
            self.sample = delays([t1, t2, t3, t4], sample);
        }
    }
}

/// Sets the delays of a sample. If T3 is before T2, the processing time counts as 0 in the round
/// trip.
fn delays([t1, t2, t3, t4]: [UnixTime; 4], sample: Sample) -> Sample {
    let processing_ns = t3.since_ns(t2);
    Sample {
        rtt_ns: t4.since_ns(t1) - processing_ns.max(0),
        egress_ns: t2.since_ns(t1),
        ingress_ns: t4.since_ns(t3.max(t2)),
        processing_ns,
        ..sample
    }
}

/// Returns the error of a synchronised clock. The estimate of another clock has no meaning.
fn known_error(estimate: ErrorEstimate) -> Option<u64> {
    estimate.is_synchronised().then(|| estimate.error_ns())
}

fn is_synchronised(reply: &ReplyHeader) -> bool {
    reply.error_estimate.is_synchronised() && reply.probe.error_estimate.is_synchronised()
}
