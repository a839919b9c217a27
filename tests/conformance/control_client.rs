//! Conformance of the Control-Client.

use std::net::{IpAddr, Ipv4Addr};

use twamp_agent::{
    model, proto,
    time::Monotonic,
    twamp::control_client::{
        ClientAction, ClientError, ClientOptions, ControlClient, SessionRequest,
    },
    wire::codes::Modes,
};

use super::options::client_options;

const TIMEOUT_NS: u64 = 1_000_000_000;

fn request() -> SessionRequest {
    SessionRequest {
        sender_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        sender_port: 4001,
        receiver_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        receiver_port: 862,
        data_size: 14 + 27,
        reflected_length: 0,
        dscp: 46,
        timeout_ns: 500_000_000,
    }
}

fn client(sessions: usize) -> ControlClient {
    ControlClient::new(vec![request(); sessions], client_options(), Monotonic(0))
}

fn greeting(modes: u32) -> Vec<u8> {
    // All MBZ fields are ones.
    let mut octets = vec![0xff; 64];
    octets[12..16].copy_from_slice(&modes.to_be_bytes());
    octets
}

fn server_start(accept: u8) -> Vec<u8> {
    let mut octets = vec![0xff; 48];
    octets[15] = accept;
    octets
}

fn accept_session(accept: u8, port: u16) -> Vec<u8> {
    let mut octets = vec![0xff; 48];
    octets[0] = accept;
    octets[2..4].copy_from_slice(&port.to_be_bytes());
    octets
}

fn start_ack(accept: u8) -> Vec<u8> {
    let mut octets = vec![0xff; 32];
    octets[0] = accept;
    octets
}

fn feed(client: &mut ControlClient, octets: &[u8]) -> Vec<ClientAction> {
    client.handle_input(octets, Monotonic(0));
    std::iter::from_fn(|| client.poll_action()).collect()
}

fn sent(actions: &[ClientAction]) -> Vec<u8> {
    let octets = actions.iter().filter_map(|action| match action {
        ClientAction::Send(octets) => Some(octets.as_slice()),
        _ => None,
    });
    octets.collect::<Vec<_>>().concat()
}

fn is_started(actions: &[ClientAction]) -> bool {
    matches!(actions.last(), Some(ClientAction::Started))
}

