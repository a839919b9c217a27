//! Conformance of the STAMP sender and reflector (RFC 8762, RFC 8972).

use std::{net::SocketAddr, sync::Arc};

use twamp_agent::{
    model::{self, AccessReport, Schedule, Secret, StampSession},
    proto,
    stats::{Figures, ProbeResult, StampFigures},
    time::{ErrorEstimate, Monotonic, Now, StampSource, TimestampFormat, UnixTime},
    twamp::{
        PacketMeta,
        reflector::{
            Allowances, LightPolicy, Reflector, ReflectorCounters, Sessionless, StampPolicy,
            StampRule, Verdict,
        },
        sender::{Carrier, SenderConfig, SenderEvent, SessionSender, StampSender},
    },
    wire::{
        format::{PacketFormat, ProbeHeader, Protection},
        tlv,
    },
};

const SECOND: u64 = 1_000_000_000;
const START: UnixTime = UnixTime(1_700_000_000 * SECOND);
const KEY: &str = "stamp secret";

fn sender_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 4001))
}

fn policy() -> StampPolicy {
    StampPolicy {
        sessions: vec![StampRule {
            prefix: "192.0.2.0/24".parse().unwrap(),
            port: None,
            ssid: None,
        }],
        stateful: true,
        authenticated: false,
        secrets: Vec::new(),
        allow_class_of_service: true,
        timestamps: TimestampFormat::Ntp,
        refwait_ns: 900 * SECOND,
    }
}

fn meta(source: SocketAddr) -> PacketMeta {
    PacketMeta {
        source,
        destination: SocketAddr::from(([192, 0, 2, 2], 862)),
        received: START,
        ttl: Some(77),
        tos: Some(10 << 2 | 1),
        ..PacketMeta::default()
    }
}

fn reflector(policy: StampPolicy) -> Reflector {
    Reflector::new(862, Sessionless::Stamp(policy), Arc::default())
}

fn answer(
    reflector: &mut Reflector,
    source: SocketAddr,
    probe: &[u8],
) -> Result<(Vec<u8>, u8), Verdict> {
    let mut reply = vec![0xee; 2048];
    let estimate = ErrorEstimate::new(true, 10);
    match reflector.handle(&meta(source), probe, estimate, Monotonic(1), &mut reply) {
        Verdict::Reply { octets, tos, finish } => {
            reply.truncate(octets);
            reflector.finish(source, finish, &mut reply, START.plus_ns(5_000));
            Ok((reply, tos))
        }
        dropped => Err(dropped),
    }
}

fn probe(sequence: u32, ssid: u16, format: &PacketFormat, octets: usize) -> Vec<u8> {
    let mut packet = vec![0; octets.max(format.probe_octets())];
    let header = ProbeHeader {
        sequence,
        timestamp: TimestampFormat::Ntp.encode(START),
        error_estimate: ErrorEstimate(0x8a64),
        ssid,
    };
    format.write_probe(&header, &mut packet);
    packet.truncate(octets);
    packet
}

fn open() -> PacketFormat {
    PacketFormat { protection: Protection::StampOpen, ..PacketFormat::default() }
}

fn authenticated(key: &str) -> PacketFormat {
    let key = Arc::new(twamp_agent::wire::crypto::StampKey::new(key.as_bytes()));
    PacketFormat { protection: Protection::StampAuthenticated(key), ..PacketFormat::default() }
}

fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[..4].try_into().unwrap())
}

/// A sender and a reflector that exchange packets.
struct Pair {
    sender: SessionSender,
    reflector: Reflector,
    now: Now,
    octets: usize,
    probes: Vec<ProbeResult>,
    figures: Option<Figures>,
}

