//! A sender and a reflector in simulated time, over a path with configured loss, delay, duplicates
//! and reordering.

mod modes;
mod pair;

use pair::*;

use super::{
    PacketMeta,
    sender::{Carrier, SenderConfig},
};
use crate::{
    model::{FailureCause, OneWayValidity, TestOutcome},
    stats::{Figures, TestResult},
    time::{Monotonic, TimestampFormat, UnixTime},
    wire::{codes::Modes, format::PacketFormat},
};

#[test]
fn delays_equal_those_of_the_path() {
    let mut pair = Pair::new(config(10), lossless(3 * MS), lossless(7 * MS));
    pair.reflector_offset_ns = 1_000;
    pair.run_until(Monotonic(2 * SECOND));
    let figures = pair.only();
    assert_eq!((figures.probes_sent, figures.probes_received, figures.probes_lost), (10, 10, 0));
    // Timestamps on the wire resolve 0.23 ns.
    let (rtt, egress, ingress) = (
        delay(figures.rtt.as_deref()),
        delay(figures.egress.as_deref()),
        delay(figures.ingress.as_deref()),
    );
    assert!((rtt.mean_ns - 9_999_000.0).abs() < 2.0, "{rtt:?}");
    assert!((egress.mean_ns - 3_001_000.0).abs() < 2.0, "{egress:?}");
    assert!((ingress.mean_ns - 6_998_000.0).abs() < 2.0, "{ingress:?}");
    assert_eq!(figures.one_way_validity(), OneWayValidity::Valid);
    assert_eq!((figures.egress_ttl, figures.ingress_ttl), (251, 250));
}

#[test]
fn a_clock_offset_beyond_the_path_delay_is_marked_negative() {
    let mut pair = Pair::new(config(4), lossless(3 * MS), lossless(3 * MS));
    pair.reflector_offset_ns = -(SECOND as i64);
    pair.run_until(Monotonic(2 * SECOND));
    assert_eq!(pair.only().one_way_validity(), OneWayValidity::Negative);
    assert!(delay(pair.only().rtt.as_deref()).min_ns > 0);
}

#[test]
fn loss_is_attributed_to_a_direction() {
    let mut pair = Pair::new(config(100), every(10, 2 * MS), lossless(2 * MS));
    pair.run_until(Monotonic(3 * SECOND));
    // The last probe is lost as well, and no later reply attributes it.
    let figures = pair.only();
    assert_eq!(figures.probes_lost, 10);
    assert_eq!((figures.probes_lost_egress, figures.probes_lost_ingress), (Some(9), Some(0)));
    assert_eq!(figures.probes_lost_unattributed, 1);

    let mut pair = Pair::new(config(95), lossless(2 * MS), every(10, 2 * MS));
    pair.run_until(Monotonic(3 * SECOND));
    assert_eq!(
        (pair.only().probes_lost_egress, pair.only().probes_lost_ingress),
        (Some(0), Some(9))
    );
}

#[test]
fn duplicate_reordered_and_late_replies_are_distinguished() {
    let duplicate = Box::new(|n| if n == 3 { vec![MS, 2 * MS] } else { vec![MS] });
    let mut pair = Pair::new(config(10), duplicate, lossless(MS));
    pair.run_until(Monotonic(2 * SECOND));
    let figures = pair.only();
    assert_eq!((figures.probes_received, figures.probes_duplicate), (10, 1));
    assert_eq!(figures.probes_lost + figures.probes_reordered, 0);

    let reorder = Box::new(|n| if n == 3 { vec![25 * MS] } else { vec![MS] });
    let mut pair = Pair::new(config(10), reorder, lossless(MS));
    pair.run_until(Monotonic(2 * SECOND));
    assert_eq!((pair.only().probes_received, pair.only().probes_reordered), (10, 1));

    let late = Box::new(|n| if n == 0 { vec![550 * MS] } else { vec![MS] });
    let mut pair = Pair::new(config(20), late, lossless(MS));
    pair.run_until(Monotonic(2 * SECOND));
    assert_eq!((pair.only().probes_lost, pair.only().probes_late), (1, 1));
}

