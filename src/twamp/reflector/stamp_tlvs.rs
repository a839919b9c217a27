//! Processing of the TLVs of a probe by a STAMP reflector (RFC 8972 §4). Each TLV is processed in
//! place.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::wire::{
    crypto::StampKey,
    tlv::{
        HEADER_OCTETS, METHOD_SOFTWARE, SOURCE_FREE_RUNNING, SOURCE_NTP, Tlv, flags, location,
        types, walk,
    },
};

/// Facts about a probe and its session that TLVs need.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProbeContext {
    /// Sequence Numbers of the probe and its reply.
    pub(super) numbers: (u32, u32),
    pub(super) source: SocketAddr,
    /// Link-layer source address of the probe.
    pub(super) source_mac: Option<[u8; 6]>,
    pub(super) destination: SocketAddr,
    /// TOS of the received probe.
    pub(super) tos: u8,
    pub(super) synchronised: bool,
    /// Lets the probe choose the DSCP of its reply.
    pub(super) allow_class_of_service: bool,
    /// Session state; `None` for a stateless reflector.
    pub(super) state: Option<SessionState>,
}

/// Counters of a session and its latest reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionState {
    /// Probes received, this one included.
    pub(super) received: u32,
    /// Replies sent, this one included.
    pub(super) sent: u32,
    /// Sequence Number and T3 of the previous reply; `None` for the first.
    pub(super) previous: Option<(u32, u64)>,
}

/// Outcome of the processing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TlvOutcome {
    /// TOS of the reply if a TLV requests one.
    pub(super) tos: Option<u8>,
    pub(super) malformed: bool,
    pub(super) integrity_failed: bool,
    pub(super) access_report: bool,
}

/// Processes the TLVs in `area`, a copy of those of the probe. With `must_be_signed`,
/// only a single Extra Padding may come without an HMAC TLV.
pub(super) fn process_tlvs(
    area: &mut [u8],
    probe_context: &ProbeContext,
    key: Option<&StampKey>,
    must_be_signed: bool,
) -> TlvOutcome {
    let mut outcome = TlvOutcome::default();
    let hmac = match signature(area, probe_context, key, must_be_signed) {
        Signature::Good(tlv) => Some(tlv),
        Signature::NotNeeded => None,
        Signature::Bad => {
            outcome.integrity_failed = true;
            set_integrity_flag(area);
            return outcome;
        }
    };
    let mut at = 0;
    while let Some(next) = walk(&area[at..]).next() {
        let Ok(tlv) = next.map(|tlv| Tlv { at: at + tlv.at, ..tlv }) else {
            area[at] = flags::MALFORMED;
            outcome.malformed = true;
            break;
        };
        if !tlv.has_right_length() {
            area[tlv.at] = flags::MALFORMED;
            outcome.malformed = true;
            break;
        }
        let understood = process_tlv(&mut area[tlv.value()], tlv, probe_context, key, &mut outcome);
        area[tlv.at] = if understood { 0 } else { flags::UNRECOGNISED };
        at = tlv.end();
    }
    if let (Some(tlv), Some(key)) = (hmac, key) {
        let value = key.sign(&probe_context.numbers.1.to_be_bytes(), &area[..tlv.at]);
        area[tlv.value()].copy_from_slice(&value);
    }
    outcome
}

/// Returns the key that verifies the HMAC TLV; the first key if there is no HMAC TLV or none
/// verifies it.
pub(super) fn signing_key<'a>(
    area: &[u8],
    sequence: u32,
    keys: &'a [Arc<StampKey>],
) -> Option<&'a StampKey> {
    let first = keys.first()?;
    let signed = |key: &&Arc<StampKey>| {
        let hmac = walk(area).flatten().find(|tlv| tlv.kind == types::HMAC);
        hmac.filter(|tlv| tlv.has_right_length()).is_some_and(|tlv| {
            key.verify(&sequence.to_be_bytes(), &area[..tlv.at], &area[tlv.value()])
        })
    };
    let verified = if keys.len() > 1 { keys.iter().find(signed) } else { None };
    Some(verified.unwrap_or(first))
}

enum Signature {
    Good(Tlv),
    NotNeeded,
    Bad,
}

