//! Octets that others computed or recorded: reference vectors, and a session between perfSONAR's
//! twping and twampd.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::OnceLock,
};

use serde_json::Value;
use twamp_agent::{
    time::{ErrorEstimate, Monotonic, NtpTimestamp, UnixTime},
    twamp::{
        control_client::{ClientAction, ControlClient, SessionRequest},
        control_server::{ControlServer, ServerAction},
    },
    wire::{
        codes::Sid,
        control::{StartAck, StartSessions, StopSessions},
        greeting::{ServerGreeting, ServerStart, SetUpResponse},
        request::{AcceptSession, RequestTwSession},
    },
};
use zerocopy::IntoBytes;

use super::options::{client_options, server_options};

pub(crate) fn vector(name: &str) -> &'static Value {
    static FILE: OnceLock<Value> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        serde_json::from_str(include_str!("../vectors/vectors.json")).expect("JSON")
    });
    let all = file["vectors"].as_array().expect("a list");
    all.iter().find(|vector| vector["name"] == name).unwrap_or_else(|| panic!("no vector {name}"))
}

pub(crate) fn octets(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().expect("a string")).expect("hexadecimal")
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    octets(value).try_into().expect("the right length")
}

fn number(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().expect("a string"), 16).expect("hexadecimal")
}

#[test]
fn control_messages() {
    let wire = |name: &str| octets(&vector(name)["out"]["wire"]);
    let greeting = vector("server-greeting/all-four");
    let (challenge, salt) = (array(&greeting["in"]["challenge"]), array(&greeting["in"]["salt"]));
    let made = ServerGreeting::new(15, challenge, salt, 1024);
    assert_eq!(made.as_bytes(), wire("server-greeting/all-four"));
    assert_eq!(
        ServerGreeting::new(0, [0; 16], [0; 16], 0).as_bytes(),
        wire("server-greeting/refuse")
    );
    assert_eq!(SetUpResponse::unauthenticated(1).as_bytes(), wire("setup-response/unauth"));
    let start = number(&vector("server-start/unauth")["in"]["start_time"]);
    assert_eq!(ServerStart::unauthenticated(0, start).as_bytes(), wire("server-start/unauth"));
    assert_eq!(ServerStart::unauthenticated(1, 0).as_bytes(), wire("server-start/refused"));

    let (sender, receiver) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    let mut request = RequestTwSession::new(sender.into(), receiver.into());
    request.sender_port = 20_000.into();
    request.receiver_port = 862.into();
    request.padding_length = 64.into();
    request.start_time = 0xe8fe_6f80_1f9a_dd37.into();
    request.timeout = (2u64 << 32).into();
    request.type_p = (46u32 << 24).into();
    assert_eq!(request.as_bytes(), wire("control-open/request-tw"));
    let sid = [192, 0, 2, 2, 0xe8, 0xfe, 0x6f, 0x80, 0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef];
    assert_eq!(AcceptSession::new(0, 20_862, sid).as_bytes(), wire("control-open/accept"));
    assert_eq!(StartSessions::new().as_bytes(), wire("control-open/start"));
    assert_eq!(StartAck::new(0).as_bytes(), wire("control-open/ack"));
    assert_eq!(StopSessions::new(0, 1).as_bytes(), wire("control-open/stop"));
}

#[test]
fn timestamps() {
    for ns in [
        "0",
        "1",
        "499999999",
        "999999999",
        "1700000000123456789",
        "2085978495999999999",
        "2085978496000000000",
        "2085978496000000001",
    ] {
        let time = UnixTime(ns.parse().unwrap());
        let expected = number(&vector(&format!("ntp/{ns}"))["out"]["ntp"]);
        let made = NtpTimestamp::from_unix(time);
        // The reference rounds to the nearest unit of a quarter of a nanosecond, we down.
        assert!(expected.wrapping_sub(made.0) <= 1, "{ns}: {:x} for {expected:x}", made.0);
        assert_eq!(NtpTimestamp(expected).to_unix(time), time);
    }
}

#[test]
fn error_estimates() {
    for name in ["8001", "0001", "9410", "3fff"] {
        let vector = vector(&format!("error-estimate/{name}"));
        let estimate = ErrorEstimate(number(&vector["out"]["field"]) as u16);
        assert_eq!(estimate.is_synchronised(), vector["in"]["S"] == 1, "{name}");
        // The largest that can be written is 17 000 years; nanoseconds end at 584.
        let seconds = vector["out"]["seconds"].as_f64().unwrap().min(u64::MAX as f64 / 1e9);
        let apart = (estimate.error_ns() as f64 / 1e9 - seconds).abs();
        assert!(apart <= 1e-9 + seconds * 1e-9, "{name}: {apart}");
    }
    for (name, ns) in [
        ("1e-06", 1_000),
        ("5e-05", 50_000),
        ("0.001", 1_000_000),
        ("0.1", 100_000_000),
        ("1", 1_000_000_000),
    ] {
        let vector = vector(&format!("error-estimate-from/{name}"));
        let synchronised = vector["in"]["S"] == 1;
        let made = ErrorEstimate::new(synchronised, ns);
        assert_eq!(u64::from(made.0), number(&vector["out"]["field"]), "{name}");
    }
}

/// Our client against what twampd said, octet by octet and all at once: what it says is what
/// twping said, but for what is random, and it is content.
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
        // Start Time is when twping wanted to begin; ours is 0, "at once".
        let start_time = 164 + 68..164 + 76;
        let mut expected = twping.clone();
        expected[start_time].fill(0);
        assert_eq!(ours, expected);
    }
}

/// Our server against what twping said.
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
