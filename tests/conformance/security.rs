//! Conformance of the modes with keys.

use twamp_agent::{
    twamp::{
        control_client::{ClientAction, ClientError, ClientOptions, ControlClient, SessionRequest},
        control_server::{ServerError, ServerOptions},
    },
    wire::codes::{Accept, Modes},
};

use super::{
    options::{client_options, server_options},
    pair::{End, NOW, Pair, request},
};

const PROTECTED: [Modes; 3] = [Modes::AUTHENTICATED, Modes::ENCRYPTED, Modes::MIXED];

fn in_mode(security: Modes) -> (ClientOptions, ServerOptions) {
    let client = ClientOptions { security, key_id: "alice".into(), ..client_options() };
    // The shortest key derivation: thousands are needed here.
    let server = ServerOptions { offered: Modes(0x0f), count: 1024, ..server_options() };
    (client, server)
}

fn pair(sessions: usize, security: Modes) -> Pair {
    let (client, server) = in_mode(security);
    Pair::new(sessions, client, server)
}

fn greeting(count: u32) -> Vec<u8> {
    let mut octets = vec![0; 64];
    octets[15] = 0x0f;
    octets[48..52].copy_from_slice(&count.to_be_bytes());
    octets
}

#[test]
fn every_mode_negotiates_and_stops() {
    for security in PROTECTED.into_iter().chain([Modes::UNAUTHENTICATED]) {
        for secrets in [vec![super::pair::SECRET], vec![b"new".as_slice(), super::pair::SECRET]] {
            let mut pair = pair(3, security);
            pair.server_secrets = secrets;
            pair.run();
            assert!(pair.started, "{security}: {:?} {:?}", pair.client_error, pair.server_error);
            assert_eq!((pair.accepted.len(), pair.requested.len()), (3, 3));
            assert_eq!(pair.requested[0].dscp, 46);
            assert_eq!(pair.client.server_start_time().0, 7, "decrypted where it is encrypted");
            pair.client.stop(NOW);
            pair.run();
            assert_eq!(pair.stopped.len(), 3);
            assert!(pair.server_error.is_none());
        }
    }
}

#[test]
fn conformance_005_006_count_has_bounds() {
    let asked = |count: u32| {
        let (options, _) = in_mode(Modes::ENCRYPTED);
        let mut client = ControlClient::new(vec![request()], options, NOW);
        client.handle_input(&greeting(count), NOW);
        client.poll_action().unwrap()
    };
    for count in [0, 32_769, 4_194_304, u32::MAX] {
        let ClientAction::Failed(error) = asked(count) else { panic!("{count}") };
        assert_eq!(error, ClientError::Count { count, maximum: 32_768 });
    }
    // Not a power of two, as sent by real servers.
    for given in [1, 10_000, 32_768] {
        assert!(matches!(asked(given), ClientAction::DeriveKey { count, .. } if count == given));
    }
}

#[test]
fn conformance_014_a_key_id_of_80_octets() {
    let (client, server) = in_mode(Modes::ENCRYPTED);
    let key_id = "k".repeat(80);
    let mut pair = Pair::new(1, ClientOptions { key_id: key_id.clone(), ..client }, server);
    pair.run();
    assert!(pair.started);
    assert_eq!(pair.key_id, key_id.as_bytes());
}

#[test]
fn conformance_016_a_wrong_token_is_refused_in_clear() {
    for security in PROTECTED {
        let mut pair = pair(1, security);
        pair.server_secrets = vec![b"another secret"];
        pair.run();
        let octets = pair.octets_of(End::Server);
        let start = &octets[64..];
        assert_eq!((start.len(), start[15]), (48, 1));
        assert!(start[16..].iter().all(|octet| *octet == 0), "IV and Start-Time");
        assert_eq!(pair.server_error, Some(ServerError::BadKey));
        assert_eq!(pair.client_error, Some(ClientError::KeyRejected(Accept::FAILURE)));
    }
}

#[test]
fn too_many_derivations_are_a_temporary_limitation() {
    let (client, server) = in_mode(Modes::ENCRYPTED);
    let mut pair = Pair::new(1, client, server);
    // The driver has no capacity for this client.
    pair.server_secrets = Vec::new();
    let mut busy = twamp_agent::twamp::control_server::ControlServer::new(server_options(), NOW);
    assert_eq!(busy.authenticate(None, NOW), None, "nobody asked");
    pair.run();
    assert_eq!(pair.server_error, Some(ServerError::BadKey), "no key at all is a wrong one");
}