/// Finds and verifies the HMAC TLV, which only Extra Padding may follow (RFC 8972 §4.8).
fn signature(
    area: &[u8],
    probe_context: &ProbeContext,
    key: Option<&StampKey>,
    must_be_signed: bool,
) -> Signature {
    let Some(key) = key else { return Signature::NotNeeded };
    let mut hmac: Option<Tlv> = None;
    let (mut tlvs, mut others) = (0, 0);
    for tlv in walk(area) {
        tlvs += 1;
        match tlv {
            Ok(tlv) if tlv.kind == types::EXTRA_PADDING => {}
            _ if hmac.is_some() => return Signature::Bad,
            Ok(tlv) if tlv.kind == types::HMAC => hmac = Some(tlv),
            _ => others += 1,
        }
    }
    match hmac {
        Some(tlv) => {
            let number = probe_context.numbers.0.to_be_bytes();
            let good =
                tlv.has_right_length() && key.verify(&number, &area[..tlv.at], &area[tlv.value()]);
            if good { Signature::Good(tlv) } else { Signature::Bad }
        }
        None if must_be_signed && (others > 0 || tlvs > 1) => Signature::Bad,
        None => Signature::NotNeeded,
    }
}

fn set_integrity_flag(area: &mut [u8]) {
    let mut at = 0;
    while let Some(next) = walk(&area[at..]).next() {
        area[at] |= flags::INTEGRITY;
        match next {
            Ok(tlv) => at += tlv.end(),
            Err(_) => return,
        }
    }
}

/// Processes one TLV of valid length; true when its type is understood.
fn process_tlv(
    value: &mut [u8],
    tlv: Tlv,
    probe_context: &ProbeContext,
    key: Option<&StampKey>,
    outcome: &mut TlvOutcome,
) -> bool {
    match tlv.kind {
        types::EXTRA_PADDING => true,
        types::LOCATION => {
            fill_location(value, probe_context);
            true
        }
        types::TIMESTAMP_INFORMATION => {
            let source = if probe_context.synchronised { SOURCE_NTP } else { SOURCE_FREE_RUNNING };
            value[..4].copy_from_slice(&[source, METHOD_SOFTWARE, source, METHOD_SOFTWARE]);
            true
        }
        types::CLASS_OF_SERVICE => {
            class_of_service(value, probe_context, outcome);
            true
        }
        // A stateless reflector has no counters.
        types::DIRECT_MEASUREMENT => probe_context.state.is_some_and(|state| {
            value[4..8].copy_from_slice(&state.received.to_be_bytes());
            value[8..12].copy_from_slice(&state.sent.to_be_bytes());
            true
        }),
        types::ACCESS_REPORT => {
            // 1 is 3GPP access, 2 is not; other values are ignored (RFC 8972 §4.6).
            outcome.access_report |= matches!(value[0] >> 4, 1 | 2);
            true
        }
        types::FOLLOW_UP_TELEMETRY => {
            value.fill(0);
            if let Some((number, time)) = probe_context.state.and_then(|state| state.previous) {
                value[..4].copy_from_slice(&number.to_be_bytes());
                value[4..12].copy_from_slice(&time.to_be_bytes());
                value[12] = METHOD_SOFTWARE;
            }
            true
        }
        types::HMAC => key.is_some(),
        _ => false,
    }
}

/// `DSCP1 (6) DSCP2 (6) ECN (2) RP (2) Reserved (16)` (RFC 8972 §4.4).
fn class_of_service(value: &mut [u8], probe_context: &ProbeContext, outcome: &mut TlvOutcome) {
    let wanted = value[0] >> 2;
    let (dscp, ecn) = (probe_context.tos >> 2, probe_context.tos & 3);
    let refused = u8::from(!probe_context.allow_class_of_service && wanted != dscp);
    value[0] = wanted << 2 | dscp >> 4;
    value[1] = dscp << 4 | ecn << 2 | refused;
    outcome.tos = Some(if refused == 0 { wanted << 2 } else { dscp << 2 });
}

