//! Conformance of test packets at the Session-Reflector and the Session-Sender.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use twamp_agent::{
    model::Schedule,
    proto::TestOutcome,
    stats::TestResult,
    time::{ErrorEstimate, Monotonic, Now, NtpTimestamp, StampSource, TimestampFormat, UnixTime},
    twamp::{
        PacketMeta,
        reflector::{
            Allowances, Ended, Finish, LightPolicy, PacketRules, Reflector, ReflectorCounters,
            ReflectorSession, Sessionless, Verdict,
        },
        sender::{Carrier, SenderConfig, SenderEvent, SessionSender},
    },
    wire::{
        codes::Sid,
        format::{PacketFormat, ProbeHeader},
    },
};

use super::vectors::{octets, vector};

const SECOND_NS: u64 = 1_000_000_000;
const START: UnixTime = UnixTime(1_700_000_000 * SECOND_NS);
const SID: Sid = Sid([1; 16]);

fn sender() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 4001))
}

fn spec(sid: Sid, sender: SocketAddr) -> ReflectorSession {
    let refwait_ns = 900 * SECOND_NS;
    ReflectorSession {
        sid,
        sender,
        tos: 184,
        format: PacketFormat::open(),
        timestamps: TimestampFormat::Ntp,
        refwait_ns,
        counters: Arc::default(),
    }
}

fn reflector() -> Reflector {
    let mut reflector = Reflector::new(862, Sessionless::Dropped, Arc::default());
    assert!(reflector.add(spec(SID, sender()), Monotonic(0)).is_ok());
    reflector.start(SID, Monotonic(0));
    reflector
}

fn meta(source: SocketAddr) -> PacketMeta {
    PacketMeta {
        source,
        destination: SocketAddr::from(([192, 0, 2, 2], 862)),
        received: START,
        ttl: Some(77),
        tos: Some(0),
        ..PacketMeta::default()
    }
}

fn probe(sequence: u32, octets: usize) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..octets.max(14)).map(|i| i as u8).collect();
    let timestamp = NtpTimestamp::from_unix(START).0;
    let error_estimate = ErrorEstimate(0x8a64);
    let probe = ProbeHeader { sequence, timestamp, error_estimate, ssid: 0 };
    PacketFormat::open().write_probe(&probe, &mut packet);
    packet.truncate(octets);
    packet
}

fn reflect(
    reflector: &mut Reflector,
    source: SocketAddr,
    packet: &[u8],
    at: u64,
) -> Option<Vec<u8>> {
    let mut reply = vec![0xee; 65_536];
    let estimate = ErrorEstimate::new(true, 1000);
    match reflector.handle(&meta(source), packet, estimate, Monotonic(at), &mut reply) {
        Verdict::Reply { octets, tos, finish } => {
            assert_eq!(tos, 184);
            reflector.finish(source, finish, &mut reply, START.plus_ns(50));
            Some(reply[..octets].to_vec())
        }
        _ => None,
    }
}

fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[..4].try_into().unwrap())
}

#[test]
fn conformance_061_062_packets_are_answered_for_the_timeout_after_stop() {
    let mut reflector = reflector();
    reflector.drain(SID, Monotonic(2 * SECOND_NS), Monotonic(SECOND_NS));
    assert!(reflect(&mut reflector, sender(), &probe(0, 41), 2 * SECOND_NS - 1).is_some());
    assert!(reflect(&mut reflector, sender(), &probe(1, 41), 2 * SECOND_NS).is_none());
    let mut ended = Vec::new();
    reflector.expire(Monotonic(2 * SECOND_NS), |sid, why| ended.push((sid, why)));
    assert_eq!(ended, [(SID, Ended::Drained)]);
}

#[test]
fn a_stopped_session_does_not_outlive_its_packets_for_a_long_timeout() {
    let mut reflector = reflector();
    let (long, silent) = (Monotonic(900 * SECOND_NS), 32 * SECOND_NS);
    reflector.drain(SID, long, Monotonic(SECOND_NS));
    let mut ended = Vec::new();
    let mut expire = |reflector: &mut Reflector, at: u64| {
        reflector.expire(Monotonic(at), |sid, why| ended.push((sid, why)));
        ended.len()
    };
    assert_eq!(expire(&mut reflector, silent), 0);
    assert!(reflect(&mut reflector, sender(), &probe(0, 41), silent).is_some());
    assert_eq!(expire(&mut reflector, 2 * silent - 1), 0, "its packets still come");
    assert_eq!(expire(&mut reflector, 2 * silent), 1);
    assert_eq!(ended, [(SID, Ended::Drained)]);
}

