use super::*;
use crate::{
    model::{AvailabilityRule, OneWayValidity, Schedule},
    stats::{DelayStats, Figures, MINUTE_NS, TestResult},
    twamp::PacketMeta,
};

pub(super) const MS: u64 = 1_000_000;

pub(super) fn config(probe_count: u32, probe_interval_ns: u64) -> SenderConfig {
    SenderConfig {
        probe_count,
        probe_interval_ns,
        burst_size: 1,
        schedule: Schedule::Periodic,
        loss_timeout_ns: 50 * MS,
        test_interval_ns: 1_000 * MS,
        test_count: 0,
        data_size: 60,
        reflector_numbers_replies: true,
        availability: AvailabilityRule {
            probes_per_interval: 2,
            consecutive_intervals: 2,
            ..AvailabilityRule::default()
        },
        strict_error_estimate: false,
    }
}

/// Sender in simulated time, with the results of its tests.
struct Driven {
    machine: SessionSender,
    at_ns: u64,
    sent: u32,
    results: Vec<TestResult>,
}

impl Driven {
    fn new(config: SenderConfig) -> Self {
        let mut machine = SessionSender::new(config);
        machine.session_started(Carrier::default(), Monotonic(0), now(0));
        Self { machine, at_ns: 0, sent: 0, results: Vec::new() }
    }

    /// Runs until a time; `send` returns the cause for which the socket refuses a probe, by
    /// sequence number.
    fn run_until(&mut self, end_ns: u64, send: impl Fn(u32) -> Result<(), Option<FailureCause>>) {
        loop {
            self.machine.handle_timeout(now(self.at_ns));
            while let Some(number) = self.machine.poll_probe(now(self.at_ns)) {
                match send(number) {
                    Ok(()) => {
                        self.machine.probe_sent(now(self.at_ns).unix, 0, now(self.at_ns));
                        self.sent += 1;
                    }
                    Err(cause) => self.machine.probe_refused(cause, 0, now(self.at_ns)),
                }
            }
            while let Some(event) = self.machine.poll_event() {
                if let SenderEvent::Test(result, _) = event {
                    self.results.push(*result);
                }
            }
            let next = self.machine.poll_deadline().filter(|due| due.0 <= end_ns);
            let Some(next) = next else { break };
            self.at_ns = next.0.max(self.at_ns);
        }
        self.at_ns = end_ns;
    }
}

pub(super) fn now(ns: u64) -> Now {
    Now { monotonic: Monotonic(ns), unix: UnixTime(1_790_000_000_000_000_000 + ns) }
}

#[test]
fn overdue_probes_after_a_pause_are_skipped_and_counted() {
    for (interval_ns, pause_ns, left_out) in [
        (MS, 300 * MS, 299),
        (10 * MS, 1_000 * MS, 99),
        (500 * MS, 2_600 * MS, 4),
        (MS, 60 * MS, 59),
        (MS, 19 * MS, 0),
        (8 * MS, 95 * MS, 0),
    ] {
        let mut driven = Driven::new(config(10_000, interval_ns));
        driven.run_until(100 * interval_ns, |_| Ok(()));
        let before = driven.sent;
        // The event loop does not run during the pause.
        driven.at_ns += pause_ns;
        driven.run_until(driven.at_ns, |_| Ok(()));
        let at_once = driven.sent - before;
        let figures = driven.machine.current().unwrap().1;
        assert_eq!(figures.probes_not_sent, left_out, "{interval_ns} {pause_ns}");
        assert!(at_once <= if left_out > 0 { 2 } else { 60 }, "{at_once} at once");
        // The schedule keeps its phase.
        let late = figures.schedule_error.unwrap();
        assert!(late.max_ns < (100 * MS).max(interval_ns) as i64, "{late:?}");
    }
}

#[test]
fn a_test_whose_probes_cannot_be_sent_is_unreachable() {
    let mut driven = Driven::new(config(4, 10 * MS));
    driven.run_until(500 * MS, |_| Err(Some(FailureCause::NoRoute)));
    let first = &driven.results[0];
    assert_eq!((first.outcome(), first.cause()), (TestOutcome::Unreachable, FailureCause::NoRoute));
    let figures = first.figures.as_ref().unwrap();
    assert_eq!((figures.probes_sent, figures.probes_not_sent, figures.probes_lost), (0, 4, 0));
    assert_eq!(figures.availability.as_ref().unwrap().unavailable_intervals, 2);
    driven.run_until(1_500 * MS, |_| Ok(()));
    let second = &driven.results[1];
    assert_eq!(
        (second.outcome(), second.cause()),
        (TestOutcome::Complete, FailureCause::Unspecified)
    );
    driven.run_until(2_700 * MS, |_| Err(None));
    let third = driven.results.last().unwrap();
    assert_eq!(third.outcome(), TestOutcome::Complete);
    let figures = third.figures.as_ref().unwrap();
    assert_eq!((figures.probes_not_sent, figures.availability.is_some()), (4, false));
}