impl Pair {
    fn new(session: StampSession, extra: usize, reflector: Reflector) -> Self {
        let octets = session.base_octets() + session.tlv_octets() + extra;
        let stamp = StampSender::new(session, 0x4321, octets, |padding| padding.fill(0x5a));
        let mut sender = SessionSender::new(SenderConfig {
            probe_count: 4,
            probe_interval_ns: SECOND,
            burst_size: 1,
            schedule: Schedule::Periodic,
            loss_timeout_ns: 2 * SECOND,
            test_interval_ns: SECOND,
            test_count: 1,
            data_size: octets as u16,
            reflector_numbers_replies: false,
            availability: Default::default(),
            strict_error_estimate: false,
        });
        let now = Now { monotonic: Monotonic(SECOND), unix: START };
        let format = stamp.format();
        let carrier = Carrier {
            format,
            honours_z_bit: true,
            stamp: Some(Box::new(stamp)),
            ..Carrier::default()
        };
        sender.session_started(carrier, now.monotonic, now);
        Self { sender, reflector, now, octets, probes: Vec::new(), figures: None }
    }

    /// Runs the test; `on_the_way` may change each packet in both directions.
    fn run(self, mut on_the_way: impl FnMut(&mut Vec<u8>, &mut Vec<u8>)) -> Self {
        self.run_with(|_, packet, reply| on_the_way(packet, reply))
    }

    fn run_with(
        mut self,
        mut on_the_way: impl FnMut(&mut Reflector, &mut Vec<u8>, &mut Vec<u8>),
    ) -> Self {
        while self.figures.is_none() {
            while self.sender.poll_probe(self.now).is_some() {
                let mut packet = vec![0; self.octets];
                let estimate = ErrorEstimate::new(true, 10);
                self.sender.write_probe(self.now.unix, estimate, &mut packet, self.now.monotonic);
                self.sender.probe_sent(self.now.unix, 0, self.now);
                let Ok((mut reply, _)) = answer(&mut self.reflector, sender_address(), &packet)
                else {
                    continue;
                };
                on_the_way(&mut self.reflector, &mut packet, &mut reply);
                // The kernel reports that the reply left 20 us after its T3.
                let wire = [vec![0x45; 28], reply.clone()].concat();
                self.reflector.transmitted(&wire, START.plus_ns(25_000));
                let received = START.plus_ns(100_000);
                let meta =
                    PacketMeta { received, stamp: StampSource::Kernel, ..PacketMeta::default() };
                self.sender.handle_reply(&reply, &meta, self.now);
            }
            while let Some(event) = self.sender.poll_event() {
                match event {
                    SenderEvent::Probe(probe) => self.probes.push(probe),
                    SenderEvent::Test(result, _) => {
                        self.figures = result.figures.map(|figures| *figures);
                    }
                    SenderEvent::Completed | SenderEvent::Minute(..) => {}
                }
            }
            // All probes carry the same T1: only waiting takes time.
            self.now.monotonic = self.now.monotonic.plus_ns(SECOND / 10);
            self.sender.handle_timeout(self.now);
        }
        self
    }

    fn stamp(&self) -> StampFigures {
        *self.figures.clone().unwrap().stamp.unwrap()
    }
}

fn everything() -> StampSession {
    StampSession {
        class_of_service: model::Dscp::new(46),
        direct_measurement: true,
        location: true,
        timestamp_information: true,
        follow_up_telemetry: true,
        access_report: Some(AccessReport {
            access_id: 1,
            return_code: 1,
            retransmission_interval_ns: 3 * SECOND,
            retransmissions: 4,
        }),
        ..StampSession::default()
    }
}