#[test]
fn conformance_056_packets_before_start_are_dropped() {
    let counters = Arc::new(ReflectorCounters::default());
    let mut reflector = Reflector::new(862, Sessionless::Dropped, counters.clone());
    assert!(reflector.add(spec(SID, sender()), Monotonic(0)).is_ok());
    assert!(reflect(&mut reflector, sender(), &probe(0, 41), 0).is_none());
    assert_eq!(counters.not_started.load(Relaxed), 1);
    reflector.start(SID, Monotonic(1));
    let reply = reflect(&mut reflector, sender(), &probe(1, 41), 2).unwrap();
    assert_eq!(number(&reply), 0, "and have no number");
}

#[test]
fn conformance_065_refwait_ends_silent_sessions_alone() {
    let other = SocketAddr::from(([192, 0, 2, 1], 4002));
    let mut reflector = reflector();
    assert!(reflector.add(spec(Sid([2; 16]), other), Monotonic(0)).is_ok());
    reflector.start(Sid([2; 16]), Monotonic(0));
    reflect(&mut reflector, other, &probe(0, 41), 100 * SECOND_NS);
    let mut ended = Vec::new();
    reflector.expire(Monotonic(900 * SECOND_NS), |sid, why| ended.push((sid, why)));
    assert_eq!(ended, [(SID, Ended::Silent)]);
    assert!(reflect(&mut reflector, other, &probe(1, 41), 901 * SECOND_NS).is_some());
    assert!(reflect(&mut reflector, sender(), &probe(1, 41), 901 * SECOND_NS).is_none());
}

#[test]
fn conformance_068_088_sizes() {
    let mut reflector = reflector();
    for (sent, reflected) in
        [(14, 41), (40, 41), (41, 41), (42, 42), (1472, 1472), (65_507, 65_507)]
    {
        assert_eq!(reflect(&mut reflector, sender(), &probe(0, sent), 0).unwrap().len(), reflected);
    }
}

#[test]
fn conformance_077_a_corrupt_packet_is_discarded() {
    let packet = octets(&vector("neg/sender/unauth/multiplier0")["in"]["packet"]);
    let mut strict = reflector();
    strict.set_rules(PacketRules { strict_error_estimate: true, ..PacketRules::default() });
    assert!(reflect(&mut strict, sender(), &packet, 0).is_none());
}

#[test]
fn a_packet_without_an_error_estimate_is_answered_and_counted() {
    let packet = octets(&vector("neg/sender/unauth/multiplier0")["in"]["packet"]);
    let counters = Arc::new(ReflectorCounters::default());
    let mut reflector = Reflector::new(862, Sessionless::Dropped, counters.clone());
    assert!(reflector.add(spec(SID, sender()), Monotonic(0)).is_ok());
    reflector.start(SID, Monotonic(0));
    let reply = reflect(&mut reflector, sender(), &packet, 0).unwrap();
    assert_eq!(reply[36..38], packet[12..14], "returned as it came");
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
    assert_eq!((count(&counters.unknown_error_estimate), count(&counters.corrupt)), (1, 0));
}

#[test]
fn a_reply_without_an_error_estimate_is_measured_and_counted() {
    let mut sending = Sending::new(1);
    let packet = sending.send().remove(0);
    let mut reply = reflect(&mut reflector(), sender(), &packet, 0).unwrap();
    // The S bit does not make it an estimate.
    reply[12..14].copy_from_slice(&[0x80, 0]);
    sending.receive(&reply);
    let figures = sending.result().figures.unwrap();
    assert_eq!((figures.probes_received, figures.packets_ignored), (1, 0));
    assert_eq!(figures.replies_without_error_estimate, 1);
    assert_eq!(figures.reflector_clock_error_ns, None);
}