#[test]
fn tests_follow_each_other_without_drift() {
    let mut pair = Pair::new(config(5), lossless(MS), lossless(MS));
    pair.run_until(Monotonic(101 * SECOND));
    // 40 ms of probes, 500 ms of loss timeout, an interval of 1 s.
    assert_eq!(pair.results.len(), (100 * SECOND).div_ceil(1_540 * MS) as usize);
    for (index, result) in pair.results.iter().enumerate() {
        let expected = 1_700_000_000 * SECOND + index as u64 * 1_540 * MS;
        assert_eq!(result.start_unix_ns, expected);
        assert_eq!(result.test_number, index as u64 + 1);
    }
}

#[test]
fn an_outage_interrupts_the_test_and_accounts_for_every_probe() {
    let mut pair = Pair::new(config(100), lossless(MS), lossless(MS));
    pair.run_until(Monotonic(SECOND + 305 * MS));
    pair.sender.session_lost(FailureCause::Reset, 0, pair.now);
    pair.send_and_collect();
    assert_eq!(pair.results[0].outcome(), TestOutcome::Interrupted);
    assert_eq!(pair.results[0].cause(), FailureCause::Reset);
    let figures = pair.results[0].figures.as_ref().unwrap();
    assert_eq!(figures.probes_scheduled, 100);
    assert_eq!(figures.probes_sent + figures.probes_not_sent, 100);
    assert_eq!(figures.probes_sent, 31);

    // Next slots: 990 ms + 500 ms + 1 s after the start, and every 2.49 s from then on.
    pair.sender.session_lost(FailureCause::Refused, 7, pair.now);
    pair.run_until(Monotonic(SECOND + 2 * 2_490 * MS));
    assert_eq!(pair.results.len(), 3);
    for result in &pair.results[1..] {
        assert_eq!(result.outcome(), TestOutcome::Unreachable);
        assert_eq!((result.cause(), result.attempts), (FailureCause::Refused, 7));
        assert_eq!(result.figures.as_ref().unwrap().probes_not_sent, 100);
    }
    pair.sender.session_started(Carrier::default(), pair.now.monotonic, pair.now);
    pair.run_until(Monotonic(20 * SECOND));
    assert_eq!(pair.results[3].outcome(), TestOutcome::Complete);
}

#[test]
fn probes_in_flight_at_an_interruption_are_abandoned() {
    let mut pair = Pair::new(config(100), lossless(50 * MS), lossless(50 * MS));
    pair.run_until(Monotonic(SECOND + 305 * MS));
    pair.sender.session_lost(FailureCause::Reset, 0, pair.now);
    pair.send_and_collect();
    let figures = pair.results[0].figures.as_ref().unwrap();
    assert_eq!((figures.probes_sent, figures.probes_lost), (31, 0));
    assert_eq!(figures.probes_received + figures.probes_abandoned, 31);
    assert!(figures.probes_abandoned >= 9, "{}", figures.probes_abandoned);
}

#[test]
fn raising_test_count_continues_and_lowering_it_completes() {
    let counted = |test_count| SenderConfig { test_count, ..config(5) };
    let mut pair = Pair::new(counted(2), lossless(MS), lossless(MS));
    pair.run_until(Monotonic(10 * SECOND));
    assert!(pair.completed && pair.sender.is_completed());
    assert_eq!(pair.results.len(), 2);
    pair.completed = false;
    pair.sender.set_config(counted(4), pair.now.monotonic);
    assert!(!pair.sender.is_completed());
    pair.run_until(Monotonic(20 * SECOND));
    assert!(pair.completed);
    assert_eq!(pair.results.len(), 4);
    // No limit, then a limit below the number already run, between two tests.
    pair.completed = false;
    pair.sender.set_config(counted(0), pair.now.monotonic);
    pair.run_until(Monotonic(30 * SECOND));
    assert!(!pair.completed && pair.results.len() > 6);
    let ended = pair.results.len();
    let mut until = 30 * SECOND;
    while pair.sender.idle_until().is_none() {
        until += MS;
        pair.run_until(Monotonic(until));
    }
    pair.sender.set_config(counted(3), pair.now.monotonic);
    pair.send_and_collect();
    assert!(pair.completed);
    pair.run_until(Monotonic(60 * SECOND));
    assert!(pair.results.len() <= ended + 1);
    // A session started without tests to run reports completion.
    pair.completed = false;
    pair.sender.restart();
    pair.sender.set_config(counted(1), pair.now.monotonic);
    pair.sender.session_started(Carrier::default(), pair.now.monotonic, pair.now);
    pair.run_until(Monotonic(70 * SECOND));
    assert!(pair.completed);
}

