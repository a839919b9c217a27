//! Extensions of TWAMP: RFC 5938, RFC 6038, RFC 7750, RFC 8186.

use std::{net::SocketAddr, sync::Arc};

use twamp_agent::{
    time::{ErrorEstimate, Monotonic, TimestampFormat, UnixTime},
    twamp::{
        PacketMeta,
        control_client::{ClientError, ClientOptions, SessionRequest},
        control_server::{ServerAction, ServerError, ServerOptions},
        reflector::{Reflector, ReflectorSession, Sessionless, Verdict},
    },
    wire::{
        codes::{Accept, Command, Modes, Sid},
        format::{PacketFormat, ProbeHeader},
        individual,
    },
};

use super::{
    options::{client_options, server_options, session_keys},
    pair::{End, NOW, Pair, modes, request, sid},
};

const ALL: Modes = Modes(16 | 32 | 64 | 256 | 512);

fn options(security: Modes, wanted: Modes, offered: Modes) -> (ClientOptions, ServerOptions) {
    let client =
        ClientOptions { security, extensions: wanted, key_id: "alice".into(), ..client_options() };
    let server =
        ServerOptions { offered: Modes(0x0f).or(offered), count: 1024, ..server_options() };
    (client, server)
}

fn pair(sessions: usize, wanted: Modes, offered: Modes) -> Pair {
    let (client, server) = options(Modes::UNAUTHENTICATED, wanted, offered);
    Pair::new(sessions, client, server)
}

fn individual_pair(sessions: usize) -> Pair {
    let mode = Modes::INDIVIDUAL_SESSION_CONTROL;
    let mut pair = pair(sessions, mode, mode);
    pair.run();
    assert!(pair.started);
    pair
}

#[test]
fn conformance_009_a_bit_is_set_where_both_ends_want_it() {
    for (wanted, offered) in [(ALL, ALL), (ALL, Modes(0)), (Modes(0), ALL), (Modes(16), Modes(256))]
    {
        let mut pair = pair(1, wanted, offered);
        pair.run();
        assert!(pair.started, "falls back: {wanted} {offered} {:?}", pair.client_error);
        assert_eq!(pair.client.mode(), Modes::UNAUTHENTICATED.or(wanted.and(offered)));
    }
}

fn answers(pair: &mut Pair, octets: &[u8]) -> Vec<u8> {
    pair.server.handle_input(octets, NOW);
    let mut said = Vec::new();
    while let Some(action) = pair.server.poll_action() {
        match action {
            ServerAction::Send(octets) => said.extend(octets),
            ServerAction::Start(_) => pair.server.sessions_started(NOW),
            ServerAction::Stop(sids) => pair.stopped.extend(sids),
            ServerAction::Close(error) => pair.server_error = Some(error),
            ServerAction::Request(_) => pair.server.answer_request(Ok((6000, sid(9))), NOW),
            ServerAction::Refused(..) => {}
            ServerAction::DeriveKeys { .. } => panic!("in mode 1"),
        }
    }
    said
}

#[test]
fn conformance_101_sessions_are_named() {
    let pair = individual_pair(3);
    let sent = pair.octets_of(End::Client);
    let start = individual::message(Command::START_N_SESSIONS, 0, &[sid(1), sid(2), sid(3)]);
    assert_eq!(sent[164 + 3 * 112..], start, "and no Start-Sessions");
    let answer = pair.sent.last().unwrap();
    let ack = individual::message(Command::START_N_ACK, 0, &[sid(1), sid(2), sid(3)]);
    assert_eq!(answer.1, ack);
    // Commands 2 and 3 are refused.
    for number in [2, 3] {
        let mut octets = vec![0; 32];
        octets[0] = number;
        let mut pair = individual_pair(1);
        let said = answers(&mut pair, &octets);
        assert_eq!((said.len(), said[0]), (48, Accept::NOT_SUPPORTED.0));
    }
    // A command without sessions is not acknowledged positively.
    let mut pair = individual_pair(1);
    let said = answers(&mut pair, &individual::message(Command::STOP_N_SESSIONS, 0, &[]));
    assert_eq!(said, individual::message(Command::STOP_N_ACK, Accept::NOT_SUPPORTED.0, &[]));
    // All are stopped together and acknowledged.
    let mut pair = individual_pair(2);
    pair.client.stop(NOW);
    pair.run();
    assert_eq!(pair.stopped, [sid(1), sid(2)]);
    assert_eq!(pair.sent.last().unwrap().1[..2], [10, 0]);
}

