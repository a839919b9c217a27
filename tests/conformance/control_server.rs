//! Conformance of the Server.

use std::{collections::HashSet, net::IpAddr};

use twamp_agent::{
    time::Monotonic,
    twamp::control_server::{ControlServer, RequestedSession, ServerAction, ServerError},
    wire::codes::{Accept, Sid},
};

use super::options::server_options;

const SERVWAIT_NS: u64 = 900_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;

fn server() -> ControlServer {
    ControlServer::new(server_options(), Monotonic(0))
}

fn actions(server: &mut ControlServer) -> Vec<ServerAction> {
    std::iter::from_fn(|| server.poll_action()).collect()
}

fn feed(server: &mut ControlServer, octets: &[u8]) -> Vec<ServerAction> {
    server.handle_input(octets, Monotonic(0));
    actions(server)
}

fn set_up(mode: u32) -> Vec<u8> {
    // KeyID, Token and IV are ones: this mode ignores them.
    let mut octets = vec![0xff; 164];
    octets[..4].copy_from_slice(&mode.to_be_bytes());
    octets
}

fn request() -> Vec<u8> {
    let mut octets = vec![0; 112];
    octets[..2].copy_from_slice(&[5, 4]);
    octets[12..16].copy_from_slice(&[0x0f, 0xa1, 0x03, 0x5e]);
    octets[64..68].copy_from_slice(&27u32.to_be_bytes());
    octets[76..84].copy_from_slice(&(2u64 << 32).to_be_bytes());
    octets[84] = 46;
    octets[96..].fill(0xff);
    octets
}

fn command(number: u8) -> Vec<u8> {
    let mut octets = vec![0; 32];
    octets[0] = number;
    octets
}

fn stop(sessions: u32) -> Vec<u8> {
    let mut octets = command(3);
    octets[4..8].copy_from_slice(&sessions.to_be_bytes());
    octets
}

fn sent(actions: &[ServerAction]) -> Vec<u8> {
    let octets = actions.iter().filter_map(|action| match action {
        ServerAction::Send(octets) => Some(octets.as_slice()),
        _ => None,
    });
    octets.collect::<Vec<_>>().concat()
}

fn closed(actions: &[ServerAction]) -> Option<&ServerError> {
    actions.iter().find_map(|action| match action {
        ServerAction::Close(error) => Some(error),
        _ => None,
    })
}

fn ready() -> ControlServer {
    let mut server = server();
    actions(&mut server);
    let answer = sent(&feed(&mut server, &set_up(1)));
    assert_eq!((answer.len(), answer[15]), (48, 0));
    server
}

fn sid(number: u8) -> Sid {
    Sid([number; 16])
}

fn accept(server: &mut ControlServer) -> Vec<u8> {
    accept_as(server, sid(9))
}

fn accept_as(server: &mut ControlServer, sid: Sid) -> Vec<u8> {
    let asked = feed(server, &request());
    assert!(matches!(asked[..], [ServerAction::Request(_)]), "{asked:?}");
    server.answer_request(Ok((5000, sid)), Monotonic(0));
    sent(&actions(server))
}

fn running(sessions: usize) -> ControlServer {
    let mut server = ready();
    for number in 1..=sessions {
        assert_eq!(accept_as(&mut server, sid(number as u8))[0], 0);
    }
    assert!(matches!(feed(&mut server, &command(2))[..], [ServerAction::Start(_)]));
    server.sessions_started(Monotonic(0));
    let ack = sent(&actions(&mut server));
    assert_eq!(ack, vec![0; 32]);
    server
}

fn refused(octets: &[u8]) {
    let mut server = ready();
    let answer = feed(&mut server, octets);
    let octets = sent(&answer);
    assert_eq!((octets.len(), octets[0]), (48, Accept::NOT_SUPPORTED.0));
    assert!(octets[1..].iter().all(|octet| *octet == 0), "port and SID");
    assert_eq!(closed(&answer), None);
    // A valid request afterwards succeeds.
    assert_eq!(accept(&mut server)[0], 0);
}