fn failure(actions: &[ClientAction]) -> &ClientError {
    match actions.last() {
        Some(ClientAction::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn running(sessions: usize) -> ControlClient {
    let mut client = client(sessions);
    feed(&mut client, &greeting(1));
    feed(&mut client, &server_start(0));
    for _ in 0..sessions {
        feed(&mut client, &accept_session(0, 5000));
    }
    assert!(is_started(&feed(&mut client, &start_ack(0))));
    client
}

#[test]
fn conformance_001_port_862_by_default() {
    let document = proto::AgentConfig {
        client: Some(proto::ClientConfig {
            control_connections: vec![proto::ControlConnection {
                name: "c".into(),
                target_address: "192.0.2.1".into(),
                test_sessions: vec![proto::TestSession { name: "s".into(), ..Default::default() }],
                ..Default::default()
            }],
        }),
        server: Some(proto::ServerConfig {
            client_list: vec![proto::ClientList {
                name: "all".into(),
                prefixes: vec!["::/0".into()],
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let config = model::parse(&document).unwrap();
    assert_eq!(config.connections["c"].destination_port, 862);
    assert_eq!(config.server.unwrap().listen[0].port, 862);
}

#[test]
fn conformance_007_modes_0_closes_without_an_answer() {
    let actions = feed(&mut client(1), &greeting(0));
    assert!(sent(&actions).is_empty());
    assert_eq!(*failure(&actions), ClientError::ServiceRefused);
}

#[test]
fn conformance_008_009_unknown_modes_are_ignored_and_one_is_chosen() {
    for modes in [1, 0x3ff, 0xffff_ffff] {
        let actions = feed(&mut client(1), &greeting(modes));
        assert_eq!(sent(&actions)[..4], 1u32.to_be_bytes(), "{modes:#x}");
    }
    let actions = feed(&mut client(1), &greeting(0xe));
    assert!(sent(&actions).is_empty());
    assert_eq!(
        *failure(&actions),
        ClientError::NoCommonMode { offered: Modes(0xe), wanted: Modes(1) }
    );
}

#[test]
fn conformance_013_set_up_response_of_164_octets() {
    let octets = sent(&feed(&mut client(1), &greeting(1)));
    assert_eq!(octets.len(), 164);
    assert!(octets[4..].iter().all(|octet| *octet == 0));
}

#[test]
fn conformance_019_020_a_refused_connection_is_closed() {
    for accept in 1..=255 {
        let mut client = client(1);
        feed(&mut client, &greeting(1));
        let actions = feed(&mut client, &server_start(accept));
        assert!(sent(&actions).is_empty());
        let ClientError::ConnectionRejected(received) = failure(&actions) else { panic!() };
        // Values not defined by RFC 4656 mean failure for an unspecified reason.
        assert_eq!(received.0, if accept <= 5 { accept } else { 1 });
    }
}

#[test]
fn conformance_021_032_what_must_be_zero_is_ignored() {
    // `greeting`, `server_start`, `accept_session` and `start_ack` set MBZ fields to ones.
    running(2);
}

#[test]
fn conformance_025_octet_by_octet_and_all_at_once() {
    let all = [greeting(1), server_start(0), accept_session(0, 5000), start_ack(0)].concat();
    for piece in [1, 3, 63, 65, all.len()] {
        let mut client = client(1);
        let actions: Vec<_> =
            all.chunks(piece).flat_map(|octets| feed(&mut client, octets)).collect();
        assert!(is_started(&actions), "pieces of {piece}");
        assert_eq!(sent(&actions).len(), 164 + 112 + 32);
    }
}

#[test]
fn conformance_032_035_040_request_of_112_octets() {
    let mut client = client(1);
    feed(&mut client, &greeting(1));
    let octets = sent(&feed(&mut client, &server_start(0)));
    assert_eq!(octets.len(), 112);
    assert_eq!(octets[..2], [5, 4]);
    assert!(octets[2..12].iter().all(|octet| *octet == 0), "Conf-*, slots, packets");
    assert_eq!(octets[12..16], [0x0f, 0xa1, 0x03, 0x5e], "ports");
    assert!(octets[16..64].iter().all(|octet| *octet == 0), "addresses and SID");
    assert_eq!(octets[64..68], 27u32.to_be_bytes());
    assert_eq!(octets[76..84], (1u64 << 31).to_be_bytes(), "half a second");
    assert_eq!(octets[84..88], [46, 0, 0, 0], "Type-P");
    assert!(octets[88..].iter().all(|octet| *octet == 0), "extensions, MBZ and HMAC");
}

#[test]
fn conformance_044_052_a_counter_offered_port_is_used() {
    let mut client = client(1);
    feed(&mut client, &greeting(1));
    feed(&mut client, &server_start(0));
    let actions = feed(&mut client, &accept_session(0, 20_862));
    let used = actions.iter().any(
        |action| matches!(action, ClientAction::Accepted(s) if (s.index, s.port) == (0, 20_862)),
    );
    assert!(used, "{actions:?}");
}

#[test]
fn refused_sessions_end_the_attempt_with_their_accept_value_where_there_are_no_others() {
    let mut client = client(2);
    feed(&mut client, &greeting(1));
    feed(&mut client, &server_start(0));
    let actions = feed(&mut client, &accept_session(4, 0));
    assert!(matches!(actions[0], ClientAction::Refused(0, accept) if accept.0 == 4));
    let actions = feed(&mut client, &accept_session(5, 0));
    let ClientError::SessionRejected { index: 1, accept } = failure(&actions) else { panic!() };
    assert_eq!(accept.0, 5);
}

#[test]
fn a_refused_session_leaves_those_alone_that_are_accepted() {
    for refused in 0..3 {
        let mut client = client(3);
        feed(&mut client, &[greeting(1), server_start(0)].concat());
        let (mut accepted, mut declined, mut octets) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..3 {
            let accept = if index == refused { 5 } else { 0 };
            let actions = feed(&mut client, &accept_session(accept, 5000));
            octets = sent(&actions);
            for action in actions {
                match action {
                    ClientAction::Accepted(session) => accepted.push(session.index),
                    ClientAction::Refused(index, _) => declined.push(index),
                    ClientAction::Send(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!((accepted.len(), declined), (2, vec![refused]));
        assert!(!accepted.contains(&refused));
        assert_eq!((octets.len(), octets[0]), (32, 2), "Start-Sessions");
        assert!(is_started(&feed(&mut client, &start_ack(0))));
        client.stop(Monotonic(0));
        let stop = sent(&std::iter::from_fn(|| client.poll_action()).collect::<Vec<_>>());
        assert_eq!(stop[4..8], 2u32.to_be_bytes());
    }
}

#[test]
fn two_sessions_with_one_sid_end_the_attempt_where_they_are_named() {
    let individual = Modes::INDIVIDUAL_SESSION_CONTROL;
    let options = ClientOptions { extensions: individual, ..client_options() };
    let mut client = ControlClient::new(vec![request(); 2], options, Monotonic(0));
    let offered = greeting(1 | individual.0);
    feed(&mut client, &[offered, server_start(0), accept_session(0, 5000)].concat());
    let actions = feed(&mut client, &accept_session(0, 5001));
    let ClientError::RepeatedSid { index: 1 } = failure(&actions) else { panic!() };
}

#[test]
fn conformance_054_nothing_is_started_before_start_ack() {
    let mut client = client(1);
    let before = [greeting(1), server_start(0), accept_session(0, 5000)].concat();
    assert!(!is_started(&feed(&mut client, &before)));
    assert!(is_started(&feed(&mut client, &start_ack(0))));
}

#[test]
fn conformance_055_a_refused_start_is_closed() {
    let mut client = client(1);
    feed(&mut client, &[greeting(1), server_start(0), accept_session(0, 5000)].concat());
    let actions = feed(&mut client, &start_ack(3));
    assert!(matches!(failure(&actions), ClientError::StartRejected(accept) if accept.0 == 3));
}

#[test]
fn conformance_058_stop_counts_the_accepted_sessions() {
    let mut client = running(3);
    client.stop(Monotonic(0));
    let stop = sent(&std::iter::from_fn(|| client.poll_action()).collect::<Vec<_>>());
    assert_eq!(stop.len(), 32);
    assert_eq!(stop[..2], [3, 0]);
    assert_eq!(stop[4..8], 3u32.to_be_bytes());
    assert!(stop[8..].iter().all(|octet| *octet == 0));
}

#[test]
fn every_answer_is_waited_for_and_no_longer_than_allowed() {
    let steps = [greeting(1), server_start(0), accept_session(0, 5000), start_ack(0)];
    for (given, awaited) in
        ["Server-Greeting", "Server-Start", "Accept-Session", "Start-Ack"].iter().enumerate()
    {
        let mut client = client(1);
        feed(&mut client, &steps[..given].concat());
        assert_eq!(client.poll_deadline(), Some(Monotonic(TIMEOUT_NS)));
        client.handle_timeout(Monotonic(TIMEOUT_NS - 1));
        assert!(client.poll_action().is_none());
        client.handle_timeout(Monotonic(TIMEOUT_NS));
        let late = client.poll_action();
        let Some(ClientAction::Failed(error)) = late else { panic!("{late:?}") };
        assert_eq!(error, ClientError::ResponseTimeout(awaited));
    }
    assert_eq!(running(1).poll_deadline(), None, "started sessions are waited for by nobody");
}

#[test]
fn what_comes_while_sessions_run_is_a_protocol_error() {
    let mut client = running(1);
    let actions = feed(&mut client, &[3; 32]);
    assert!(matches!(failure(&actions), ClientError::Unexpected(32)));
}

proptest::proptest! {
    /// Arbitrary octets in arbitrary segments cause no panic and no accepted session.
    #[test]
    fn any_octets_fail_an_attempt_at_worst(
        pieces in proptest::collection::vec(
            proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            0..20,
        ),
        before in 0usize..4,
    ) {
        let mut client = client(2);
        let good = [greeting(1), server_start(0), accept_session(0, 5000), accept_session(0, 5001)];
        feed(&mut client, &good[..before].concat());
        for octets in pieces {
            feed(&mut client, &octets);
        }
        client.handle_timeout(Monotonic(u64::MAX));
        client.stop(Monotonic(0));
    }
}
