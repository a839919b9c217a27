//! Recorded sessions between perfSONAR's twping and twampd in each mode: decrypted, verified,
//! recreated octet by octet, and replayed with one of our ends in the place of theirs.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use twamp_agent::{
    time::Monotonic,
    twamp::{
        control_client::{ClientAction, ControlClient, SessionRequest},
        control_server::{ControlServer, ServerAction},
    },
    wire::{
        Layout,
        codes::{Modes, Sid},
        crypto::{Opener, Sealer, SessionKeys, TokenKey},
        format::PacketFormat,
        greeting::{ServerGreeting, ServerStart, SetUpResponse},
    },
};
use zerocopy::IntoBytes;

use super::{array, integer, number, octets, session_keys, vector};
use crate::options::{client_options, server_options};

pub(super) fn check(name: &str, input: &Value, output: &Value) {
    let (client, server) = (octets(&input["c2s_stream"]), octets(&input["s2c_stream"]));
    let greeting = ServerGreeting::read(&server).unwrap();
    let response = SetUpResponse::read(&client).unwrap();
    let mode = Modes(integer(&output["mode"]) as u32);
    assert_eq!(response.mode.get(), mode.0, "{name}");
    assert_eq!(greeting.as_bytes(), &server[..64]);
    let start = ServerStart::read(&server[64..]).unwrap();
    let keys = mode.is_protected().then(|| {
        let secret = octets(&input["passphrase"]);
        let key = TokenKey::derive(&secret, &greeting.salt, greeting.count.get());
        let keys = key.open(&response.token, &greeting.challenge).expect("the right secret");
        assert!(keys == session_keys(output), "{name}");
        assert_eq!(key.seal(&greeting.challenge, &keys), response.token, "{name}");
        keys
    });
    if let Some(keys) = &keys {
        let first = Some(&server[96..112]);
        stream(name, keys, response.client_iv, None, &client[164..]);
        stream(name, keys, start.server_iv, first, &server[112..]);
    }
    test_packets(name, mode, keys.as_ref(), output);
}

/// Opens every message of one direction and seals it again.
fn stream(name: &str, keys: &SessionKeys, iv: [u8; 16], part: Option<&[u8]>, octets: &[u8]) {
    let (mut opener, mut sealer) = (Opener::new(keys, iv), Sealer::new(keys, iv));
    if let Some(part) = part {
        let mut block = part.to_vec();
        opener.decrypt(&mut block);
        opener.add_part(&block);
        sealer.seal_part(&mut block);
        assert_eq!(block, part, "{name}");
    }
    let from_server = part.is_some();
    let mut plain = octets.to_vec();
    opener.decrypt(&mut plain);
    let (mut at, mut answers) = (0, 0);
    while at < plain.len() {
        // The server sends Accept-Session for the one request, then Start-Ack.
        let length = match (from_server, plain[at]) {
            (true, _) => {
                if answers == 0 {
                    48
                } else {
                    32
                }
            }
            (false, 5) => 112,
            (false, _) => 32,
        };
        answers += 1;
        let message = &plain[at..at + length];
        assert_eq!(opener.check(message), Ok(()), "{name} at {at}");
        let mut again = message.to_vec();
        sealer.seal(&mut again);
        assert_eq!(again, octets[at..at + length], "{name} at {at}");
        at += length;
    }
    assert!(answers >= 2, "{name}");
}

fn test_packets(name: &str, mode: Modes, keys: Option<&SessionKeys>, output: &Value) {
    let sid = output.get("sid").map(array).unwrap_or_default();
    let format = PacketFormat::negotiated(mode, keys, Sid(sid));
    let packets = output["first_test_packets"].as_array().unwrap();
    for (packet, decoded) in packets.iter().zip(output["decoded"].as_array().unwrap()) {
        let payload = octets(&packet["payload"]);
        let mut again = payload.clone();
        if decoded.get("rts").is_none() {
            let header = format.read_probe(&payload).unwrap();
            assert_eq!(u64::from(header.sequence), integer(&decoded["seq"]), "{name}");
            assert_eq!(header.timestamp, number(&decoded["ts"]), "{name}");
            format.write_probe(&header, &mut again);
        } else {
            let header = format.read_reply(&payload).unwrap();
            assert_eq!(u64::from(header.probe.sequence), integer(&decoded["sseq"]), "{name}");
            assert_eq!(header.receive_timestamp, number(&decoded["rts"]), "{name}");
            assert_eq!(u64::from(header.sender_ttl), integer(&decoded["ttl"]), "{name}");
            format.write_reply(&header, &mut again);
            format.finish_reply(header.timestamp, &mut again);
        }
        assert_eq!(again, payload, "{name}");
    }
}

/// Our client with recorded input of twampd, octet by octet and all at once. Except for random
/// fields it must send the same as twping, and succeed.
#[test]
fn a_recorded_server_serves_our_client() {
    let capture = vector("captured-perfsonar/twping_O_pad64");
    let (theirs, twping) =
        (octets(&capture["in"]["s2c_stream"]), octets(&capture["in"]["c2s_stream"]));
    for piece in [1, 7, theirs.len()] {
        let request = SessionRequest {
            sender_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            sender_port: 19_589,
            receiver_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            receiver_port: 19_589,
            data_size: 14 + 64,
            reflected_length: 0,
            dscp: 0,
            timeout_ns: 1_000_000_000,
        };
        let mut client = ControlClient::new(vec![request], client_options(), Monotonic(0));
        let (mut ours, mut accepted, mut started) = (Vec::new(), None, false);
        for octets in theirs.chunks(piece) {
            client.handle_input(octets, Monotonic(0));
            while let Some(action) = client.poll_action() {
                match action {
                    ClientAction::Send(octets) => ours.extend(octets),
                    ClientAction::Accepted(session) => accepted = Some(session.port),
                    ClientAction::Started => started = true,
                    other => panic!("{other:?}"),
                }
            }
        }
        client.stop(Monotonic(0));
        while let Some(ClientAction::Send(octets)) = client.poll_action() {
            ours.extend(octets);
        }
        assert!(started);
        assert_eq!(accepted, Some(19_355));
        // Start Time is that of twping; ours is 0, "at once".
        let start_time = 164 + 68..164 + 76;
        let mut expected = twping.clone();
        expected[start_time].fill(0);
        assert_eq!(ours, expected);
    }
}

/// Our server with recorded input of twping.
#[test]
fn a_recorded_client_is_served() {
    let capture = vector("captured-perfsonar/twping_O_pad64");
    let (twping, theirs) =
        (octets(&capture["in"]["c2s_stream"]), octets(&capture["in"]["s2c_stream"]));
    for piece in [1, 5, twping.len()] {
        let now = Monotonic(0);
        let mut server = ControlServer::new(server_options(), now);
        let mut answers = Vec::new();
        let mut asked = 0;
        let mut stopped = false;
        for octets in twping.chunks(piece) {
            server.handle_input(octets, now);
            while let Some(action) = server.poll_action() {
                match action {
                    ServerAction::Send(octets) => answers.extend(octets),
                    ServerAction::Request(request) => {
                        assert_eq!((request.sender_port, request.padding_length), (19_589, 64));
                        assert_eq!(request.timeout_ns, 1_000_000_000);
                        asked += 1;
                        server.answer_request(Ok((19_355, Sid([3; 16]))), now);
                    }
                    ServerAction::Start(_) => server.sessions_started(now),
                    ServerAction::Stop(_) => stopped = true,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!((asked, stopped, answers.len()), (1, true, theirs.len()));
    }
}