#[test]
fn conformance_002_greeting_of_64_octets_comes_first() {
    let mut server = server();
    let greeting = sent(&actions(&mut server));
    assert_eq!(greeting.len(), 64);
    assert!(greeting[..12].iter().chain(&greeting[52..]).all(|octet| *octet == 0));
    assert_eq!(greeting[12..16], 1u32.to_be_bytes());
    assert_eq!((&greeting[16..32], &greeting[32..48]), (&[1; 16][..], &[2; 16][..]));
}

#[test]
fn conformance_004_count_is_a_power_of_two_from_1024_on() {
    let greeting = sent(&actions(&mut server()));
    let count = u32::from_be_bytes(greeting[48..52].try_into().unwrap());
    assert!(count.is_power_of_two() && count >= 1024, "{count}");
}

#[test]
fn conformance_010_011_only_an_offered_mode_and_only_one() {
    for mode in [2, 3, 4, 5, 6, 8, 12, 15, 0x101, 0xffff_ffff] {
        let mut server = server();
        actions(&mut server);
        let answer = feed(&mut server, &set_up(mode));
        assert!(closed(&answer).is_some(), "{mode}");
        let start = sent(&answer);
        assert!(start.is_empty() || start[15] != 0 && start[32..40] == [0; 8], "{mode}");
    }
}

#[test]
fn conformance_012_no_mode_closes() {
    for mode in [0, 0x10, 0xff00] {
        let mut server = server();
        actions(&mut server);
        assert_eq!(closed(&feed(&mut server, &set_up(mode))), Some(&ServerError::ClientGaveUp));
    }
}

#[test]
fn conformance_013_key_fields_are_ignored() {
    ready();
}

#[test]
fn conformance_018_start_time_is_that_of_the_server() {
    let mut server = server();
    actions(&mut server);
    assert_eq!(sent(&feed(&mut server, &set_up(1)))[32..40], 7u64.to_be_bytes());
}

#[test]
fn conformance_023_066_servwait() {
    let end = |server: &mut ControlServer, at: u64| {
        server.handle_timeout(Monotonic(at));
        closed(&actions(server)).cloned()
    };
    let mut idle = ready();
    assert_eq!(end(&mut idle, SERVWAIT_NS - 1), None);
    assert_eq!(end(&mut idle, SERVWAIT_NS), Some(ServerError::Inactive));
    // Suspended while sessions run.
    let mut busy = running(2);
    assert_eq!(busy.poll_deadline(), None);
    assert_eq!(end(&mut busy, 100 * SERVWAIT_NS), None);
    // In force again after Stop-Sessions.
    let mut stopped = running(1);
    feed(&mut stopped, &stop(1));
    assert_eq!(end(&mut stopped, SERVWAIT_NS), Some(ServerError::Inactive));
    // In force again once REFWAIT has ended all sessions.
    let mut silent = running(2);
    silent.session_expired(sid(1), Monotonic(SECOND_NS));
    assert_eq!(silent.poll_deadline(), None);
    silent.session_expired(sid(2), Monotonic(2 * SECOND_NS));
    assert_eq!(silent.poll_deadline(), Some(Monotonic(2 * SECOND_NS + SERVWAIT_NS)));
}

#[test]
fn conformance_024_half_a_message_ends_in_bounded_time() {
    let mut server = ready();
    feed(&mut server, &request()[..111]);
    let deadline = server.poll_deadline().unwrap();
    assert!(deadline.0 < 120 * SECOND_NS, "{deadline:?}");
    // Slow input does not extend the limit.
    server.handle_input(&[], Monotonic(SECOND_NS));
    assert_eq!(server.poll_deadline(), Some(deadline));
    server.handle_timeout(deadline);
    assert_eq!(closed(&actions(&mut server)), Some(&ServerError::Incomplete));
}

#[test]
fn conformance_025_octet_by_octet_and_all_at_once() {
    let all = [set_up(1), request(), request(), command(2), stop(2)].concat();
    for piece in [1, 7, 163, 165, all.len()] {
        let mut server = server();
        let (mut octets, mut stopped) = (0, false);
        for part in all.chunks(piece) {
            server.handle_input(part, Monotonic(0));
            while let Some(action) = server.poll_action() {
                match action {
                    ServerAction::Send(message) => octets += message.len(),
                    ServerAction::Request(_) => {
                        server.answer_request(Ok((5000, Sid([9; 16]))), Monotonic(0));
                    }
                    ServerAction::Start(_) => server.sessions_started(Monotonic(0)),
                    ServerAction::Stop(_) => stopped = true,
                    other => panic!("pieces of {piece}: {other:?}"),
                }
            }
        }
        assert_eq!((octets, stopped), (64 + 48 + 2 * 48 + 32, true), "pieces of {piece}");
    }
}