/// Writes ports and each understood part in place (RFC 8972 §4.2).
fn fill_location(value: &mut [u8], probe_context: &ProbeContext) {
    value[..2].copy_from_slice(&probe_context.destination.port().to_be_bytes());
    value[2..4].copy_from_slice(&probe_context.source.port().to_be_bytes());
    let parts = &mut value[4..];
    let mut at = 0;
    while let Some(next) = walk(&parts[at..]).next() {
        let Ok(part) = next.map(|part| Tlv { at: at + part.at, ..part }) else {
            parts[at] = flags::MALFORMED;
            return;
        };
        let (kind, octets) = match (part.kind, part.length) {
            (location::SOURCE_MAC, 8) => match probe_context.source_mac {
                Some(mac) => (location::EUI_48, padded(mac)),
                None => (location::EUI_64, [0; 16]),
            },
            (location::DESTINATION_ADDRESS, 16) => match probe_context.destination.ip() {
                IpAddr::V4(v4) => (location::DESTINATION_IPV4, padded(v4.octets())),
                IpAddr::V6(v6) => (location::DESTINATION_IPV6, v6.octets()),
            },
            (location::SOURCE_ADDRESS, 16) => match probe_context.source.ip() {
                IpAddr::V4(v4) => (location::SOURCE_IPV4, padded(v4.octets())),
                IpAddr::V6(v6) => (location::SOURCE_IPV6, v6.octets()),
            },
            (location::SOURCE_MAC..=location::SOURCE_IPV6, _) => {
                parts[part.at] = flags::MALFORMED;
                return;
            }
            _ => {
                parts[part.at] = flags::UNRECOGNISED;
                at = part.end();
                continue;
            }
        };
        parts[part.at] = 0;
        parts[part.at + 1] = kind;
        let length = part.length.min(octets.len());
        parts[part.at + HEADER_OCTETS..][..length].copy_from_slice(&octets[..length]);
        at = part.end();
    }
}