#[test]
fn conformance_102_one_ack_for_each_accept_value() {
    let mut pair = individual_pair(2);
    let said = answers(
        &mut pair,
        &individual::message(Command::STOP_N_SESSIONS, 0, &[sid(2), sid(7), sid(1)]),
    );
    let expected = [
        individual::message(Command::STOP_N_ACK, 0, &[sid(2), sid(1)]),
        individual::message(Command::STOP_N_ACK, Accept::NOT_SUPPORTED.0, &[sid(7)]),
    ];
    assert_eq!(said, expected.concat());
    // More sessions than possible: the length is not credible.
    let mut pair = individual_pair(1);
    let many: Vec<Sid> = (1..=3).map(sid).collect();
    answers(&mut pair, &individual::message(Command::STOP_N_SESSIONS, 0, &many));
    let error = Some(ServerError::TooManySessions { received: 3, expected: 1 });
    assert_eq!(pair.server_error, error);
}

#[test]
fn conformance_103_104_one_stops_while_another_runs() {
    let mut pair = individual_pair(2);
    answers(&mut pair, &individual::message(Command::STOP_N_SESSIONS, 0, &[sid(1)]));
    assert_eq!(pair.stopped, [sid(1)]);
    assert!(pair.server.is_running());
    assert_eq!(pair.server.poll_deadline(), None, "SERVWAIT is suspended");
    // Requested, accepted and started while the other session runs.
    let mut request =
        twamp_agent::wire::request::RequestTwSession::new([0, 0, 0, 0].into(), [0, 0, 0, 0].into());
    request.sender_port = 4001.into();
    let said = answers(&mut pair, zerocopy::IntoBytes::as_bytes(&request));
    assert_eq!((said.len(), said[0]), (48, 0));
    let said = answers(&mut pair, &individual::message(Command::START_N_SESSIONS, 0, &[sid(9)]));
    assert_eq!(said, individual::message(Command::START_N_ACK, 0, &[sid(9)]));
    answers(&mut pair, &individual::message(Command::STOP_N_SESSIONS, 0, &[sid(2), sid(9)]));
    assert!(pair.server.poll_deadline().is_some(), "SERVWAIT runs again");
    assert_eq!(pair.server_error, None);
}

#[test]
fn an_ack_for_what_was_not_asked_ends_the_client() {
    for ack in [
        individual::message(Command::START_N_ACK, 0, &[sid(9)]),
        individual::message(Command::START_N_ACK, 0, &[]),
        individual::message(Command::STOP_N_ACK, 0, &[sid(1)]),
        individual::message(Command::START_N_ACK, 5, &[sid(1)]),
    ] {
        let mode = Modes::INDIVIDUAL_SESSION_CONTROL;
        let mut pair = pair(1, mode, mode);
        let wrong = ack.clone();
        pair.tamper = Some(Box::new(move |end, octets| {
            if end == End::Server && octets[0] == 8 && octets.len() == 48 {
                octets.clone_from(&wrong);
            }
        }));
        pair.run();
        assert!(!pair.started);
        assert!(pair.client_error.is_some(), "{ack:?}");
    }
}

fn reflecting(length: u16, data_size: u16, security: Modes, extra: Modes) -> Pair {
    let mode = Modes::REFLECT_OCTETS.or(extra);
    let (client, server) = options(security, mode, mode);
    let session = SessionRequest { reflected_length: length, data_size, ..request() };
    Pair::with_options(vec![session], client, server)
}