#[test]
fn conformance_032_hmac_fields_are_ignored() {
    // `request` sets MBZ fields to ones.
    assert_eq!(accept(&mut ready())[0], 0);
}

#[test]
fn conformance_036_042_045_conf_sender_and_conf_receiver() {
    for place in [2, 3] {
        let mut octets = request();
        octets[place] = 1;
        refused(&octets);
    }
}

#[test]
fn conformance_037_slots_packets_and_ip_version() {
    for (place, value) in [(7, 1), (11, 1), (1, 0), (1, 5), (1, 7)] {
        let mut octets = request();
        octets[place] = value;
        refused(&octets);
    }
}

#[test]
fn conformance_038_unknown_and_forbidden_commands() {
    for number in [0, 1, 4, 6, 7, 9, 12, 255] {
        let mut server = ready();
        let answer = feed(&mut server, &command(number));
        let octets = sent(&answer);
        assert_eq!((octets.len(), octets[0]), (48, Accept::NOT_SUPPORTED.0), "command {number}");
        assert_eq!(closed(&answer), Some(&ServerError::Command(number)));
    }
}

#[test]
fn conformance_039_040_addresses() {
    let asked = |octets: &[u8]| -> RequestedSession {
        match feed(&mut ready(), octets).remove(0) {
            ServerAction::Request(request) => request,
            other => panic!("{other:?}"),
        }
    };
    let zero = asked(&request());
    assert_eq!((zero.sender_address, zero.receiver_address), (None, None));
    let mut octets = request();
    octets[16..32].fill(0xee);
    octets[16..20].copy_from_slice(&[192, 0, 2, 1]);
    let v4 = asked(&octets);
    assert_eq!(v4.sender_address, Some(IpAddr::from([192, 0, 2, 1])), "the rest is ignored");
    octets[1] = 6;
    assert_eq!(asked(&octets).sender_address.unwrap().to_string().split(':').next(), Some("c000"));
}

#[test]
fn conformance_041_every_request_gets_one_answer() {
    let mut server = ready();
    let asked = feed(&mut server, &[request(), request(), request()].concat());
    assert_eq!(asked.len(), 1, "one after the other");
    let mut answers = 0;
    for answer in
        [Ok((5000, Sid([9; 16]))), Err(Accept::TEMPORARY_RESOURCE_LIMIT), Ok((5001, Sid([8; 16])))]
    {
        server.answer_request(answer, Monotonic(0));
        answers += sent(&actions(&mut server)).len() / 48;
    }
    assert_eq!(answers, 3);
}

#[test]
fn conformance_047_type_p_is_the_dscp_of_the_replies() {
    let [ServerAction::Request(asked)] = &feed(&mut ready(), &request())[..] else { panic!() };
    assert_eq!(asked.dscp, 46);
}

#[test]
fn conformance_048_type_p_of_another_form() {
    for (place, value) in [(84, 0x40), (84, 0x80), (85, 1), (87, 1)] {
        let mut octets = request();
        octets[place] = value;
        refused(&octets);
    }
}

#[test]
fn conformance_053_start_ack_to_every_start() {
    // Valid even without a session.
    running(0);
    running(3);
}

#[test]
fn conformance_057_only_stop_while_running() {
    for octets in [request(), command(2), command(1), command(200)] {
        let mut server = running(1);
        assert!(closed(&feed(&mut server, &octets)).is_some(), "command {}", octets[0]);
    }
    assert!(closed(&feed(&mut running(1), &stop(1))).is_none());
}