#[test]
fn test_interval_also_applies_after_unsent_tests() {
    let mut driven = Driven::new(config(4, 10 * MS));
    driven.run_until(5_000 * MS, |_| Err(Some(FailureCause::LocalError)));
    let starts: Vec<u64> = driven.results.iter().map(|result| result.start_unix_ns).collect();
    // 30 ms of probes, 50 ms of loss timeout, a second of pause.
    assert!(starts.len() >= 4 && starts.windows(2).all(|pair| pair[1] - pair[0] == 1_080 * MS));
}

#[test]
fn test_interval_changed_during_a_test_applies_after_it() {
    for (pause_ns, count, second) in [(200 * MS, 0, 280 * MS), (3_000 * MS, 2, 3_080 * MS)] {
        let mut driven = Driven::new(config(4, 10 * MS));
        driven.run_until(20 * MS, |_| Ok(()));
        let paced =
            SenderConfig { test_interval_ns: pause_ns, test_count: count, ..config(4, 10 * MS) };
        driven.machine.set_config(paced, Monotonic(driven.at_ns));
        driven.run_until(100 * MS, |_| Ok(()));
        assert_eq!(driven.machine.idle_until(), Some(Monotonic(second)));
        driven.run_until(second + 200 * MS, |_| Ok(()));
        assert_eq!(driven.machine.is_completed(), count == 2);
    }
}

#[test]
fn a_change_of_test_interval_does_not_move_the_first_test() {
    let mut machine = SessionSender::new(config(4, 10 * MS));
    machine.session_started(Carrier::default(), Monotonic(700 * MS), now(0));
    let paced = |pause_ns| SenderConfig { test_interval_ns: pause_ns, ..config(4, 10 * MS) };
    for pause_ns in [86_400_000 * MS, 2_000 * MS] {
        machine.set_config(paced(pause_ns), Monotonic(MS));
        assert_eq!(machine.idle_until(), Some(Monotonic(700 * MS)));
    }
    let mut driven = Driven { machine, at_ns: 0, sent: 0, results: Vec::new() };
    driven.run_until(1_000 * MS, |_| Ok(()));
    // 700 ms, 30 ms of probes, 50 ms of loss timeout, and the pause, which counts from the end of a
    // test.
    assert_eq!(driven.machine.idle_until(), Some(Monotonic(2_780 * MS)));
    driven.machine.set_config(paced(5_000 * MS), Monotonic(1_000 * MS));
    assert_eq!(driven.machine.idle_until(), Some(Monotonic(5_780 * MS)));
}

#[test]
fn a_shorter_test_interval_makes_no_test_overdue() {
    let mut driven =
        Driven::new(SenderConfig { test_interval_ns: 3_600_000 * MS, ..config(4, 10 * MS) });
    driven.run_until(60_000 * MS, |_| Ok(()));
    let paced = SenderConfig { test_interval_ns: 10 * MS, ..config(4, 10 * MS) };
    driven.machine.set_config(paced, Monotonic(60_000 * MS));
    assert_eq!(driven.machine.idle_until(), Some(Monotonic(60_000 * MS)));
    driven.machine.session_lost(FailureCause::Refused, 1, now(60_000 * MS));
    driven.run_until(60_200 * MS, |_| Ok(()));
    // Each takes 90 ms: 30 ms of probes, 50 ms of loss timeout, 10 ms of pause.
    assert_eq!(driven.results.len(), 1 + 3, "{:?}", driven.results.len());
}

/// Reply as a reflector with its own sequence numbers writes it.
pub(super) fn reply_to(packet: &[u8], number: u32) -> Vec<u8> {
    reply_with(packet, number, ErrorEstimate(0x8001), [now(0).unix; 2])
}

/// Reply with an Error Estimate, T2 and T3, as an unauthenticated reflector writes it.
fn reply_with(
    packet: &[u8],
    number: u32,
    error_estimate: ErrorEstimate,
    [t2, t3]: [UnixTime; 2],
) -> Vec<u8> {
    use crate::{
        time::TimestampFormat,
        wire::format::{PacketFormat, ReplyHeader},
    };
    let format = PacketFormat::open();
    let probe = format.read_probe(packet).unwrap();
    let timestamp = TimestampFormat::Ntp.encode(t3);
    let header = ReplyHeader {
        sequence: number,
        timestamp,
        error_estimate,
        receive_timestamp: TimestampFormat::Ntp.encode(t2),
        probe,
        sender_ttl: 255,
        sender_tos: None,
    };
    let mut reply = vec![0; format.reply_octets()];
    format.write_reply(&header, &mut reply);
    format.finish_reply(timestamp, &mut reply);
    reply
}

