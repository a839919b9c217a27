//! Equal results in each mode, with any clocks and timestamp formats.

use super::*;

const EVERY_MODE: [Modes; 4] =
    [Modes::UNAUTHENTICATED, Modes::AUTHENTICATED, Modes::ENCRYPTED, Modes::MIXED];
const NTP: [TimestampFormat; 2] = [TimestampFormat::Ntp; 2];

/// Loss, duplicates and reordering combined, in each mode and with each extension.
#[test]
fn every_mode_sees_the_same_path() {
    let path = || -> Path {
        Box::new(|n| match n % 20 {
            3 => vec![],
            7 => vec![2 * MS, 3 * MS],
            11 => vec![25 * MS],
            _ => vec![2 * MS],
        })
    };
    let mut all = Vec::new();
    for mode in EVERY_MODE {
        for extensions in [Modes(0), Modes::SYMMETRICAL_SIZE.or(Modes::DSCP_ECN_MONITORING)] {
            let config = SenderConfig { data_size: 200, ..config(100) };
            let mut pair =
                Pair::in_mode(mode.or(extensions), NTP, config, path(), every(13, 2 * MS));
            pair.run_until(Monotonic(4 * SECOND));
            let monitored = extensions.contains(Modes::DSCP_ECN_MONITORING);
            assert_eq!(pair.only().egress_tos, monitored.then_some(0xb9), "{mode}");
            all.push(Figures { egress_tos: None, ..pair.only().clone() });
        }
    }
    let first = &all[0];
    assert!(first.probes_lost > 10 && first.probes_duplicate > 3 && first.probes_reordered > 3);
    // The direction of some losses is unknown, because a missing number may be that of a duplicate.
    let placed =
        first.probes_lost_egress.zip(first.probes_lost_ingress).map(|(out, back)| out + back);
    assert_eq!(
        placed.map(|placed| placed + first.probes_lost_unattributed),
        Some(first.probes_lost)
    );
    assert!(first.probes_lost_unattributed > 0, "{first:?}");
    assert!(all.iter().all(|figures| figures == first), "{all:#?}");
}

#[test]
fn a_packet_with_a_flipped_bit_is_only_counted() {
    for mode in [Modes::AUTHENTICATED, Modes::ENCRYPTED] {
        let config = SenderConfig { data_size: 112, ..config(3) };
        let mut pair = Pair::in_mode(mode, NTP, config, lossless(MS), lossless(MS));
        pair.send_and_collect();
        for arrival in pair.flights.values_mut() {
            if let Arrival::AtReflector(packet) = arrival {
                packet[3] ^= 1;
            }
        }
        pair.run_until(Monotonic(SECOND + 11 * MS));
        // The second reply is in flight.
        for arrival in pair.flights.values_mut() {
            if let Arrival::AtSender(packet) = arrival {
                packet[0] ^= 0x80;
            }
        }
        pair.run_until(Monotonic(2 * SECOND));
        let figures = pair.only();
        assert_eq!((figures.probes_received, figures.probes_lost), (1, 2), "{mode}");
        assert_eq!((figures.packets_integrity_failed, figures.packets_ignored), (1, 0), "{mode}");
    }
}

/// 7 February 2036: the NTP era wraps in the middle of the test.
#[test]
fn conformance_082_the_era_of_2036_in_every_mode() {
    let wrap = UnixTime(2_085_978_496 * SECOND);
    for mode in EVERY_MODE {
        let mut pair = Pair::in_mode(
            mode,
            NTP,
            SenderConfig { data_size: 112, ..config(10) },
            lossless(3 * MS),
            lossless(7 * MS),
        )
        .at(wrap.plus_ns(-50 * MS as i64));
        pair.run_until(Monotonic(2 * SECOND));
        let figures = pair.only();
        assert_eq!((figures.probes_received, figures.samples_invalid), (10, 0), "{mode}");
        let (rtt, egress) = (delay(figures.rtt.as_deref()), delay(figures.egress.as_deref()));
        assert!((rtt.max_ns - 9_999_000).abs() <= 2 && (rtt.min_ns - 9_999_000).abs() <= 2);
        assert!((egress.mean_ns - 3_000_000.0).abs() < 2.0);
    }
}

#[test]
fn conformance_111_delays_are_right_for_each_pair_of_timestamp_formats() {
    let (ntp, ptp) = (TimestampFormat::Ntp, TimestampFormat::Ptp);
    for timestamps in [[ntp, ptp], [ptp, ntp], [ptp, ptp]] {
        let mode = Modes::ENCRYPTED.or(Modes::PTP_TIMESTAMPS);
        let config = SenderConfig { data_size: 112, ..config(5) };
        let mut pair = Pair::in_mode(mode, timestamps, config, lossless(3 * MS), lossless(7 * MS));
        pair.run_until(Monotonic(2 * SECOND));
        let figures = pair.only();
        assert_eq!(figures.probes_received, 5, "{timestamps:?}");
        let means =
            [&figures.egress, &figures.ingress, &figures.rtt].map(|d| delay(d.as_deref()).mean_ns);
        for (mean, expected) in means.into_iter().zip([3_000_000.0, 6_999_000.0, 9_999_000.0]) {
            assert!((mean - expected).abs() < 2.0, "{timestamps:?}: {means:?}");
        }
    }
}

/// A clock that is 100 ppm fast: the RTT is off only by the error of the processing time, which is
/// zero, and the egress delay drifts.
#[test]
fn a_skewed_reflector_does_not_change_the_round_trip() {
    let mut pair = Pair::new(config(1_000), lossless(3 * MS), lossless(7 * MS));
    pair.reflector_skew_ppm = 100;
    pair.run_until(Monotonic(12 * SECOND));
    let figures = pair.only();
    let (rtt, egress) = (delay(figures.rtt.as_deref()), delay(figures.egress.as_deref()));
    assert!((rtt.max_ns - rtt.min_ns).abs() <= 4, "{rtt:?}");
    // Drift over the ten seconds of the test.
    assert!(
        (egress.max_ns.abs_diff(egress.min_ns) as f64 - 999_000.0).abs() < 2_000.0,
        "{egress:?}"
    );
}

/// The reflector's clock is set back by a second: the RTT is unaffected and one-way delays are
/// marked invalid.
#[test]
fn a_step_of_the_reflectors_clock_invalidates_one_way_delays() {
    let mut pair = Pair::new(config(20), lossless(3 * MS), lossless(7 * MS));
    pair.run_until(Monotonic(SECOND + 100 * MS));
    pair.reflector_offset_ns = -(SECOND as i64);
    pair.run_until(Monotonic(3 * SECOND));
    let figures = pair.only();
    let rtt = delay(figures.rtt.as_deref());
    assert_eq!((figures.probes_received, figures.samples_invalid), (20, 0));
    assert!((rtt.max_ns - rtt.min_ns).abs() <= 2, "{rtt:?}");
    assert_eq!(figures.one_way_validity(), OneWayValidity::Negative);
}
