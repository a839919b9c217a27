//! Vectors of TWAMP test packets.

use serde_json::Value;
use twamp_agent::{
    time::{ErrorEstimate, PtpTimestamp, UnixTime},
    wire::format::{PacketFormat, ProbeHeader, Protection, ReplyHeader, Unreadable},
};

use super::{integer, number, octets, test_keys};

pub(super) fn format(name: &str, input: &Value) -> PacketFormat {
    let protection = match name {
        _ if name.contains("/auth") => Protection::Authenticated(test_keys(input).into()),
        _ if name.contains("/enc") => Protection::Encrypted(test_keys(input).into()),
        _ => Protection::Open,
    };
    let (symmetrical, dscp_ecn) = (name.ends_with("symmetrical"), name.ends_with("dscp-ecn"));
    PacketFormat { protection, symmetrical, dscp_ecn }
}

pub(super) fn probe_header(input: &Value) -> ProbeHeader {
    ProbeHeader {
        sequence: integer(&input["seq"]) as u32,
        timestamp: number(&input["ts"]),
        error_estimate: ErrorEstimate(number(&input["ee"]) as u16),
        ssid: input["ssid"].as_u64().unwrap_or(0) as u16,
    }
}

pub(super) fn reply_header(input: &Value) -> ReplyHeader {
    let tos = |dscp: u64| (dscp << 2 | integer(&input["ecn"])) as u8;
    ReplyHeader {
        sequence: integer(&input["seq"]) as u32,
        timestamp: number(&input["ts"]),
        error_estimate: ErrorEstimate(number(&input["ee"]) as u16),
        receive_timestamp: number(&input["rts"]),
        probe: ProbeHeader {
            sequence: integer(&input["sseq"]) as u32,
            timestamp: number(&input["sts"]),
            error_estimate: ErrorEstimate(number(&input["see"]) as u16),
            ssid: input["ssid"].as_u64().unwrap_or(0) as u16,
        },
        sender_ttl: integer(&input["sttl"]) as u8,
        sender_tos: input["dscp"].as_u64().map(tos),
    }
}

pub(super) fn check(name: &str, input: &Value, output: &Value) {
    let (format, expected) = (format(name, input), octets(&output["packet"]));
    let part = |field: &str| input.get(field).map(octets).unwrap_or_default();
    let mut packet = vec![0xee; expected.len()];
    if name.starts_with("test/sender") {
        let padding = [part("padding"), part("reflect"), part("additional")].concat();
        packet[format.probe_octets()..].copy_from_slice(&padding);
        let header = probe_header(input);
        format.write_probe(&header, &mut packet);
        assert_eq!(hex::encode(&packet), hex::encode(&expected), "{name}");
        assert_eq!(format.read_probe(&expected), Ok(header), "{name}");
        if let Some(ns) = input["unix_ns"].as_u64() {
            assert_eq!(PtpTimestamp::from_unix(UnixTime(ns)).0, header.timestamp, "{name}");
        }
        return;
    }
    let padding = [part("sender_padding"), part("reflect"), part("additional")].concat();
    let room = packet.len() - format.reply_octets();
    packet[format.reply_octets()..].copy_from_slice(&padding[..room]);
    let header = reply_header(input);
    format.write_reply(&header, &mut packet);
    format.finish_reply(header.timestamp, &mut packet);
    assert_eq!(hex::encode(&packet), hex::encode(&expected), "{name}");
    assert_eq!(format.read_reply(&expected), Ok(header), "{name}");
}

/// Packets to be discarded and, in authenticated mode, packets to be accepted.
pub(super) fn discarded(name: &str, input: &Value, output: &Value) {
    let read = format(name, input).read_probe(&octets(&input["packet"]));
    match name {
        "neg/sender/enc/bit-flip" => assert_eq!(read, Err(Unreadable::BadMac)),
        "neg/sender/auth/timestamp-changed" => {
            assert_eq!(read.unwrap().timestamp, number(&output["ts"]));
        }
        "neg/sender/unauth/multiplier0" => assert!(read.unwrap().error_estimate.is_unknown()),
        "neg/sender/unauth/13-octets" => assert_eq!(read, Err(Unreadable::TooShort)),
        _ => panic!("nobody checks {name}"),
    }
}
