use super::*;
use proptest::prelude::*;

fn validity_of(which: i32, times: [i64; 3]) -> Option<i32> {
    let negative = times.iter().any(|time| *time < 0);
    let validity = match which {
        0 => return None,
        1 => OneWayValidity::ClockStepped,
        _ if negative => OneWayValidity::Negative,
        2 => OneWayValidity::Valid,
        _ => OneWayValidity::ClockUnsynchronised,
    };
    Some(validity.into())
}

fn probe() -> impl Strategy<Value = ProbeResult> {
    let times = (any::<i64>(), any::<i64>(), any::<i64>());
    let octet = || prop::option::of(0u32..256);
    let path = (octet(), octet(), octet(), octet());
    let numbers = (0u64..3, any::<u32>(), any::<u64>(), any::<u32>());
    (1i32..4, numbers, times, path, (0i32..3, 0i32..3, any::<bool>(), 0..4)).prop_map(
        |(
            status,
            (test_number, sequence, sent_unix_ns, reply),
            (rtt, egress, processing),
            path,
            (t, r, corrected, validity),
        )| {
            let source = |which| {
                let sources =
                    [TimestampSource::User, TimestampSource::Kernel, TimestampSource::Hardware];
                i32::from(sources[which as usize])
            };
            let lost = ProbeResult {
                test_number,
                sequence,
                sent_unix_ns,
                status,
                transmit_timestamp_source: source(t),
                ..ProbeResult::default()
            };
            if status != i32::from(ProbeStatus::Received) {
                return lost;
            }
            ProbeResult {
                rtt_ns: Some(rtt),
                egress_ns: Some(egress),
                ingress_ns: Some(rtt.wrapping_sub(egress)),
                reflector_processing_ns: Some(processing),
                reflector_sequence: Some(reply),
                egress_ttl: path.0,
                ingress_ttl: path.1,
                ingress_tos: path.2,
                egress_tos: path.3,
                receive_timestamp_source: Some(source(r)),
                one_way_validity: validity_of(
                    validity,
                    [egress, rtt.wrapping_sub(egress), processing],
                ),
                reflector_timestamp_corrected: corrected,
                ..lost
            }
        },
    )
}

proptest! {
    #[test]
    fn decoded_probes_equal_the_encoded_ones(probes in prop::collection::vec(probe(), 0..30)) {
        let recorded = UnixTime(1_790_000_000_000_000_000);
        let block = encode(&probes, recorded).unwrap();
        prop_assert_eq!(decode(block.as_slice(), recorded).unwrap(), probes);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(block in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = decode(block.as_slice(), UnixTime(1));
    }
}

const SENT_NS: u64 = 1_790_000_000_000_000_000;
const MS: u64 = 1_000_000;

/// Returns a probe of a session with jitter of some ten microseconds, whose reflector's clock is
/// `ahead_ns` ahead.
fn regular(n: u32, interval_ns: u64, ahead_ns: i64) -> ProbeResult {
    let jitter = i64::from(n.wrapping_mul(2_654_435_761) >> 16);
    let (rtt, egress) = (1_000_000 + jitter, 500_000 + ahead_ns + jitter / 2);
    let negative = ahead_ns > rtt;
    let validity = if negative { OneWayValidity::Negative } else { OneWayValidity::Valid };
    ProbeResult {
        test_number: 1,
        sequence: n,
        sent_unix_ns: SENT_NS + u64::from(n) * interval_ns + jitter as u64,
        status: ProbeStatus::Received.into(),
        rtt_ns: Some(rtt),
        egress_ns: Some(egress),
        ingress_ns: Some(rtt - egress),
        reflector_processing_ns: Some(5_000 + jitter / 10),
        reflector_sequence: Some(n),
        egress_ttl: Some(251),
        ingress_ttl: Some(251),
        ingress_tos: Some(0),
        egress_tos: None,
        transmit_timestamp_source: TimestampSource::Kernel.into(),
        receive_timestamp_source: Some(TimestampSource::Kernel.into()),
        one_way_validity: Some(validity.into()),
        reflector_timestamp_corrected: false,
    }
}

#[test]
fn regular_probes_are_encoded_in_few_bytes() {
    let octets = |interval_ns: u64, ahead_ns: i64, in_a_record: usize| {
        let probes: Vec<_> = (0..400).map(|n| regular(n, interval_ns, ahead_ns)).collect();
        let of_record = |probes: &[ProbeResult]| {
            let last = probes.last().unwrap().sent_unix_ns;
            encode(probes, UnixTime(last + MS)).unwrap().len()
        };
        probes.chunks(in_a_record).map(of_record).sum::<usize>() as f64 / 400.0
    };
    let hour = 3_600_000 * MS as i64;
    assert!(octets(10 * MS, hour, 16) <= 13.0, "{}", octets(10 * MS, hour, 16));
    assert!(octets(100 * MS, 0, 12) <= 12.5, "{}", octets(100 * MS, 0, 12));
    assert!(octets(1_000 * MS, 0, 1) <= 22.0, "{}", octets(1_000 * MS, 0, 1));
}

#[test]
fn irregular_probes_are_not_encoded() {
    let encode = |probe: ProbeResult| encode(&[probe], UnixTime(SENT_NS));
    let lost = ProbeResult { status: 2, transmit_timestamp_source: 1, ..ProbeResult::default() };
    assert!(encode(lost).is_some());
    assert!(encode(ProbeResult { transmit_timestamp_source: 0, ..lost }).is_none());
    assert!(encode(ProbeResult { rtt_ns: Some(1), ..lost }).is_none());
    assert!(encode(ProbeResult { status: 1, ..lost }).is_none());
}