/// Flips each bit of each command, one at a time.
#[test]
fn conformance_030_031_a_flipped_bit_in_a_command_executes_nothing() {
    // The client's third to fifth messages: Request-TW-Session, Start-Sessions, Stop-Sessions.
    for (message, octets) in [(1, 112), (2, 32), (3, 32)] {
        for bit in (0..octets * 8).step_by(if octets > 32 { 5 } else { 1 }) {
            let mut pair = pair(1, Modes::AUTHENTICATED);
            let mut seen = 0;
            pair.tamper = Some(Box::new(move |end, octets| {
                if end == End::Client {
                    if seen == message {
                        octets[bit / 8] ^= 1 << (bit % 8);
                    }
                    seen += 1;
                }
            }));
            pair.run();
            if message == 3 {
                pair.client.stop(NOW);
                pair.run();
            }
            let executed = match message {
                1 => pair.requested.len(),
                2 => usize::from(pair.started),
                _ => pair.stopped.len(),
            };
            assert_eq!(executed, 0, "message {message}, bit {bit}");
            assert!(pair.server_error.is_some(), "message {message}, bit {bit}");
        }
    }
}

#[test]
fn conformance_030_a_flipped_bit_in_an_answer_ends_the_client() {
    // The server's third and fourth messages: Accept-Session, Start-Ack; and its Start-Time, which
    // the HMAC of the first covers.
    for (message, octets, first) in [(1, 48, 32), (2, 48, 0), (3, 32, 0)] {
        for bit in (first * 8..octets * 8).step_by(3) {
            let mut pair = pair(1, Modes::ENCRYPTED);
            let mut seen = 0;
            pair.tamper = Some(Box::new(move |end, octets| {
                if end == End::Server {
                    if seen == message {
                        octets[bit / 8] ^= 1 << (bit % 8);
                    }
                    seen += 1;
                }
            }));
            pair.run();
            assert!(!pair.started, "message {message}, bit {bit}");
            assert!(matches!(pair.client_error, Some(ClientError::NotGenuine(_))));
        }
    }
}

#[test]
fn conformance_033_the_modes_differ_in_test_packets_alone() {
    let octets = PROTECTED.map(|security| {
        let (client, server) = in_mode(security);
        // Probes with the same padding after headers of another size.
        let data_size = if security == Modes::MIXED { 114 } else { 148 };
        let session = SessionRequest { data_size, ..request() };
        let mut pair = Pair::with_options(vec![session; 2], client, server);
        pair.run();
        pair.client.stop(NOW);
        pair.run();
        assert!(pair.server_error.is_none());
        let client = pair.octets_of(End::Client);
        // The first four octets hold the mode itself.
        hex::encode([&client[4..], &pair.octets_of(End::Server)].concat())
    });
    assert_eq!(octets[0], octets[1]);
    assert_eq!(octets[1], octets[2]);
}

/// Secrets are compared in constant time only.
#[test]
fn conformance_034_comparisons_are_constant_time() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire/crypto");
    let mut compared = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            assert!(!line.contains(" == ") && !line.contains(" != "), "{line}");
            compared += usize::from(line.contains("is_equal(") || line.contains("ct_eq"));
        }
    }
    assert!(compared >= 4);
}

#[test]
fn conformance_025_octet_by_octet_in_a_protected_mode() {
    let mut whole = pair(2, Modes::ENCRYPTED);
    whole.run();
    whole.client.stop(NOW);
    whole.run();
    let octets = whole.octets_of(End::Client);
    for piece in [1, 5, 17, octets.len()] {
        let (_, options) = in_mode(Modes::ENCRYPTED);
        let mut pair = Pair::new(0, client_options(), options);
        for part in octets.chunks(piece) {
            pair.server.handle_input(part, NOW);
            // The server's output is discarded: the client of this pair is not its peer.
            pair.client_error = Some(ClientError::ServiceRefused);
            pair.run();
        }
        assert_eq!((pair.requested.len(), pair.stopped.len()), (2, 2), "pieces of {piece}");
        assert!(pair.server_error.is_none());
    }
}

#[test]
fn conformance_064_the_stop_of_a_client_says_whether_results_are_valid() {
    let mut pair = pair(1, Modes::UNAUTHENTICATED);
    pair.run();
    pair.client.stop(NOW);
    pair.run();
    // Our client ends its tests before it stops the sessions: their results are valid.
    assert_eq!(pair.sent.last().unwrap().1[..2], [3, 0]);
    // A client with another number is stopped nevertheless.
    let mut pair = super::security::pair(1, Modes::UNAUTHENTICATED);
    pair.tamper = Some(Box::new(|end, octets| {
        if end == End::Client && octets[0] == 3 && octets.len() == 32 {
            octets[1] = 1;
        }
    }));
    pair.run();
    pair.client.stop(NOW);
    pair.run();
    assert_eq!((pair.stopped.len(), pair.server_error.clone()), (1, None));
}