/// Sends the probe that is due and returns its packet.
pub(super) fn sent_at(machine: &mut SessionSender, at_ns: u64) -> Vec<u8> {
    let mut packet = vec![0; 60];
    let (t1, error) = (now(at_ns).unix, ErrorEstimate(0x8001));
    machine.write_probe(t1, error, &mut packet, Monotonic(at_ns));
    machine.probe_sent(t1, 0, now(at_ns));
    packet
}

#[test]
fn loss_direction_ignores_foreign_and_late_replies() {
    let mut machine = SessionSender::new(config(100, 10 * MS));
    machine.session_started(Carrier::default(), Monotonic(0), now(0));
    let (mut at_ns, mut packets) = (0, Vec::new());
    while machine.tests_finished() == 0 && at_ns < 800 * MS {
        machine.handle_timeout(now(at_ns));
        while machine.poll_probe(now(at_ns)).is_some() {
            let packet = sent_at(&mut machine, at_ns);
            // Every fourth probe is lost on the way to the reflector.
            let number = packets.len() as u32;
            if number % 4 != 3 {
                let reply = reply_to(&packet, number - number / 4);
                machine.handle_reply(&reply, &PacketMeta::default(), now(at_ns + MS));
            }
            packets.push(packet);
        }
        at_ns += 10 * MS;
    }
    // A reply to a probe that was never sent: its number is no longer kept, T1 is arbitrary.
    let mut stranger = packets[1].clone();
    stranger[4..12].copy_from_slice(&[0x11; 8]);
    machine.handle_reply(&reply_to(&stranger, 0xffff_fff0), &PacketMeta::default(), now(at_ns));
    // A reply to a probe that was sent long ago is late.
    machine.handle_reply(&reply_to(&packets[3], 3), &PacketMeta::default(), now(at_ns));
    // The connection is lost while some probes are in flight.
    machine.session_lost(FailureCause::Reset, 0, now(at_ns));
    let mut results = Vec::new();
    while let Some(event) = machine.poll_event() {
        if let SenderEvent::Test(result, _) = event {
            results.push(*result);
        }
    }
    let figures = results[0].figures.as_ref().unwrap();
    assert_eq!((figures.packets_ignored, figures.probes_late), (1, 1));
    assert!(figures.probes_abandoned > 0, "{figures:?}");
    let placed = figures.probes_lost_egress.unwrap() + figures.probes_lost_ingress.unwrap();
    assert_eq!(placed + figures.probes_lost_unattributed, figures.probes_lost);
    assert!(
        figures.probes_lost_egress.unwrap() >= 16 && figures.probes_lost_ingress == Some(0),
        "{figures:?}"
    );
}

/// Losses around the end of a minute keep their attribution in that minute.
#[test]
fn each_minute_of_a_long_test_has_its_loss_directions() {
    // One of five probes is lost in each direction, and in addition those for which `gone` returns
    // true from the end of the minute on.
    let run = |interval_ns: u64, gone: std::ops::Range<u64>| {
        let mut config = config((130_000 * MS / interval_ns) as u32, interval_ns);
        config.loss_timeout_ns = 300 * MS;
        let mut machine = SessionSender::new(config);
        machine.session_started(Carrier::default(), Monotonic(0), now(0));
        let (mut sent, mut replies, mut at_ns) = (0, 0, 0);
        let (mut minutes, mut whole) = (Vec::new(), None);
        while whole.is_none() {
            machine.handle_timeout(now(at_ns));
            while machine.poll_probe(now(at_ns)).is_some() {
                let packet = sent_at(&mut machine, at_ns);
                let (fate, into_minute) = (sent % 5, now(at_ns).unix.0 % MINUTE_NS);
                sent += 1;
                if fate == 2 || gone.contains(&into_minute) {
                    continue;
                }
                replies += 1;
                if fate != 4 {
                    let reply = reply_to(&packet, replies - 1);
                    machine.handle_reply(&reply, &PacketMeta::default(), now(at_ns + MS));
                }
            }
            while let Some(event) = machine.poll_event() {
                match event {
                    SenderEvent::Minute(_, figures, _) => minutes.push(*figures),
                    SenderEvent::Test(result, _) => whole = Some(*result.figures.unwrap()),
                    SenderEvent::Probe(_) | SenderEvent::Completed => {}
                }
            }
            at_ns = machine.poll_deadline().map_or(at_ns, |due| due.0.max(at_ns));
        }
        (minutes, whole.unwrap())
    };
    // A run of losses across the end of a minute may belong to either.
    for (interval_ns, gone, unclear) in [
        (50 * MS, 0..0, 4),
        (50 * MS, 0..120 * MS, 6),
        (50 * MS, 0..400 * MS, 12),
        (2_000 * MS, 0..0, 4),
    ] {
        let (minutes, whole) = run(interval_ns, gone.clone());
        assert!(minutes.len() >= 2, "{}", minutes.len());
        let known = |figures: &Figures, unclear: u64| {
            let (egress, ingress) =
                (figures.probes_lost_egress.unwrap(), figures.probes_lost_ingress.unwrap());
            let (unattributed, fifth) = (figures.probes_lost_unattributed, figures.probes_sent / 5);
            assert_eq!(egress + ingress + unattributed, figures.probes_lost);
            assert!(unattributed <= unclear, "{interval_ns} {gone:?}: {unattributed}");
            assert!(egress + unclear >= fifth, "{interval_ns} {gone:?}: {egress} of {fifth}");
            assert!(ingress + unclear >= fifth, "{interval_ns} {gone:?}: {ingress} of {fifth}");
        };
        minutes.iter().for_each(|figures| known(figures, unclear));
        known(&whole, unclear * minutes.len() as u64);
    }
}