#[test]
fn conformance_105_octets_are_repeated_and_begin_the_padding() {
    let mut pair = reflecting(20, 200, Modes::UNAUTHENTICATED, Modes(0));
    pair.tamper = Some(Box::new(|end, octets| {
        if end == End::Server && octets.len() == 48 && octets[2..4] == 5000u16.to_be_bytes() {
            assert_eq!(octets[20..22], [0xca, 0xfe], "copied from the request");
            octets[22..24].copy_from_slice(&[0xbe, 0xef]);
        }
    }));
    pair.run();
    assert!(pair.started, "{:?}", pair.client_error);
    assert_eq!(pair.accepted[0].server_octets, Some([0xbe, 0xef]));
    let client = pair.octets_of(End::Client);
    assert_eq!(client[164 + 88..164 + 92], [0xca, 0xfe, 0, 20]);
    // A server that does not repeat them violates the mode it offered.
    let mut pair = reflecting(20, 200, Modes::UNAUTHENTICATED, Modes(0));
    pair.tamper = Some(Box::new(|end, octets| {
        if end == End::Server && octets.len() == 48 && octets[2..4] == 5000u16.to_be_bytes() {
            octets[20] ^= 1;
        }
    }));
    pair.run();
    assert!(matches!(pair.client_error, Some(ClientError::ReflectedOctets { .. })));
}

#[test]
fn conformance_107_padding_that_cannot_come_back_is_refused() {
    for (length, octets, security, extra, fits) in [
        (20, 14 + 47, 1, 0, true),
        (20, 14 + 46, 1, 0, false),
        (20, 48 + 84, 4, 0, true),
        (20, 48 + 83, 4, 0, false),
        (20, 41 + 21, 1, 64, true),
        (20, 41 + 20, 1, 64, false),
        (0, 14, 1, 0, true),
    ] {
        let mut pair = reflecting(length, octets, Modes(security), Modes(extra));
        pair.run();
        assert_eq!(pair.started, fits, "{length} of {octets} in {security}, {extra}");
        if !fits {
            let refused = ClientError::SessionRejected { index: 0, accept: Accept::NOT_SUPPORTED };
            assert_eq!(pair.client_error, Some(refused));
        }
    }
}

const SENDER: ([u8; 4], u16) = ([192, 0, 2, 1], 4001);
const START: UnixTime = UnixTime(1_700_000_000_123_456_789);

/// Returns the reply to a probe of a given length whose padding counts up.
fn reflected(mode: Modes, octets: usize, tos: u8) -> Option<(PacketFormat, Vec<u8>, Vec<u8>, u8)> {
    let format = || PacketFormat::negotiated(mode, Some(&session_keys()), Sid([1; 16]));
    let sender = SocketAddr::from(SENDER);
    let mut reflector = Reflector::new(862, Sessionless::Dropped, Arc::default());
    let ptp = mode.contains(Modes::PTP_TIMESTAMPS);
    let session = ReflectorSession {
        sid: Sid([1; 16]),
        sender,
        tos: 46 << 2,
        format: format(),
        timestamps: if ptp { TimestampFormat::Ptp } else { TimestampFormat::Ntp },
        refwait_ns: u64::MAX,
        counters: Arc::default(),
    };
    assert!(reflector.add(session, NOW).is_ok());
    reflector.start(Sid([1; 16]), NOW);
    let mut probe: Vec<u8> = (0..octets).map(|octet| octet as u8).collect();
    let header = ProbeHeader {
        sequence: 7,
        timestamp: TimestampFormat::Ntp.encode(START),
        error_estimate: ErrorEstimate(0x8a64),
        ssid: 0,
    };
    if octets >= format().probe_octets() {
        format().write_probe(&header, &mut probe);
    }
    let meta = PacketMeta {
        source: sender,
        destination: SocketAddr::from(([192, 0, 2, 2], 862)),
        received: START.plus_ns(1_000),
        ttl: Some(77),
        tos: Some(tos),
        ..PacketMeta::default()
    };
    let mut reply = vec![0xee; 2048];
    let estimate = ErrorEstimate::new(true, 1000);
    let verdict = reflector.handle(&meta, &probe, estimate, Monotonic(1), &mut reply);
    let Verdict::Reply { octets, tos, finish } = verdict else { return None };
    reply.truncate(octets);
    reflector.finish(sender, finish, &mut reply, START.plus_ns(2_000));
    Some((format(), probe, reply, tos))
}

#[test]
fn conformance_106_padding_comes_back_unchanged() {
    for (security, probe_at, reply_at) in [(1, 14, 41), (2, 48, 112), (4, 48, 112), (8, 14, 41)] {
        let mode = Modes(security).or(Modes::REFLECT_OCTETS);
        let (_, probe, reply, _) = reflected(mode, 300, 0).unwrap();
        assert_eq!(reply.len(), 300);
        let length = 300 - reply_at;
        assert_eq!(reply[reply_at..], probe[probe_at..probe_at + length], "mode {security}");
        // Symmetrical size keeps its place in both packets.
        let mode = mode.or(Modes::SYMMETRICAL_SIZE);
        let (_, probe, reply, _) = reflected(mode, 300, 0).unwrap();
        assert_eq!(reply[reply_at..], probe[reply_at..], "mode {security}");
    }
}