#[test]
fn conformance_077_a_corrupt_reply_is_discarded() {
    let mut sending = Sending::strict(1);
    let packet = sending.send().remove(0);
    let mut reply = reflect(&mut reflector(), sender(), &packet, 0).unwrap();
    let multiplier = 13;
    let estimate = std::mem::replace(&mut reply[multiplier], 0);
    sending.receive(&reply);
    reply[multiplier] = estimate;
    let figures = sending.result().figures.unwrap();
    assert_eq!((figures.probes_received, figures.probes_lost, figures.packets_ignored), (0, 1, 1));
    let mut sending = Sending::strict(1);
    sending.send();
    sending.receive(&reply);
    assert_eq!(sending.result().figures.unwrap().probes_received, 1, "and that is why");
}

#[test]
fn conformance_083_084_one_reply_for_each_packet_with_a_number_of_its_own() {
    let mut reflector = reflector();
    for (expected, sequence) in [5, 5, 5, 9, 3].into_iter().enumerate() {
        let reply = reflect(&mut reflector, sender(), &probe(sequence, 41), 0).unwrap();
        assert_eq!(number(&reply), expected as u32);
        assert_eq!(number(&reply[24..]), sequence);
    }
}

#[test]
fn conformance_085_089_copies() {
    let packet = probe(7, 100);
    let reply = reflect(&mut reflector(), sender(), &packet, 0).unwrap();
    assert_eq!(reply[24..38], packet[..14], "number, time and error estimate of the sender");
    assert_eq!(reply[14..16], [0, 0]);
    assert_eq!(reply[38..40], [0, 0]);
    assert_eq!(reply[41..], packet[14..14 + 59], "the first octets of its padding");
}

#[test]
fn conformance_086_sender_ttl() {
    assert_eq!(reflect(&mut reflector(), sender(), &probe(0, 41), 0).unwrap()[40], 77);
    let mut reply = vec![0; 64];
    let unknown = PacketMeta { ttl: None, ..meta(sender()) };
    let estimate = ErrorEstimate::UNSYNCHRONISED;
    reflector().handle(&unknown, &probe(0, 41), estimate, Monotonic(0), &mut reply);
    assert_eq!(reply[40], 255);
}

#[test]
fn conformance_087_t2_is_not_behind_t3() {
    let reply = reflect(&mut reflector(), sender(), &probe(0, 41), 0).unwrap();
    let time = |at: usize| NtpTimestamp(u64::from_be_bytes(reply[at..at + 8].try_into().unwrap()));
    assert_eq!(time(4).since_ns(time(16)), 50);
}

#[test]
fn conformance_091_other_sources_are_dropped_and_keep_nothing_alive() {
    let mut reflector = reflector();
    for source in [([192, 0, 2, 1], 4002), ([192, 0, 2, 9], 4001)] {
        let source = SocketAddr::from(source);
        assert!(reflect(&mut reflector, source, &probe(0, 41), 899 * SECOND_NS).is_none());
    }
    let mut ended = Vec::new();
    reflector.expire(Monotonic(900 * SECOND_NS), |sid, _| ended.push(sid));
    assert_eq!(ended, [SID]);
}

#[test]
fn conformance_092_short_packets_are_dropped() {
    let mut reflector = reflector();
    for octets in 0..14 {
        assert!(reflect(&mut reflector, sender(), &probe(0, octets), 0).is_none());
    }
    let packet = octets(&vector("neg/sender/unauth/13-octets")["in"]["packet"]);
    assert!(reflect(&mut reflector, sender(), &packet, 0).is_none());
}

#[test]
fn conformance_093_light_without_state_copies_the_number() {
    let policy = |stateful| LightPolicy {
        maximum_packets_per_second: None,
        prefixes: vec!["192.0.2.0/24".parse().unwrap()],
        stateful,
        refwait_ns: 900 * SECOND_NS,
        allowances: Allowances::default(),
    };
    let numbers = |stateful| -> Vec<u32> {
        let mut reflector =
            Reflector::new(862, Sessionless::Light(policy(stateful)), Arc::default());
        let mut reply = vec![0; 64];
        [4, 9, 2]
            .into_iter()
            .map(|sequence| {
                let (meta, packet) = (meta(sender()), probe(sequence, 41));
                let estimate = ErrorEstimate::UNSYNCHRONISED;
                let verdict = reflector.handle(&meta, &packet, estimate, Monotonic(0), &mut reply);
                assert_eq!(verdict, Verdict::Reply { octets: 41, tos: 0, finish: Finish::Light });
                number(&reply)
            })
            .collect()
    };
    assert_eq!(numbers(false), [4, 9, 2]);
    assert_eq!(numbers(true), [0, 1, 2]);
}