/// Runs a test of one probe that is answered after a millisecond.
fn figures_of_one(error_estimate: ErrorEstimate, times: [UnixTime; 2]) -> Figures {
    let mut machine = SessionSender::new(config(1, 10 * MS));
    machine.session_started(Carrier::default(), Monotonic(0), now(0));
    machine.handle_timeout(now(0));
    assert!(machine.poll_probe(now(0)).is_some());
    let packet = sent_at(&mut machine, 0);
    let reply = reply_with(&packet, 0, error_estimate, times);
    let meta = PacketMeta { received: now(MS).unix, ..PacketMeta::default() };
    machine.handle_reply(&reply, &meta, now(MS));
    machine.handle_timeout(now(100 * MS));
    let mut events = std::iter::from_fn(|| machine.poll_event());
    let result = events.find_map(|event| match event {
        SenderEvent::Test(result, _) => Some(result),
        SenderEvent::Probe(_) | SenderEvent::Minute(..) | SenderEvent::Completed => None,
    });
    *result.unwrap().figures.unwrap()
}

/// RFC 4656 §4.1.2: the bit is ignored unless RFC 8186 was negotiated.
#[test]
fn the_z_bit_is_ignored_unless_negotiated() {
    let times = [now(MS / 2).unix; 2];
    for estimate in [0x4001, 0xc001, 0xffff, 0x7fff] {
        let figures = figures_of_one(ErrorEstimate(estimate), times);
        assert_eq!((figures.probes_received, figures.samples_invalid), (1, 0), "{estimate:#x}");
        let egress = figures.egress.unwrap();
        assert!(egress.min_ns.abs_diff(500_000) < 2, "{estimate:#x}: {egress:?}");
    }
}

/// Receive stamps of the network interface and transmit stamps of the program come from clocks that
/// differ a little.
#[test]
fn t3_slightly_before_t2_does_not_invalidate_the_rtt() {
    let t2 = now(MS / 2).unix;
    let estimate = ErrorEstimate(0x8001);
    let figures = figures_of_one(estimate, [t2, t2.plus_ns(-2_000)]);
    assert_eq!((figures.probes_received, figures.samples_invalid), (1, 0));
    let (rtt, processing) =
        (figures.rtt.as_ref().unwrap(), figures.reflector_processing.as_ref().unwrap());
    assert_eq!((rtt.samples, processing.samples), (1, 1));
    assert!(rtt.max_ns.abs_diff(MS as i64) < 2 && processing.max_ns == 0, "{rtt:?}");
    assert_eq!(figures.one_way_validity(), OneWayValidity::Negative);
    // A larger difference makes the one-way delays impossible, but T4-T1 is of one clock.
    for before_ns in [-2_000_000, -1_000_000_000] {
        let figures = figures_of_one(estimate, [t2, t2.plus_ns(before_ns)]);
        assert_eq!((figures.probes_received, figures.samples_invalid), (1, 1));
        let samples = |stats: &Option<Box<DelayStats>>| stats.as_ref().unwrap().samples;
        assert_eq!(
            [&figures.egress, &figures.ingress, &figures.reflector_processing].map(samples),
            [0; 3]
        );
        let rtt = figures.rtt.as_ref().unwrap();
        assert!(rtt.samples == 1 && rtt.max_ns.abs_diff(MS as i64) < 2, "{rtt:?}");
        assert_eq!(figures.one_way_validity(), OneWayValidity::Negative);
    }
    // Unless the reflector reports a clock error as large (0x94 0x04: 976 us).
    for (before_ns, invalid) in [(-200_000, 0), (-900_000, 0), (-1_000_000, 1)] {
        let figures = figures_of_one(ErrorEstimate(0x9404), [t2, t2.plus_ns(before_ns)]);
        assert_eq!(figures.samples_invalid, invalid, "{before_ns}");
    }
}