#[test]
fn conformance_108_symmetrical_sizes() {
    for (security, least) in [(1, 41), (2, 112), (4, 112), (8, 41)] {
        let mode = Modes(security).or(Modes::SYMMETRICAL_SIZE);
        for octets in [least, least + 1, 1400] {
            let (_, probe, reply, _) = reflected(mode, octets, 0).unwrap();
            assert_eq!((probe.len(), reply.len()), (octets, octets), "mode {security}");
        }
        assert!(reflected(mode, least - 1, 0).is_none(), "shorter than any of this session");
    }
    // The padding of the header is zero.
    let mode = Modes::UNAUTHENTICATED.or(Modes::SYMMETRICAL_SIZE);
    let (_, probe, _, _) = reflected(mode, 60, 0).unwrap();
    assert!(probe[14..41].iter().all(|octet| *octet == 0));
}

#[test]
fn conformance_109_the_tos_of_the_probe_is_told() {
    for security in [1, 2, 4, 8] {
        let mode = Modes(security).or(Modes::DSCP_ECN_MONITORING);
        let (format, _, reply, tos) = reflected(mode, 200, 0xb9).unwrap();
        let read = format.read_reply(&reply).unwrap();
        assert_eq!(read.sender_tos, Some(0xb9), "mode {security}");
        assert_eq!(tos, 46 << 2, "the reply has the DSCP that was negotiated");
        assert_eq!(reply.len(), 200);
    }
    let mode = Modes::UNAUTHENTICATED.or(Modes::DSCP_ECN_MONITORING);
    let (_, _, reply, _) = reflected(mode, 14, 0xb9).unwrap();
    assert_eq!((reply.len(), &reply[41..44]), (44, &[0xb9, 0, 0][..]));
    // A peer without the extension sends at most 41 octets, which is valid.
    let format = PacketFormat::negotiated(mode, None, Sid::default());
    assert_eq!(format.read_reply(&reply[..41]).unwrap().sender_tos, None);
}

#[test]
fn conformance_110_both_formats_of_time() {
    let mode = modes(&[Modes::UNAUTHENTICATED, Modes::PTP_TIMESTAMPS]);
    let (format, _, reply, _) = reflected(mode, 60, 0).unwrap();
    let read = format.read_reply(&reply).unwrap();
    assert_eq!(read.error_estimate.format(), TimestampFormat::Ptp);
    assert_eq!(TimestampFormat::Ptp.decode(read.timestamp, START), Some(START.plus_ns(2_000)));
    // The copy keeps the received value and format.
    assert_eq!(read.probe.error_estimate.0, 0x8a64);
    assert_eq!(read.probe.timestamp, TimestampFormat::Ntp.encode(START));
    // Without the mode bit, timestamps are NTP.
    let (format, _, reply, _) = reflected(Modes::UNAUTHENTICATED, 60, 0).unwrap();
    let read = format.read_reply(&reply).unwrap();
    assert_eq!(read.error_estimate.format(), TimestampFormat::Ntp);
}

#[test]
fn conformance_112_without_extensions_their_fields_are_zero() {
    let mut pair = pair(1, Modes(0), ALL);
    pair.run();
    let client = pair.octets_of(End::Client);
    assert_eq!(client[164 + 88..164 + 96], [0; 8], "Request-TW-Session");
    let accept = pair.sent.iter().find(|(end, m)| *end == End::Server && m[2..4] == [0x13, 0x88]);
    assert_eq!(accept.unwrap().1[20..32], [0; 12], "Accept-Session");
    let (_, _, reply, _) = reflected(Modes::ENCRYPTED, 112, 0xff).unwrap();
    let format = PacketFormat::negotiated(Modes::ENCRYPTED, Some(&session_keys()), Sid([1; 16]));
    let with = PacketFormat { dscp_ecn: true, ..format };
    assert_eq!(with.read_reply(&reply).unwrap().sender_tos, Some(0));
}