#[test]
fn two_light_reflectors_do_not_answer_each_other() {
    let everybody = LightPolicy {
        maximum_packets_per_second: None,
        prefixes: vec!["::/0".parse().unwrap(), "0.0.0.0/0".parse().unwrap()],
        stateful: false,
        refwait_ns: SECOND_NS,
        allowances: Allowances::default(),
    };
    let mut reflector = Reflector::new(862, Sessionless::Light(everybody), Arc::default());
    let mut reply = vec![0; 64];
    let other = SocketAddr::from(([192, 0, 2, 7], 862));
    let estimate = ErrorEstimate::UNSYNCHRONISED;
    let verdict = reflector.handle(&meta(other), &probe(0, 41), estimate, Monotonic(0), &mut reply);
    assert_eq!(verdict, Verdict::ReflectionLoop);
}

/// Two reflectors of any kinds on different ports: a forged packet between them causes no loop.
#[test]
fn two_reflectors_on_different_ports_do_not_play_ping_pong() {
    use twamp_agent::twamp::reflector::{StampPolicy, StampRule};
    let light = || {
        Sessionless::Light(LightPolicy {
            maximum_packets_per_second: None,
            prefixes: vec!["0.0.0.0/0".parse().unwrap()],
            stateful: true,
            refwait_ns: u64::MAX,
            allowances: Allowances::default(),
        })
    };
    let stamp = || {
        Sessionless::Stamp(StampPolicy {
            sessions: vec![StampRule {
                prefix: "0.0.0.0/0".parse().unwrap(),
                port: None,
                ssid: None,
            }],
            stateful: true,
            authenticated: false,
            secrets: Vec::new(),
            allow_class_of_service: true,
            timestamps: TimestampFormat::Ntp,
            refwait_ns: u64::MAX,
        })
    };
    for kinds in [[light(), light()], [light(), stamp()], [stamp(), stamp()]] {
        let ports = [4001, 4002];
        let address = |end: usize| SocketAddr::from(([192, 0, 2, 1 + end as u8], ports[end]));
        let mut ends: Vec<Reflector> = kinds
            .into_iter()
            .zip(ports)
            .map(|(kind, port)| Reflector::new(port, kind, Arc::default()))
            .collect();
        let (mut packet, mut at, mut answers) = (probe(0, 60), 0, 0);
        loop {
            let mut reply = vec![0; 2048];
            let meta = meta(address(1 - at));
            let estimate = ErrorEstimate::new(true, 1);
            let verdict = ends[at].handle(&meta, &packet, estimate, Monotonic(0), &mut reply);
            let Verdict::Reply { octets, finish, .. } = verdict else {
                assert_eq!(verdict, Verdict::ReflectionLoop);
                break;
            };
            answers += 1;
            assert!(answers < 10, "for ever");
            let t3 = START.plus_ns(1_000 + answers * 100);
            ends[at].finish(meta.source, finish, &mut reply[..octets], t3);
            packet = reply[..octets].to_vec();
            at = 1 - at;
        }
        assert!(answers <= 2, "{answers}");
    }
}

#[test]
fn packets_to_many_and_from_nobody_are_not_answered() {
    let everybody = LightPolicy {
        maximum_packets_per_second: None,
        prefixes: vec!["::/0".parse().unwrap(), "0.0.0.0/0".parse().unwrap()],
        stateful: false,
        refwait_ns: SECOND_NS,
        allowances: Allowances::default(),
    };
    let counters = Arc::new(ReflectorCounters::default());
    let mut reflector = Reflector::new(862, Sessionless::Light(everybody), counters.clone());
    let mut reply = vec![0; 64];
    let mut verdict = |meta: PacketMeta| {
        let estimate = ErrorEstimate::UNSYNCHRONISED;
        reflector.handle(&meta, &probe(0, 41), estimate, Monotonic(0), &mut reply)
    };
    assert!(matches!(verdict(meta(sender())), Verdict::Reply { .. }));
    // Addressed to a broadcast or multicast address.
    let to_group = PacketMeta { to_group: true, ..meta(sender()) };
    assert_eq!(verdict(to_group), Verdict::ReflectionLoop);
    for source in [
        "255.255.255.255:5000",
        "224.0.0.1:5000",
        "0.0.0.0:5000",
        "192.0.2.1:0",
        "[ff02::1]:5000",
        "[::]:5000",
    ] {
        assert_eq!(verdict(meta(source.parse().unwrap())), Verdict::ReflectionLoop, "{source}");
    }
    assert_eq!(counters.reflection_loop.load(Relaxed), 7);
}