#[test]
fn conformance_113_port_862_by_default() {
    let document = proto::AgentConfig {
        client: Some(proto::ClientConfig {
            control_connections: vec![proto::ControlConnection {
                name: "c".into(),
                control_type: proto::ControlType::Stamp.into(),
                target_address: "192.0.2.1".into(),
                test_sessions: vec![
                    proto::TestSession { name: "s".into(), ..Default::default() },
                    proto::TestSession {
                        name: "t".into(),
                        destination_port: Some(50_000),
                        ..Default::default()
                    },
                ],
                ..Default::default()
            }],
        }),
        server: Some(proto::ServerConfig {
            stamp: Some(proto::StampReflector {
                prefixes: vec!["::/0".into()],
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let config = model::parse(&document).unwrap();
    let sessions = &config.connections["c"].sessions;
    // `None` becomes TWAMP_PORT when the socket is opened.
    assert_eq!((sessions[0].destination_port, sessions[1].destination_port), (None, Some(50_000)));
    assert_eq!(model::limits::TWAMP_PORT, 862);
    assert_eq!(config.server.as_ref().unwrap().stamp.as_ref().unwrap().listen[0].port, 862);
    assert_eq!((sessions[0].data_size, sessions[1].data_size), (44, 44));
}

#[test]
fn conformance_114_base_sizes_and_reserved_octets() {
    let packet = probe(7, 0x4321, &open(), 44);
    assert_eq!(packet[16..], [0; 28]);
    let (reply, _) = answer(&mut reflector(policy()), sender_address(), &packet).unwrap();
    assert_eq!(reply.len(), 44);
    assert_eq!((&reply[38..40], reply[40], &reply[41..]), (&[0, 0][..], 77, &[0; 3][..]));
    let format = authenticated(KEY);
    let packet = probe(7, 0x4321, &format, 112);
    assert_eq!((packet.len(), &packet[4..16], &packet[28..96]), (112, &[0; 12][..], &[0; 68][..]));
    let keyed = StampPolicy { authenticated: true, secrets: vec![Secret::new(KEY)], ..policy() };
    let (reply, _) = answer(&mut reflector(keyed), sender_address(), &packet).unwrap();
    assert_eq!(reply.len(), 112);
    assert!(
        [4..16, 28..32, 40..48, 52..64, 74..80, 81..96]
            .into_iter()
            .all(|range| { reply[range].iter().all(|octet| *octet == 0) })
    );
}

#[test]
fn conformance_115_only_what_is_authentic_is_answered() {
    let counters = Arc::new(ReflectorCounters::default());
    let keyed = StampPolicy {
        authenticated: true,
        // An old key and its replacement.
        secrets: vec![Secret::new("old"), Secret::new(KEY)],
        ..policy()
    };
    let mut reflector = Reflector::new(862, Sessionless::Stamp(keyed), counters.clone());
    for key in ["old", KEY] {
        let format = authenticated(key);
        let packet = probe(1, 5, &format, 112);
        let (reply, _) = answer(&mut reflector, sender_address(), &packet).unwrap();
        assert!(format.read_reply(&reply).is_ok(), "answered with the key of the probe");
        for bit in 0..112 * 8 {
            let mut flipped = packet.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                answer(&mut reflector, sender_address(), &flipped),
                Err(Verdict::IntegrityFailed)
            );
        }
    }
    let stranger = probe(1, 5, &authenticated("strange"), 112);
    assert_eq!(answer(&mut reflector, sender_address(), &stranger), Err(Verdict::IntegrityFailed));
    assert_eq!(answer(&mut reflector, sender_address(), &stranger[..111]), Err(Verdict::TooShort));
}

#[test]
fn conformance_116_with_state_it_counts_without_it_copies() {
    let numbers = |stateful| {
        let mut reflector = reflector(StampPolicy { stateful, ..policy() });
        [4, 9, 2].map(|sequence| {
            let packet = probe(sequence, 1, &open(), 44);
            number(&answer(&mut reflector, sender_address(), &packet).unwrap().0)
        })
    };
    assert_eq!(numbers(false), [4, 9, 2]);
    assert_eq!(numbers(true), [0, 1, 2]);
    // The SSID distinguishes sessions of one sender.
    let mut reflector = reflector(policy());
    let counts = [1, 2, 1, 2].map(|ssid| {
        let packet = probe(0, ssid, &open(), 44);
        number(&answer(&mut reflector, sender_address(), &packet).unwrap().0)
    });
    assert_eq!(counts, [0, 0, 1, 1]);
}

#[test]
fn conformance_117_senders_of_twamp_light_are_answered() {
    let light = PacketFormat::open();
    let mut reflector = reflector(policy());
    for octets in [14, 30, 41, 43, 44, 45, 47, 100, 1400] {
        let mut packet = probe(3, 0, &light, octets);
        packet[14..].fill(0xa5);
        let (reply, _) = answer(&mut reflector, sender_address(), &packet).unwrap();
        assert_eq!(reply.len(), octets.max(44), "{octets}");
        assert_eq!(light.read_reply(&reply).unwrap().probe.sequence, 3);
    }
}

#[test]
fn conformance_117_a_stamp_sender_with_a_reflector_of_twamp_light() {
    let policy = LightPolicy {
        maximum_packets_per_second: None,
        prefixes: vec!["192.0.2.0/24".parse().unwrap()],
        stateful: true,
        refwait_ns: SECOND,
        allowances: Allowances::default(),
    };
    let light = Reflector::new(862, Sessionless::Light(policy), Arc::default());
    let pair = Pair::new(everything(), 0, light).run(|_, reply| assert_eq!(reply[14..16], [0, 0]));
    let figures = pair.figures.clone().unwrap();
    assert_eq!((figures.probes_received, figures.packets_ignored), (4, 0));
    let stamp = pair.stamp();
    assert_eq!((stamp.replies_without_tlvs, stamp.replies_without_ssid), (4, 4));
    assert_eq!(stamp.tlvs_unrecognised, 0, "padding is not taken for TLVs");
}

#[test]
fn conformance_118_replies_without_an_identifier_count_unless_it_is_required() {
    for (require_ssid, received) in [(false, 4), (true, 0)] {
        let session = StampSession { require_ssid, ..everything() };
        let pair = Pair::new(session, 0, reflector(policy())).run(|_, reply| {
            reply[14..16].copy_from_slice(&[0, 0]);
        });
        assert_eq!(pair.stamp().replies_without_ssid, 4);
        let figures = pair.figures.unwrap();
        assert_eq!((figures.probes_received, figures.packets_ignored), (received, 4 - received));
    }
}

#[test]
fn conformance_118_identifiers_are_copied_and_provisioned() {
    let rule = |port, ssid| StampRule { prefix: "192.0.2.0/24".parse().unwrap(), port, ssid };
    let sessions = vec![rule(Some(4001), Some(7)), rule(None, Some(9))];
    let mut reflector = reflector(StampPolicy { sessions, ..policy() });
    let other = SocketAddr::from(([192, 0, 2, 1], 5000));
    let stranger = SocketAddr::from(([198, 51, 100, 1], 4001));
    for (source, ssid, expected) in [
        (sender_address(), 7, Ok(7)),
        (sender_address(), 9, Ok(9)),
        (other, 9, Ok(9)),
        (other, 7, Err(Verdict::NoSession)),
        (sender_address(), 8, Err(Verdict::NoSession)),
        (sender_address(), 0, Err(Verdict::NoSession)),
        (stranger, 7, Err(Verdict::NotListed)),
    ] {
        let got = answer(&mut reflector, source, &probe(0, ssid, &open(), 44));
        let ssid = got.map(|(reply, _)| u16::from_be_bytes([reply[14], reply[15]]));
        assert_eq!(ssid, expected, "{source}");
    }
}

#[test]
fn conformance_119_the_sender_sets_u_and_believes_the_flags() {
    let pair = Pair::new(everything(), 0, reflector(policy())).run(|packet, reply| {
        let mut kinds = Vec::new();
        for tlv in tlv::walk(&packet[44..]) {
            let tlv = tlv.unwrap();
            assert_eq!(tlv.flags, 0x80);
            assert!(tlv.has_right_length());
            kinds.push(tlv.kind);
        }
        assert!(kinds.len() >= 6, "{kinds:?}");
        assert!(tlv::walk(&reply[44..]).all(|tlv| tlv.unwrap().flags == 0));
    });
    let stamp = pair.stamp();
    assert_eq!(
        (stamp.tlvs_unrecognised, stamp.tlvs_malformed, stamp.tlvs_integrity_failed),
        (0, 0, 0)
    );
    // Reflectors that do not know them, find them malformed or fail their integrity check.
    for (flag, counts) in [(0x80, (4, 0, 0)), (0x40, (0, 4, 0)), (0x20, (0, 0, 4))] {
        let pair = Pair::new(everything(), 0, reflector(policy())).run(|_, reply| {
            let first = tlv::walk(&reply[44..]).next().unwrap().unwrap();
            reply[44 + first.at] |= flag;
        });
        let s = pair.stamp();
        assert_eq!((s.tlvs_unrecognised, s.tlvs_malformed, s.tlvs_integrity_failed), counts);
        assert_eq!(pair.figures.unwrap().egress_tos, None, "its first TLV is that of the class");
    }
}

#[test]
fn conformance_121_122_authenticated_tlvs_are_signed() {
    let session =
        StampSession { authenticated: true, secret: Some(Secret::new(KEY)), ..everything() };
    let keyed = || StampPolicy { authenticated: true, secrets: vec![Secret::new(KEY)], ..policy() };
    let pair = Pair::new(session.clone(), 32, reflector(keyed())).run(|packet, reply| {
        for octets in [packet, reply] {
            let last = tlv::walk(&octets[112..]).last().unwrap().unwrap();
            assert_eq!(last.kind, tlv::types::HMAC);
        }
    });
    assert_eq!(pair.figures.as_ref().unwrap().probes_received, 4);
    assert_eq!(pair.stamp().tlvs_integrity_failed, 0);
    assert_eq!(pair.stamp().direct_reflector_received, 4);
    // A modified TLV in a reply: its timestamps are used, its TLVs are not.
    let pair =
        Pair::new(session.clone(), 0, reflector(keyed())).run(|_, reply| reply[112 + 6] ^= 1);
    assert_eq!(pair.stamp().tlvs_integrity_failed, 4);
    assert_eq!(pair.figures.unwrap().probes_received, 4);
    // The flags of the HMAC TLV are not signed, but cannot hide it.
    let pair = Pair::new(session.clone(), 0, reflector(keyed())).run(|_, reply| {
        let hmac = tlv::walk(&reply[112..]).map_while(Result::ok).last().unwrap();
        reply[112 + 6] ^= 1;
        reply[112 + hmac.at] |= tlv::flags::UNRECOGNISED;
    });
    assert_eq!(pair.stamp().tlvs_integrity_failed, 4);
    assert_eq!(pair.figures.unwrap().egress_tos, None);
    // Truncation or another type does not hide it either.
    let pair = Pair::new(session.clone(), 0, reflector(keyed())).run(|_, reply| {
        let hmac = tlv::walk(&reply[112..]).map_while(Result::ok).last().unwrap();
        reply[112 + hmac.at + 1] = tlv::types::EXTRA_PADDING;
    });
    assert_eq!(pair.figures.unwrap().egress_tos, None);
    // Only padding may follow it: other appended TLVs are not signed and not used.
    let forged = [
        [0, tlv::types::CLASS_OF_SERVICE, 0, 4, 0x0f, 0xfc, 0, 0].to_vec(),
        [vec![0, tlv::types::DIRECT_MEASUREMENT, 0, 12], vec![0x6f; 12]].concat(),
        [vec![0, tlv::types::FOLLOW_UP_TELEMETRY, 0, 16], vec![0, 0, 0, 1], vec![0x10; 12]]
            .concat(),
    ];
    for forged in forged {
        let pair =
            Pair::new(session.clone(), 0, reflector(keyed())).run(|_, reply| reply.extend(&forged));
        assert_eq!(pair.stamp().tlvs_integrity_failed, 4, "{forged:?}");
        let figures = pair.figures.as_ref().unwrap();
        assert_eq!((figures.egress_tos, figures.reflector_timestamps_corrected), (None, 0));
        assert_eq!((figures.probes_received, pair.stamp().direct_reflector_received), (4, 0));
    }
    let padding = [0, tlv::types::EXTRA_PADDING, 0, 4, 1, 2, 3, 4];
    let pair =
        Pair::new(session.clone(), 0, reflector(keyed())).run(|_, reply| reply.extend(padding));
    assert_eq!(pair.stamp().tlvs_integrity_failed, 0);
    // Two Extra Padding TLVs need a signature like any others.
    let key = authenticated(KEY);
    let mut packet = probe(0, 0x4321, &key, 112);
    packet.extend([padding, padding].concat());
    let (reply, _) = answer(&mut reflector(keyed()), sender_address(), &packet).unwrap();
    assert_eq!(reply[112] & tlv::flags::INTEGRITY, tlv::flags::INTEGRITY);
    packet.truncate(120);
    let (reply, _) = answer(&mut reflector(keyed()), sender_address(), &packet).unwrap();
    assert_eq!(reply[112] & tlv::flags::INTEGRITY, 0);
    // A single Extra Padding needs no signature.
    let bare = StampSession {
        authenticated: true,
        secret: Some(Secret::new(KEY)),
        ..StampSession::default()
    };
    let pair = Pair::new(bare, 32, reflector(keyed())).run(|packet, reply| {
        assert_eq!((packet.len(), reply.len()), (144, 144));
        assert_eq!(reply[112..116], [0, 1, 0, 28]);
    });
    assert_eq!(pair.stamp().tlvs_integrity_failed, 0);
    // Without authentication only on request.
    let signed = StampSession { sign_tlvs: true, secret: Some(Secret::new(KEY)), ..everything() };
    let knows = StampPolicy { secrets: vec![Secret::new(KEY)], ..policy() };
    assert_eq!(
        Pair::new(signed, 0, reflector(knows)).run(|_, _| {}).stamp().tlvs_integrity_failed,
        0
    );
}

#[test]
fn every_extension_tells_what_it_is_for() {
    let pair = Pair::new(everything(), 10, reflector(policy())).run(|_, _| {});
    let (figures, stamp) = (pair.figures.clone().unwrap(), pair.stamp());
    assert_eq!(figures.egress_tos, Some(10 << 2 | 1), "as the reflector got it");
    assert_eq!(
        (
            stamp.direct_sender_transmitted,
            stamp.direct_reflector_received,
            stamp.direct_reflector_transmitted
        ),
        (4, 4, 4)
    );
    assert_eq!(
        (stamp.observed_source_address, stamp.observed_destination_address),
        (sender_address().to_string(), "192.0.2.2:862".into())
    );
    assert_eq!((stamp.reflector_sync_source, stamp.reflector_transmit_method), (1, 2));
    assert!(stamp.access_report_acknowledged);
}

#[test]
fn conformance_125_follow_ups_correct_t3() {
    let pair = Pair::new(everything(), 0, reflector(policy())).run(|_, _| {});
    // T3 was 5 us after T2; the reply left 20 us later.
    let processing: Vec<i64> =
        pair.probes.iter().map(|p| p.reflector_processing_ns.unwrap()).collect();
    let rounded: Vec<i64> = processing.iter().map(|ns| (ns + 500) / 1000).collect();
    assert_eq!(rounded, [25, 25, 25, 5], "nobody tells of the last");
    let rtt: Vec<i64> = pair.probes.iter().map(|p| (p.rtt_ns.unwrap() + 500) / 1000).collect();
    assert_eq!(rtt, [75, 75, 75, 95]);
    assert_eq!(pair.figures.unwrap().reflector_timestamps_corrected, 3);
    // A stateless reflector has nothing to report.
    let stateless = reflector(StampPolicy { stateful: false, ..policy() });
    let pair = Pair::new(everything(), 0, stateless).run(|_, _| {});
    assert_eq!(pair.figures.unwrap().reflector_timestamps_corrected, 0);
    assert_eq!(pair.probes.len(), 4, "and nothing is held back for good");
}

#[test]
fn an_access_report_is_repeated_until_it_comes_back() {
    let reports = |packet: &[u8]| {
        tlv::walk(&packet[44..]).filter(|t| t.unwrap().kind == tlv::types::ACCESS_REPORT).count()
    };
    let mut sent = Vec::new();
    Pair::new(everything(), 0, reflector(policy())).run(|packet, _| sent.push(reports(packet)));
    assert_eq!(sent, [1, 0, 0, 0], "acknowledged at once");
    let mut sent = Vec::new();
    Pair::new(everything(), 0, reflector(policy())).run(|packet, reply| {
        sent.push(reports(packet));
        // The TLV is not returned.
        let area = reply[44..].to_vec();
        for tlv in tlv::walk(&area).flatten() {
            if tlv.kind == tlv::types::ACCESS_REPORT {
                reply[44 + tlv.at] = 0x80;
            }
        }
    });
    assert_eq!(sent, [1, 0, 0, 1], "again after three seconds");
}

#[test]
fn an_access_report_is_given_up_at_last() {
    let report = AccessReport {
        access_id: 1,
        return_code: 1,
        retransmission_interval_ns: SECOND / 2,
        retransmissions: 1,
    };
    let session = StampSession { access_report: Some(report), ..StampSession::default() };
    let mut sent = Vec::new();
    Pair::new(session, 0, reflector(policy())).run(|packet, reply| {
        let area = packet[44..].to_vec();
        let report = tlv::walk(&area).flatten().find(|tlv| tlv.kind == tlv::types::ACCESS_REPORT);
        sent.push(report.is_some());
        if let Some(tlv) = report {
            reply[44 + tlv.at] = 0x80;
        }
    });
    assert_eq!(sent, [true, true, false, false], "once, and once more");
}

/// A key that is added or removed while sessions run must not look like loss.
#[test]
fn keys_roll_without_a_break_in_what_is_counted() {
    let session =
        StampSession { authenticated: true, secret: Some(Secret::new(KEY)), ..everything() };
    let with = |secrets: &[&str]| StampPolicy {
        authenticated: true,
        secrets: secrets.iter().map(|secret| Secret::new(*secret)).collect(),
        ..policy()
    };
    let mut pair = Pair::new(session, 0, reflector(with(&[KEY])));
    pair.reflector.set_sessionless(Sessionless::Stamp(with(&[KEY])));
    let mut rolls = [vec![KEY, "new"], vec!["other", "new", KEY], vec![KEY]].into_iter();
    let pair = pair.run_with(|reflector, _, _| {
        if let Some(keys) = rolls.next() {
            reflector.set_sessionless(Sessionless::Stamp(with(&keys)));
        }
    });
    assert_eq!(pair.figures.as_ref().unwrap().probes_received, 4);
    assert_eq!(
        (pair.stamp().direct_reflector_received, pair.stamp().tlvs_integrity_failed),
        (4, 0)
    );
}

#[test]
fn the_key_of_signed_tlvs_can_be_changed() {
    for secret in [KEY, "the next one"] {
        let secret = Some(Secret::new(secret));
        let signed = StampSession { sign_tlvs: true, secret, ..everything() };
        let secrets = vec![Secret::new(KEY), Secret::new("the next one")];
        let pair =
            Pair::new(signed, 0, reflector(StampPolicy { secrets, ..policy() })).run(|_, _| {});
        assert_eq!(
            (pair.stamp().tlvs_integrity_failed, pair.stamp().direct_reflector_received),
            (0, 4)
        );
    }
}

#[test]
fn a_reply_of_another_session_is_none() {
    let pair = Pair::new(StampSession::default(), 0, reflector(policy())).run(|_, reply| {
        reply[14..16].copy_from_slice(&[0x12, 0x34]);
    });
    let figures = pair.figures.unwrap();
    assert_eq!((figures.packets_ignored, figures.probes_received), (4, 0));
}
