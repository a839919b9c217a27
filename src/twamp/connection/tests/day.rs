//! A simulated day with a hundred thousand outages.

use super::{world::*, *};
use crate::model::FailureCause;

const DAY: u64 = 86_400 * SECOND;
const OUTAGES: u64 = 100_000;
const INTERVAL: u64 = 100 * MS;

/// Time that an attempt takes to fail, by its cause.
const CAUSES: [(FailureCause, u64); 5] = [
    (FailureCause::Refused, MS / 5),
    (FailureCause::NoRoute, MS / 50),
    (FailureCause::Reset, 40 * MS),
    (FailureCause::ConnectTimeout, 10 * SECOND),
    (FailureCause::Rejected, 2 * MS),
];

#[test]
fn each_of_a_hundred_thousand_outages_has_one_pair_of_events() {
    let mut state = 7u64;
    let mut random = move |below: u64| {
        // SplitMix64 makes the same day in every run.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    };
    let mut world = World::new(config(|c| {
        let interval = Some(prost_types::Duration { seconds: 0, nanos: INTERVAL as i32 });
        (c.test_interval, c.connect_timeout) = (interval, interval);
    }));
    let (mut lost, mut pairs, mut reported_ns, mut down_ns) = (0u64, 0u64, 0u64, 0u64);
    let mut attempts = 0;
    for _ in 0..OUTAGES {
        // The server is up for long enough to connect, and then for a random time.
        world.server.up = true;
        let back = world.now;
        while !world.machine.is_running() {
            world.run(10 * MS);
            let late_ns = world.now - back;
            assert!(late_ns <= 2 * INTERVAL + 60 * MS, "back after {late_ns} ns");
        }
        world.run(random(DAY / OUTAGES / 2));
        world.server.failure = CAUSES[random(CAUSES.len() as u64) as usize];
        let before = world.now;
        world.lose_server();
        world.run(1 + random(DAY / OUTAGES / 2));
        down_ns += world.now - before;
        for (_, event) in world.events.drain(..) {
            match event {
                ConnectionEvent::Lost(_) => lost += 1,
                ConnectionEvent::Restored { length_ns, .. } => {
                    pairs += 1;
                    reported_ns += length_ns;
                }
                ConnectionEvent::Abandoned { .. } | ConnectionEvent::Completed => {
                    panic!("{event:?}")
                }
            }
        }
        attempts += world.attempts.drain(..).count();
        world.operations.clear();
        world.commands.clear();
    }
    assert_eq!(lost, OUTAGES, "one event for each loss");
    assert_eq!(pairs, OUTAGES - 1, "the last outage has not ended");
    assert_eq!(world.status.outages, OUTAGES);
    assert_eq!(world.status.past_outages_ns, reported_ns, "to the nanosecond");
    // A reported outage is longer than the real one by at most two intervals and a handshake.
    assert!(
        reported_ns >= down_ns - DAY / OUTAGES
            && reported_ns <= down_ns + OUTAGES * (2 * INTERVAL + 60 * MS)
    );
    assert!(attempts as u64 > OUTAGES);
}