struct Sending {
    machine: SessionSender,
    now: Now,
}

impl Sending {
    fn new(probe_count: u32) -> Self {
        Self::with_rule(probe_count, false)
    }

    fn strict(probe_count: u32) -> Self {
        Self::with_rule(probe_count, true)
    }

    fn with_rule(probe_count: u32, strict_error_estimate: bool) -> Self {
        let now = Now { monotonic: Monotonic(SECOND_NS), unix: START };
        let mut machine = SessionSender::new(SenderConfig {
            probe_count,
            probe_interval_ns: 10_000_000,
            burst_size: 1,
            schedule: Schedule::Periodic,
            loss_timeout_ns: 100_000_000,
            test_interval_ns: SECOND_NS,
            test_count: 0,
            data_size: 41,
            reflector_numbers_replies: true,
            availability: Default::default(),
            strict_error_estimate,
        });
        machine.session_started(Carrier::default(), now.monotonic, now);
        Self { machine, now }
    }

    fn pass(&mut self, ns: u64) {
        self.now.monotonic = self.now.monotonic.plus_ns(ns);
        self.now.unix = self.now.unix.plus_ns(ns as i64);
        self.machine.handle_timeout(self.now);
    }

    /// Sends all due probes and returns their packets.
    fn send(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while self.machine.poll_probe(self.now).is_some() {
            let mut packet = vec![0; 41];
            let t1 = self.now.unix;
            let (estimate, now) = (ErrorEstimate::new(true, 10), self.now.monotonic);
            self.machine.write_probe(t1, estimate, &mut packet, now);
            self.machine.probe_sent(t1, 0, self.now);
            packets.push(packet);
        }
        packets
    }

    fn receive(&mut self, packet: &[u8]) {
        let meta = PacketMeta {
            received: self.now.unix,
            stamp: StampSource::Kernel,
            ttl: Some(64),
            tos: Some(0),
            ..PacketMeta::default()
        };
        self.machine.handle_reply(packet, &meta, self.now);
    }

    fn result(&mut self) -> TestResult {
        for _ in 0..1000 {
            self.pass(10_000_000);
            while let Some(event) = self.machine.poll_event() {
                if let SenderEvent::Test(result, _) = event {
                    return *result;
                }
            }
        }
        panic!("the test does not end");
    }
}

#[test]
fn conformance_094_095_numbers_from_0_and_the_real_time_of_departure() {
    let mut sending = Sending::new(3);
    let mut packets = sending.send();
    // Sent late: the timestamp is that of the departure, not of the schedule.
    sending.pass(37_000_000);
    packets.extend(sending.send());
    let numbers: Vec<u32> = packets.iter().map(|packet| number(packet)).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let time = |packet: &[u8]| NtpTimestamp(u64::from_be_bytes(packet[4..12].try_into().unwrap()));
    assert_eq!(time(&packets[1]).since_ns(time(&packets[0])), 37_000_000);
}

#[test]
fn conformance_097_what_is_no_answer_is_counted_and_ends_nothing() {
    let mut sending = Sending::new(1);
    let packet = sending.send().remove(0);
    let good = reflect(&mut reflector(), sender(), &packet, 0).unwrap();
    let mut unknown = good.clone();
    unknown[27] = 9;
    let mut other_time = good.clone();
    other_time[30] ^= 1;
    for wrong in [&unknown[..], &other_time, &good[..37], &[], &packet[..14]] {
        sending.receive(wrong);
    }
    sending.receive(&good);
    let result = sending.result();
    let figures = result.figures.clone().unwrap();
    assert_eq!((figures.packets_ignored, figures.probes_received), (5, 1));
    assert_eq!(result.outcome(), TestOutcome::Complete);
}

#[test]
fn conformance_098_answers_of_another_size_count() {
    let mut sending = Sending::new(2);
    let mut packets = sending.send();
    sending.pass(10_000_000);
    packets.extend(sending.send());
    let mut reflector = reflector();
    let mut long = reflect(&mut reflector, sender(), &packets[0], 0).unwrap();
    long.extend([0; 100]);
    sending.receive(&long);
    let short = reflect(&mut reflector, sender(), &packets[1][..14], 0).unwrap();
    sending.receive(&short);
    assert_eq!(sending.result().figures.unwrap().probes_received, 2);
}