#[test]
fn an_outage_of_a_day_reports_its_tests_in_bounded_memory() {
    let mut pair = Pair::new(config(1), lossless(MS), lossless(MS));
    pair.run_until(Monotonic(SECOND + 100 * MS));
    pair.sender.session_lost(FailureCause::NoRoute, 1, pair.now);
    pair.run_until(Monotonic(86_401 * SECOND));
    // One test per 1.5 s; the first was interrupted.
    assert_eq!(pair.results.len(), 86_400 * 10 / 15 + 1);
}

#[test]
fn test_count_ends_the_tests() {
    let mut pair =
        Pair::new(SenderConfig { test_count: 3, ..config(2) }, lossless(MS), lossless(MS));
    pair.run_until(Monotonic(100 * SECOND));
    assert_eq!(pair.results.len(), 3);
    assert!(pair.completed);
    assert_eq!(pair.sender.poll_deadline(), None);
}

#[test]
fn a_suspended_host_does_not_burst() {
    let mut pair = Pair::new(config(1_000), lossless(MS), lossless(MS));
    pair.run_until(Monotonic(SECOND + 100 * MS));
    pair.now.monotonic = pair.now.monotonic.plus_ns(60 * SECOND);
    pair.now.unix = pair.now.unix.plus_ns(60 * SECOND as i64);
    pair.sender.handle_timeout(pair.now);
    pair.send_and_collect();
    pair.run_until(Monotonic(70 * SECOND));
    let figures = pair.only();
    assert_eq!(figures.probes_sent + figures.probes_not_sent, 1_000);
    assert!(figures.probes_not_sent >= 980, "{figures:?}");
}

#[test]
fn a_step_of_the_local_clock_does_not_affect_the_rtt() {
    let mut pair = Pair::new(config(10), lossless(20 * MS), lossless(20 * MS));
    pair.run_until(Monotonic(SECOND + 30 * MS));
    pair.now.unix = pair.now.unix.plus_ns(3 * SECOND as i64);
    pair.run_until(Monotonic(3 * SECOND));
    let figures = pair.only();
    assert_eq!(figures.one_way_validity(), OneWayValidity::ClockStepped);
    assert!(figures.samples_invalid > 0);
    assert_eq!(delay(figures.rtt.as_deref()).max_ns, 39_999_000);
}

#[test]
fn conformance_097_foreign_datagrams_are_counted_and_do_not_end_a_test() {
    let mut pair = Pair::new(config(2), lossless(MS), lossless(MS));
    pair.send_and_collect();
    let meta = PacketMeta { received: pair.now.unix, ..PacketMeta::default() };
    pair.sender.handle_reply(&[0; 12], &meta, pair.now);
    pair.sender.handle_reply(&[0; 41], &meta, pair.now);
    pair.sender.handle_reply(&[0xff; 1400], &meta, pair.now);
    pair.run_until(Monotonic(2 * SECOND));
    assert_eq!((pair.only().packets_ignored, pair.only().probes_received), (3, 2));
}

/// Bursts of five every 10 ms; the last burst has the remaining probes.
#[test]
fn bursts_follow_the_schedule() {
    let config = SenderConfig { burst_size: 5, test_interval_ns: SECOND, ..config(18) };
    let queue = Box::new(|n: u32| vec![MS + u64::from(n % 5) * 20_000]);
    let mut pair = Pair::new(config.clone(), queue, lossless(MS));
    pair.run_until(Monotonic(3 * SECOND));
    let figures = pair.results[0].figures.as_ref().unwrap();
    assert_eq!((figures.probes_sent, figures.probes_received), (18, 18));
    // Queueing delay of the path: 20 us for each earlier probe.
    let ipdv = delay(figures.egress_jitter.as_deref());
    let near = |ns: i64, expected: i64| ns.abs_diff(expected) < 2;
    assert!(near(ipdv.max_ns, 20_000) && near(ipdv.min_ns, -80_000), "{ipdv:?}");
    let length = |result: &TestResult| result.end_unix_ns - result.start_unix_ns;
    assert_eq!(length(&pair.results[0]) / MS, 30 + 500);
    // Unreachable tests take the same time and count the probes due by then.
    pair.sender.session_lost(FailureCause::Unspecified, 0, pair.now);
    let begun = pair.results.len();
    pair.run_until(Monotonic(10 * SECOND));
    let start = |index: usize| UnixTime(pair.results[begun + index].start_unix_ns);
    assert_eq!(start(2).since_ns(start(1)).cast_unsigned(), 30 * MS + 500 * MS + SECOND);
}