#[test]
fn conformance_059_a_wrong_number_of_sessions_closes() {
    for (sessions, stopped) in [(1, 0), (1, 2), (3, 1), (0, 1)] {
        let mut server = running(sessions);
        let answer = feed(&mut server, &stop(stopped));
        assert!(matches!(closed(&answer), Some(ServerError::WrongSessionCount { .. })));
        // Packets in flight are still answered.
        let [ServerAction::Stop(sids), ServerAction::Close(_)] = &answer[..] else { panic!() };
        assert_eq!(sids.len(), sessions);
    }
    // Sessions ended by REFWAIT still count.
    let mut server = running(2);
    server.session_expired(sid(1), Monotonic(0));
    assert!(matches!(feed(&mut server, &stop(2))[..], [ServerAction::Stop(_)]));
}

/// As sent by twamp-rs: Stop-Sessions of 20 octets, then silence or the end of the stream.
#[test]
fn a_stop_that_is_too_short_stops() {
    type Then = fn(&mut ControlServer);
    let ends: [Then; 2] =
        [|server| server.handle_end(), |server| server.handle_timeout(Monotonic(30_000_000_000))];
    for end in ends {
        let mut server = running(2);
        assert!(feed(&mut server, &stop(2)[..20]).is_empty());
        end(&mut server);
        let actions = actions(&mut server);
        let [ServerAction::Stop(sids), ServerAction::Close(error)] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!((sids.len(), error), (2, &ServerError::BrokenStop));
        // Another incomplete message stops nothing.
        let mut server = running(2);
        feed(&mut server, &stop(2)[..15]);
        end(&mut server);
        assert!(!matches!(feed(&mut server, &[])[..], [ServerAction::Stop(_), ..]));
    }
}

#[test]
fn conformance_060_the_server_sends_no_stop() {
    let answer = feed(&mut running(1), &stop(1));
    assert!(matches!(answer[..], [ServerAction::Stop(_)]), "and nothing is sent");
}

#[test]
fn conformance_063_a_second_round_on_the_same_connection() {
    let mut server = running(2);
    assert!(matches!(feed(&mut server, &stop(2))[..], [ServerAction::Stop(_)]));
    assert_eq!(accept(&mut server)[0], 0);
    assert!(matches!(feed(&mut server, &command(2))[..], [ServerAction::Start(_)]));
    server.sessions_started(Monotonic(0));
    actions(&mut server);
    assert!(matches!(feed(&mut server, &stop(1))[..], [ServerAction::Stop(_)]));
}

#[test]
fn nothing_that_a_peer_sends_is_a_panic() {
    // Every command octet in every state, followed by garbage.
    let mut seen = HashSet::new();
    for first in 0..=255u8 {
        for mut server in [server(), ready(), running(1)] {
            let mut octets = vec![first; 700];
            octets[1..300].fill(0xa5);
            server.handle_input(&octets, Monotonic(0));
            for action in actions(&mut server) {
                if let ServerAction::Close(error) = action {
                    seen.insert(std::mem::discriminant(&error));
                }
            }
            server.handle_timeout(Monotonic(u64::MAX));
        }
    }
    assert!(seen.len() >= 2);
}

proptest::proptest! {
    /// Arbitrary octets in arbitrary segments at arbitrary times cause no panic and at most one
    /// end.
    #[test]
    fn any_octets_end_a_connection_at_worst(
        pieces in proptest::collection::vec(
            (proptest::collection::vec(proptest::num::u8::ANY, 0..400), 0u64..100),
            0..20,
        ),
        start in 0usize..3,
    ) {
        let mut server = match start {
            0 => server(),
            1 => ready(),
            _ => running(2),
        };
        let (mut now, mut ends) = (Monotonic(0), 0);
        for (octets, seconds) in pieces {
            now = now.plus_ns(seconds * SECOND_NS);
            server.handle_timeout(now);
            server.handle_input(&octets, now);
            while let Some(action) = server.poll_action() {
                match action {
                    ServerAction::Request(_) => {
                        server.answer_request(Err(Accept::FAILURE), now);
                    }
                    ServerAction::Start(_) => server.sessions_started(now),
                    ServerAction::Close(_) => ends += 1,
                    ServerAction::DeriveKeys { .. }
                    | ServerAction::Send(_)
                    | ServerAction::Refused(..) | ServerAction::Stop(_) => {}
                }
            }
        }
        proptest::prop_assert!(ends <= 1);
    }
}