/// Stop-Sessions waits for probes in flight, within its limit.
#[test]
fn conformance_100_what_is_under_way_is_waited_for_before_the_stop() {
    let mut sending = Sending::new(5);
    let packet = sending.send().remove(0);
    sending.machine.stop(2 * SECOND_NS, sending.now);
    assert!(!sending.machine.is_stopped(), "a probe is under way");
    sending.pass(50_000_000);
    assert!(!sending.machine.is_stopped());
    let reply = reflect(&mut reflector(), sender(), &packet, 0).unwrap();
    sending.receive(&reply);
    let figures = sending.result().figures.unwrap();
    assert!(sending.machine.is_stopped());
    assert_eq!((figures.probes_received, figures.probes_lost, figures.probes_not_sent), (1, 0, 4));
}

/// As sent by twampy's responder: nothing after the Sender Error Estimate, and T2 = T3.
#[test]
fn conformance_098_a_reply_without_sender_ttl_counts() {
    let mut sending = Sending::new(1);
    let packet = sending.send().remove(0);
    let mut reply = reflect(&mut reflector(), sender(), &packet, 0).unwrap();
    reply.copy_within(4..12, 16);
    sending.receive(&reply[..38]);
    let figures = sending.result().figures.unwrap();
    assert_eq!((figures.probes_received, figures.packets_ignored), (1, 0));
    assert_eq!(figures.egress_ttl, 255, "not known");
}

/// As sent by domos' twamp-light: T1 and T3 in exchanged places.
#[test]
fn conformance_098_a_reply_with_t1_and_t3_in_each_others_place_counts() {
    let delays = |exchange: bool| {
        let mut sending = Sending::new(1);
        let packet = sending.send().remove(0);
        let mut reply = reflect(&mut reflector(), sender(), &packet, 0).unwrap();
        if exchange {
            let (t3, t1) = (reply[4..12].to_vec(), reply[28..36].to_vec());
            reply[4..12].copy_from_slice(&t1);
            reply[28..36].copy_from_slice(&t3);
        }
        sending.receive(&reply);
        let figures = sending.result().figures.unwrap();
        assert_eq!((figures.probes_received, figures.packets_ignored), (1, 0));
        (figures.rtt, figures.egress, figures.ingress)
    };
    assert_eq!(delays(true), delays(false));
}

#[test]
fn conformance_099_padding_makes_both_ways_equal_by_default() {
    use twamp_agent::model::limits::DATA_SIZE;
    const { assert!(DATA_SIZE.default >= 41) };
    let packet = probe(0, DATA_SIZE.default as usize);
    assert_eq!(reflect(&mut reflector(), sender(), &packet, 0).unwrap().len(), packet.len());
}

#[test]
fn conformance_100_late_answers_are_lost() {
    let mut sending = Sending::new(2);
    let packet = sending.send().remove(0);
    let reply = reflect(&mut reflector(), sender(), &packet, 0).unwrap();
    sending.pass(10_000_000);
    sending.send();
    sending.pass(95_000_000);
    sending.receive(&reply);
    let figures = sending.result().figures.unwrap();
    assert_eq!((figures.probes_lost, figures.probes_late, figures.probes_received), (2, 1, 0));
}