#[test]
fn a_million_probes() {
    let mut sent = 0u32;
    let lossy = Box::new(move |_| {
        sent += 1;
        if sent.is_multiple_of(1_000) { vec![] } else { vec![MS] }
    });
    let mut pair =
        Pair::new(SenderConfig { probe_interval_ns: MS, ..config(1_000_000) }, lossy, lossless(MS));
    pair.run_until(Monotonic(1_003 * SECOND));
    assert_eq!(pair.only().probes_sent, 1_000_000);
    assert_eq!((pair.only().probes_lost, pair.only().probes_lost_egress), (1_000, Some(999)));
}

#[test]
fn a_test_over_several_minutes_is_reported_by_minute() {
    let mut path = 0;
    let egress: Path = Box::new(move |_| {
        path += 1;
        // Each fortieth probe is lost on its way to the reflector.
        if path % 40 == 0 { vec![] } else { vec![2 * MS] }
    });
    let pause = 100 * SECOND;
    let config =
        SenderConfig { probe_interval_ns: 500 * MS, test_interval_ns: pause, ..config(300) };
    let mut pair = Pair::new(config, egress, lossless(3 * MS));
    // The clock is in the middle of a minute.
    let begun = pair.now.unix;
    pair.run_until(Monotonic(200 * SECOND));
    let whole = pair.only().clone();
    let minutes = &pair.minutes;
    let first = crate::stats::minute_of(begun);
    let numbers: Vec<u64> = minutes.iter().map(|(minute, _)| *minute).collect();
    assert_eq!(numbers, (first..first + numbers.len() as u64).collect::<Vec<_>>());
    assert!((3..=4).contains(&numbers.len()), "{numbers:?}");
    let sum = |of: fn(&Figures) -> u64| minutes.iter().map(|(_, figures)| of(figures)).sum::<u64>();
    assert_eq!(sum(|f| f.probes_sent), 300);
    assert_eq!(sum(|f| f.probes_lost), 7);
    assert_eq!(sum(|f| f.probes_lost_egress.unwrap()), whole.probes_lost_egress.unwrap());
    assert_eq!(whole.probes_lost_egress, Some(7));
    assert_eq!(sum(|f| f.rtt.as_ref().unwrap().samples), delay(whole.rtt.as_deref()).samples);
    let jitter = delay(whole.rtt_jitter.as_deref()).samples;
    assert_eq!(sum(|f| f.rtt_jitter.as_ref().unwrap().samples), jitter);
    assert_eq!(jitter, 299 - 2 * 7);
    assert_eq!(whole.loss_bursts.unwrap().counts_by_length, [7]);
    assert_eq!(whole.availability.unwrap().available_intervals, 300);
    // A full minute reports all of its 120 probes.
    assert_eq!(minutes[1].1.probes_sent, 120);
    assert_eq!(minutes[1].1.probes_lost, 3);
}

#[test]
fn an_outage_lowers_availability_by_its_length() {
    let config = SenderConfig { probe_interval_ns: 100 * MS, ..config(1000) };
    let mut pair = Pair::new(config, lossless(MS), lossless(MS));
    pair.run_until(Monotonic(5 * SECOND));
    pair.sender.session_lost(FailureCause::Reset, 1, pair.now);
    // The interrupted test had 95 s left; the outage takes four.
    let passed = 9 * SECOND - pair.now.monotonic.0;
    pair.now.monotonic = Monotonic(9 * SECOND);
    pair.now.unix = pair.now.unix.plus_ns(passed as i64);
    let carrier = Carrier { format: PacketFormat::open(), ..Carrier::default() };
    pair.sender.session_started(carrier, pair.now.monotonic, pair.now);
    pair.run_until(Monotonic(12 * SECOND));
    let (_, figures) = pair.sender.current().unwrap();
    let unavailable = figures.availability.unwrap().unavailable_intervals;
    assert!((38..=42).contains(&unavailable), "{unavailable}");
}
