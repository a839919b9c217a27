//! From a reply to a sample.

use std::mem::swap;

use super::{Phase, SenderEvent, SessionSender, outstanding::Reply};
use crate::{
    model::{ProbeStatus, TestOutcome, TimestampSource},
    stats::{ProbeResult, Sample},
    time::{ErrorEstimate, Monotonic, Now, StampSource, UnixTime},
    twamp::PacketMeta,
    wire::format::{ReplyHeader, Unreadable},
};

/// The local clock counts as stepped when it moved so far against the monotonic one. Above what
/// reading two clocks one after the other can differ by, below what an operator would overlook.
const CLOCK_STEP_NS: u64 = 5_000_000;
/// A follow-up that moves T3 by more is not believed.
const LATEST_FOLLOW_UP_NS: i64 = 1_000_000_000;

/// A reply that seems to have waited for longer was stamped by a clock that was stepped since.
const LONGEST_WAIT_NS: i64 = 1_000_000_000;

/// A sample whose T3 may yet be corrected.
#[derive(Debug)]
pub(super) struct Held {
    sample: Sample,
    /// Sequence Number of the reply.
    number: u32,
    t1: UnixTime,
    t3: UnixTime,
    received: Monotonic,
}

impl SessionSender {
    /// A datagram from the reflector's address and port.
    pub fn handle_reply(&mut self, packet: &[u8], meta: &PacketMeta, now: Now) {
        let mut reply = match self.carrier.format.read_reply(packet) {
            Ok(reply) => reply,
            Err(Unreadable::BadMac) => return self.not_genuine(),
            Err(Unreadable::TooShort) => return self.ignored(),
        };
        // Some reflectors write T1 and T3 each in the place of the other.
        let sequence = reply.probe.sequence;
        let is_t1 = |time| self.outstanding.carried(sequence, time);
        if !is_t1(reply.probe.timestamp) && is_t1(reply.timestamp) {
            swap(&mut reply.timestamp, &mut reply.probe.timestamp);
        }
        let t4 = meta.received;
        let format = reply.error_estimate.format();
        let times =
            (format.decode(reply.receive_timestamp, t4), format.decode(reply.timestamp, t4));
        let (Some(t2), Some(t3)) = times else { return self.ignored() };
        let stranger =
            self.carrier.stamp.as_mut().is_some_and(|stamp| !stamp.is_answer(reply.probe.ssid));
        if reply.error_estimate.is_corrupt() || stranger {
            return self.ignored();
        }
        let taken = self.outstanding.reply(
            reply.probe.sequence,
            reply.probe.timestamp,
            reply.sequence,
            self.config.loss_timeout_ns,
            came(meta, now),
        );
        self.settle_fates();
        let Phase::Testing(test) = &mut self.phase else { return };
        let probe = match taken {
            Reply::First(probe) => probe,
            Reply::Duplicate => return test.figures.duplicate(),
            Reply::Late => return test.figures.late(),
            Reply::Unknown => return test.figures.ignored(),
        };
        let octets = self.carrier.format.reply_octets();
        let (mut egress_tos, mut follow_up) = (reply.sender_tos, None);
        if let Some(stamp) = &mut self.carrier.stamp {
            let said = stamp.read_tlvs(reply.sequence, packet.get(octets..).unwrap_or_default());
            egress_tos = said.egress_tos;
            follow_up = said.follow_up;
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
            synchronised: is_synchronised(&reply),
            clock_stepped: by_clock.abs_diff(by_monotonic) > CLOCK_STEP_NS,
            egress_ttl: reply.sender_ttl,
            egress_tos,
            ingress_ttl: meta.ttl,
            ingress_tos: meta.tos,
            ..delays([t1, t2, t3, t4])
        };
        let number = reply.sequence;
        self.held.push_back(Held { sample, number, t1, t3, received: now.monotonic });
        if self.carrier.stamp.as_ref().is_some_and(|stamp| stamp.follows_up()) {
            if let Some((number, time)) = follow_up {
                self.follow_up(number, format.decode(time, t4));
            }
        } else {
            self.release_all();
        }
        let Phase::Testing(test) = &mut self.phase else { return };
        if test.outcome == TestOutcome::Stopped && self.outstanding.first_undecided().is_none() {
            // Nothing is waited for any more.
            test.ends = Some(now.monotonic);
        }
    }

    /// The reply of this number went out at `time`, and what was before it will not be spoken of
    /// any more.
    fn follow_up(&mut self, number: u32, time: Option<UnixTime>) {
        let Some(index) = self.held.iter().position(|held| held.number == number) else { return };
        if let Some(time) = time {
            self.held[index].correct(time);
        }
        for _ in 0..=index {
            self.release();
        }
    }

    /// Samples that waited for a follow-up as long as a probe waits for its reply.
    pub(super) fn release_overdue(&mut self, now: Monotonic) {
        while self.held.front().is_some_and(|held| self.release_due(held) <= now) {
            self.release();
        }
    }

    pub(super) fn release_due(&self, held: &Held) -> Monotonic {
        held.received.plus_ns(self.config.loss_timeout_ns)
    }

    pub(super) fn release_all(&mut self) {
        while !self.held.is_empty() {
            self.release();
        }
    }

    fn release(&mut self) {
        let Some(Held { mut sample, number, t1, .. }) = self.held.pop_front() else { return };
        let waiting = self.held.iter().map(|held| held.sample.sequence);
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

    fn not_genuine(&mut self) {
        if let Phase::Testing(test) = &mut self.phase {
            test.figures.not_genuine();
        }
    }
}

/// When a reply came: it may have waited in the socket since.
fn came(meta: &PacketMeta, now: Now) -> Monotonic {
    let waited_ns = now.unix.since_ns(meta.received);
    let believed = meta.stamp > StampSource::User && (0..=LONGEST_WAIT_NS).contains(&waited_ns);
    Monotonic(now.monotonic.0 - if believed { waited_ns as u64 } else { 0 })
}

impl Held {
    fn correct(&mut self, t3: UnixTime) {
        let later_ns = t3.since_ns(self.t3);
        // An equal time means that the reflector had no better one.
        if (1..=LATEST_FOLLOW_UP_NS).contains(&later_ns) {
            self.sample.rtt_ns -= later_ns;
            self.sample.ingress_ns -= later_ns;
            self.sample.processing_ns += later_ns;
            self.sample.t3_followed_up = true;
        }
    }
}

fn delays([t1, t2, t3, t4]: [UnixTime; 4]) -> Sample {
    let processing_ns = t3.since_ns(t2);
    Sample {
        rtt_ns: t4.since_ns(t1) - processing_ns,
        egress_ns: t2.since_ns(t1),
        ingress_ns: t4.since_ns(t3),
        processing_ns,
        ..Sample::default()
    }
}

/// The error of a clock that says that it is synchronised: any other says nothing that means
/// something.
fn known_error(estimate: ErrorEstimate) -> Option<u64> {
    estimate.is_synchronised().then(|| estimate.error_ns())
}

fn is_synchronised(reply: &ReplyHeader) -> bool {
    reply.error_estimate.is_synchronised() && reply.probe.error_estimate.is_synchronised()
}