/// An hour and a day without a server: one result for each due test, constant memory, and an
/// unchanged schedule.
#[test]
fn a_day_without_a_server() {
    use twamp_agent::proto::FailureCause;
    let mut sending = Sending::new(10);
    while sending.machine.poll_event().is_some() {}
    let start = sending.now.monotonic;
    sending.machine.session_lost(FailureCause::Refused, 0, sending.now);
    let mut results = Vec::new();
    for attempt in 1..=86_400 {
        sending.pass(SECOND_NS);
        sending.machine.session_lost(FailureCause::Refused, attempt, sending.now);
        sending.machine.handle_timeout(sending.now);
        assert_eq!(sending.machine.poll_probe(sending.now), None, "nothing is sent");
        while let Some(event) = sending.machine.poll_event() {
            if let SenderEvent::Test(result, _) = event {
                results.push(*result);
            }
        }
    }
    let unreachable: Vec<&TestResult> =
        results.iter().filter(|result| result.outcome() == TestOutcome::Unreachable).collect();
    // A test takes 9 x 10 ms + 100 ms, followed by the interval of 1 s.
    let expected = sending.now.monotonic.since_ns(start) / 1_190_000_000;
    assert!((unreachable.len() as u64).abs_diff(expected) <= 1, "{}", unreachable.len());
    for result in &unreachable {
        let figures = result.figures.clone().unwrap();
        assert_eq!((figures.probes_not_sent, figures.probes_sent), (10, 0));
        assert_eq!(result.cause(), FailureCause::Refused);
    }
    assert!(unreachable.last().unwrap().attempts > 86_390);
    // The server is back: the next test starts immediately.
    sending.machine.session_started(Carrier::default(), sending.now.monotonic, sending.now);
    assert!(sending.machine.poll_probe(sending.now).is_some());
}

#[test]
fn conformance_126_copied_numbers_tell_no_direction_of_losses() {
    let losses = |copies: bool| {
        let (mut sending, mut reflector) = (Sending::new(50), reflector());
        for index in 0..50 {
            for packet in sending.send() {
                // One probe of ten never comes to the reflector.
                if index % 10 != 4 {
                    let mut reply = reflect(&mut reflector, sender(), &packet, index).unwrap();
                    if copies {
                        reply[..4].copy_from_slice(&packet[..4]);
                    }
                    sending.receive(&reply);
                }
            }
            sending.pass(10_000_000);
        }
        let figures = sending.result().figures.unwrap();
        let by_direction = (figures.probes_lost_egress, figures.probes_lost_ingress);
        (by_direction, figures.probes_lost_unattributed)
    };
    assert_eq!(losses(false), ((Some(5), Some(0)), 0));
    assert_eq!(losses(true), ((None, None), 5));
}

/// A reply is judged by its arrival time, not by the time of reading.
#[test]
fn a_reply_that_waited_in_the_socket_is_not_late() {
    let answered = |waited_ns: u64| {
        let mut sending = Sending::new(1);
        let packet = sending.send().remove(0);
        let reply = reflect(&mut reflector(), sender(), &packet, 0).unwrap();
        // The loss timeout is 100 ms.
        let later_ns = 100_400_000;
        sending.now.monotonic = sending.now.monotonic.plus_ns(later_ns);
        sending.now.unix = sending.now.unix.plus_ns(later_ns as i64);
        assert!(sending.machine.has_expired_probe(sending.now.monotonic));
        let received = sending.now.unix.plus_ns(-(waited_ns as i64));
        let meta = PacketMeta { received, stamp: StampSource::Kernel, ..PacketMeta::default() };
        sending.machine.handle_reply(&reply, &meta, sending.now);
        sending.machine.handle_timeout(sending.now);
        let figures = sending.result().figures.unwrap();
        (figures.probes_received, figures.probes_lost, figures.probes_late)
    };
    assert_eq!(answered(500_000), (1, 0, 0));
    assert_eq!(answered(300_000), (0, 1, 1));
}

/// A stopped test counts probes in flight as answered if their replies arrive.
#[test]
fn a_stopped_test_waits_for_what_is_under_way() {
    let stopped = |answer: bool| -> TestResult {
        let mut sending = Sending::new(5);
        let packet = sending.send().remove(0);
        let reply = reflect(&mut reflector(), sender(), &packet, 0).unwrap();
        sending.machine.stop(80_000_000, sending.now);
        assert!(sending.send().is_empty());
        sending.pass(40_000_000);
        if answer {
            sending.receive(&reply);
        }
        let result = sending.result();
        assert!(sending.machine.is_stopped());
        sending.pass(10 * SECOND_NS);
        assert_eq!(sending.machine.poll_event(), None, "no further test");
        result
    };
    for (answer, received, abandoned) in [(true, 1, 0), (false, 0, 1)] {
        let result = stopped(answer);
        assert_eq!(result.outcome(), TestOutcome::Stopped);
        let figures = result.figures.clone().unwrap();
        assert_eq!((figures.probes_received, figures.probes_abandoned), (received, abandoned));
        assert_eq!(figures.probes_lost, 0, "nobody waited as long as it takes to be lost");
        assert_eq!((figures.probes_sent, figures.probes_not_sent), (1, 4));
    }
}