fn padded<const N: usize>(start: [u8; N]) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[..N].copy_from_slice(&start);
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(name: &str) -> serde_json::Value {
        let text = include_str!("../../../tests/vectors/vectors.json");
        let vectors: serde_json::Value = serde_json::from_str(text).unwrap();
        let all = vectors["vectors"].as_array().unwrap();
        all.iter().find(|vector| vector["name"] == name).unwrap().clone()
    }

    fn octets(value: &serde_json::Value) -> Vec<u8> {
        hex::decode(value.as_str().unwrap()).unwrap()
    }

    fn probe_context() -> ProbeContext {
        ProbeContext {
            numbers: (7, 5),
            source: SocketAddr::from(([192, 0, 2, 1], 20_000)),
            source_mac: Some([0x02, 0x00, 0x5e, 0x10, 0x20, 0x30]),
            destination: SocketAddr::from(([192, 0, 2, 2], 862)),
            tos: 10 << 2 | 2,
            synchronised: true,
            allow_class_of_service: true,
            state: Some(SessionState { received: 1, sent: 1, previous: Some((4, 9)) }),
        }
    }

    fn answered(area: &[u8], probe_context: &ProbeContext) -> (Vec<u8>, TlvOutcome) {
        let mut area = area.to_vec();
        let outcome = process_tlvs(&mut area, probe_context, None, false);
        (area, outcome)
    }

    #[test]
    fn conformance_119_120_124_vectors() {
        for (name, received, reflected) in [
            ("stamp/tlv/unrecognised-echo", "received", "reflected"),
            ("stamp/tlv/malformed-echo", "received", "reflected"),
            ("stamp/tlv/location", "request", "reply"),
        ] {
            let vector = vector(name);
            let (area, _) = answered(&octets(&vector["in"][received]), &probe_context());
            assert_eq!(area, octets(&vector["out"][reflected]), "{name}");
        }
    }

    #[test]
    fn conformance_124_location_keeps_its_length_without_a_mac_and_in_ipv6() {
        let request = octets(&vector("stamp/tlv/location")["in"]["request"]);
        let probe_context = ProbeContext {
            source: "[2001:db8::1]:20000".parse().unwrap(),
            destination: "[2001:db8::2]:862".parse().unwrap(),
            source_mac: None,
            ..probe_context()
        };
        let (area, _) = answered(&request, &probe_context);
        assert_eq!(area.len(), request.len());
        assert_eq!(area[8..12], [0, location::EUI_64, 0, 8]);
        assert_eq!(area[12..20], [0; 8]);
        assert_eq!((area[21], area[41]), (location::DESTINATION_IPV6, location::SOURCE_IPV6));
    }

    #[test]
    fn conformance_119_a_malformed_tlv_ends_the_processing() {
        // Class of Service, then a TLV longer than the packet.
        let (area, outcome) =
            answered(&[0x80, 4, 0, 4, 0xb8, 0, 0, 0, 0x80, 5, 0, 12, 1, 2], &probe_context());
        assert_eq!(area[..4], [0, 4, 0, 4]);
        assert_eq!(area[8..], [0x40, 5, 0, 12, 1, 2]);
        assert!(outcome.malformed);
        assert_eq!(outcome.tos, Some(0xb8));
    }

    /// Octets after the first four of Timestamp Information are kept, and the next TLV is
    /// processed.
    #[test]
    fn conformance_119_timestamp_information_may_be_longer() {
        let long = [0x80, 3, 0, 8, 0, 0, 0, 0, 9, 9, 9, 9];
        let (area, outcome) =
            answered(&[&long[..], &[0x80, 4, 0, 4, 0xb8, 0, 0, 0]].concat(), &probe_context());
        assert_eq!(area[..4], [0, 3, 0, 8]);
        assert_eq!(area[8..12], [9; 4]);
        assert_eq!((area[12], outcome.tos, outcome.malformed), (0, Some(0xb8), false));
        let (area, outcome) = answered(&[0x80, 3, 0, 2, 0, 0], &probe_context());
        assert_eq!((area[0], outcome.malformed), (flags::MALFORMED, true));
    }

    #[test]
    fn conformance_123_class_of_service() {
        let tlv = [0x80, 4, 0, 4, 46 << 2, 0, 0, 0];
        let (area, outcome) = answered(&tlv, &probe_context());
        assert_eq!(area, [0, 4, 0, 4, 0xb8, 0xa8, 0, 0]);
        assert_eq!(outcome.tos, Some(46 << 2));
        // The probe may not choose the DSCP: the received one is used and RP is set.
        let (area, outcome) =
            answered(&tlv, &ProbeContext { allow_class_of_service: false, ..probe_context() });
        assert_eq!(area, [0, 4, 0, 4, 0xb8, 0xa9, 0, 0]);
        assert_eq!(outcome.tos, Some(10 << 2));
    }

    #[test]
    fn conformance_125_follow_up_and_counters_need_state() {
        let tlvs = [[0x80, 7, 0, 16].as_slice(), &[9; 16], &[0x80, 5, 0, 12], &[0; 12]].concat();
        let (area, _) = answered(&tlvs, &probe_context());
        assert_eq!(area[4..17], [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 9, METHOD_SOFTWARE]);
        assert_eq!(area[20], 0);
        let (area, _) = answered(&tlvs, &ProbeContext { state: None, ..probe_context() });
        assert_eq!(area[..20], [[0, 7, 0, 16].as_slice(), &[0; 16]].concat());
        assert_eq!(area[20], flags::UNRECOGNISED, "nothing is counted here");
    }

    #[test]
    fn conformance_121_122_signatures() {
        let key = StampKey::new(b"secret");
        let mut signed = vec![0x80, 4, 0, 4, 0, 0, 0, 0];
        let hmac = key.sign(&7u32.to_be_bytes(), &signed);
        signed.extend([0x80, 8, 0, 16]);
        signed.extend(hmac);
        let check = |area: &[u8], must| {
            let mut area = area.to_vec();
            let outcome = process_tlvs(&mut area, &probe_context(), Some(&key), must);
            (area, outcome)
        };
        let (area, good) = check(&signed, true);
        assert!(!good.integrity_failed);
        let expected = key.sign(&5u32.to_be_bytes(), &area[..8]);
        assert_eq!(area[12..28], expected, "over the TLVs as they are answered");
        // Only Extra Padding may follow.
        assert!(!check(&[&signed[..], &[0x80, 1, 0, 1, 0]].concat(), true).1.integrity_failed);
        let (area, late) = check(&[&signed[..], &[0x80, 3, 0, 4, 0, 0, 0, 0]].concat(), true);
        assert!(late.integrity_failed);
        for at in [0, 8, 28] {
            assert_eq!(area[at], 0xa0, "I in every TLV");
        }
        // A flipped bit, and a missing HMAC.
        let mut flipped = signed.clone();
        flipped[5] ^= 1;
        assert!(check(&flipped, false).1.integrity_failed);
        assert!(check(&signed[..8], true).1.integrity_failed);
        assert!(
            !check(&signed[..8], false).1.integrity_failed,
            "without authentication it is optional"
        );
        assert!(
            !check(&[0x80, 1, 0, 2, 1, 2], true).1.integrity_failed,
            "padding alone needs none"
        );
    }

    proptest::proptest! {
        /// Arbitrary octets, such as padding of TWAMP Light, keep their length and cause no panic.
        #[test]
        fn arbitrary_octets_are_processed(
            octets in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            keyed in proptest::bool::ANY,
        ) {
            let key = keyed.then(|| StampKey::new(b"secret"));
            let mut area = octets.clone();
            process_tlvs(&mut area, &probe_context(), key.as_ref(), keyed);
            proptest::prop_assert_eq!(area.len(), octets.len());
        }
    }
}
