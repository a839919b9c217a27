//! Vectors of STAMP packets, made by our sender and our reflector.

use std::{net::SocketAddr, sync::Arc};

use serde_json::Value;
use twamp_agent::{
    model::Secret,
    time::{ErrorEstimate, Monotonic, NtpTimestamp, TimestampFormat, UnixTime},
    twamp::{
        PacketMeta,
        reflector::{Reflector, Sessionless, StampPolicy, StampRule, Verdict},
    },
    wire::{
        crypto::StampKey,
        format::{PacketFormat, Protection},
        tlv,
    },
};

use super::{
    octets,
    packets::{probe_header, reply_header},
    vector,
};

fn format(input: &Value) -> PacketFormat {
    let key = input.get("hmac_key").map(|key| Arc::new(StampKey::new(&octets(key))));
    let protection = key.map_or(Protection::StampOpen, Protection::StampAuthenticated);
    PacketFormat { protection, ..PacketFormat::default() }
}

pub(super) fn check(name: &str, input: &Value, output: &Value) {
    let expected = octets(&output["packet"]);
    match name {
        "stamp/sender/unauth" | "stamp/sender/auth" => {
            let mut packet = vec![0xee; expected.len()];
            format(input).write_probe(&probe_header(input), &mut packet);
            assert_eq!(hex::encode(&packet), hex::encode(&expected), "{name}");
            assert_eq!(format(input).read_probe(&expected), Ok(probe_header(input)));
        }
        "stamp/reflector/unauth" | "stamp/reflector/auth" => {
            let mut packet = vec![0; expected.len()];
            let (format, header) = (format(input), reply_header(input));
            format.write_reply(&header, &mut packet);
            format.finish_reply(header.timestamp, &mut packet);
            assert_eq!(hex::encode(&packet), hex::encode(&expected), "{name}");
            assert_eq!(format.read_reply(&expected), Ok(header));
        }
        "stamp/sender/auth+tlvs" => {
            let key = StampKey::new(&octets(&input["hmac_key"]));
            let tlvs: Vec<u8> = input["tlvs"].as_array().unwrap().iter().flat_map(octets).collect();
            assert!(tlv::walk(&expected[112..]).all(|tlv| tlv.unwrap().has_right_length()));
            let hmac = octets(&output["hmac_tlv"]);
            assert!(key.verify(&expected[..4], &tlvs, &hmac[4..]), "{name}");
        }
        "stamp/reflector/auth+tlvs" => reflected(input, &expected),
        _ => panic!("nobody checks {name}"),
    }
}

/// Our reflector must return the whole reply, including TLVs and HMAC.
fn reflected(input: &Value, expected: &[u8]) {
    let header = reply_header(&vector("stamp/reflector/auth")["in"]);
    let probe = octets(&vector("stamp/sender/auth+tlvs")["out"]["packet"]);
    let policy = StampPolicy {
        sessions: vec![StampRule { prefix: "0.0.0.0/0".parse().unwrap(), port: None, ssid: None }],
        stateful: true,
        authenticated: true,
        secrets: vec![Secret::new(octets(&input["hmac_key"]))],
        allow_class_of_service: true,
        timestamps: TimestampFormat::Ntp,
        refwait_ns: u64::MAX,
    };
    let mut reflector = Reflector::new(862, Sessionless::Stamp(policy), Arc::default());
    let near = UnixTime(1_700_000_000_000_000_000);
    let meta = PacketMeta {
        source: SocketAddr::from(([192, 0, 2, 1], 20_000)),
        destination: SocketAddr::from(([192, 0, 2, 2], 862)),
        received: NtpTimestamp(header.receive_timestamp).to_unix(near),
        ttl: Some(header.sender_ttl),
        tos: Some(10 << 2 | 2),
        ..PacketMeta::default()
    };
    let estimate: ErrorEstimate = header.error_estimate;
    let mut reply = vec![0; 1024];
    // The vector holds the sixth reply of its session.
    for _ in 0..6 {
        let verdict = reflector.handle(&meta, &probe, estimate, Monotonic(0), &mut reply);
        let Verdict::Reply { octets, tos, finish } = verdict else { panic!("{verdict:?}") };
        assert_eq!((octets, tos), (expected.len(), 46 << 2));
        let t3 = NtpTimestamp(header.timestamp).to_unix(near);
        reflector.finish(meta.source, finish, &mut reply[..octets], t3);
    }
    // The counters of the vector come from another history: they are inserted and signed again.
    let mut made = reply[..expected.len()].to_vec();
    made[128..136].copy_from_slice(&expected[128..136]);
    let key = StampKey::new(&octets(&input["hmac_key"]));
    let hmac = key.sign(&made[..4], &made[112..136]);
    made[140..156].copy_from_slice(&hmac);
    assert_eq!(hex::encode(made), hex::encode(expected));
}
