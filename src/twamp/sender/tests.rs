use super::*;
use crate::{
    model::{AvailabilityRule, Schedule},
    proto::TestResult,
};

const MS: u64 = 1_000_000;

fn config(probe_count: u32, probe_interval_ns: u64) -> SenderConfig {
    SenderConfig {
        probe_count,
        probe_interval_ns,
        burst_size: 1,
        schedule: Schedule::Periodic,
        loss_timeout_ns: 50 * MS,
        test_interval_ns: 1_000 * MS,
        test_count: 0,
        data_size: 60,
        reflector_counts: true,
        availability: AvailabilityRule {
            probes_per_interval: 2,
            consecutive_intervals: 2,
            ..AvailabilityRule::default()
        },
    }
}

/// A machine at a time, with what became of its tests.
struct Driven {
    machine: SessionSender,
    at_ns: u64,
    sent: u32,
    results: Vec<TestResult>,
}

impl Driven {
    fn new(config: SenderConfig) -> Self {
        let mut machine = SessionSender::new(config);
        machine.session_started(Carrier::default(), Monotonic(0), now(0));
        Self { machine, at_ns: 0, sent: 0, results: Vec::new() }
    }

    /// Does what is due until then; `send` says of a probe, by its number, why the socket refused it.
    fn run_until(&mut self, end_ns: u64, send: impl Fn(u32) -> Result<(), Option<LossCause>>) {
        loop {
            self.machine.handle_timeout(now(self.at_ns));
            while let Some(number) = self.machine.poll_probe(now(self.at_ns)) {
                match send(number) {
                    Ok(()) => {
                        self.machine.probe_sent(now(self.at_ns).unix, 0, now(self.at_ns));
                        self.sent += 1;
                    }
                    Err(cause) => self.machine.probe_refused(cause, 0, now(self.at_ns)),
                }
            }
            while let Some(event) = self.machine.poll_event() {
                if let SenderEvent::Test(result, _) = event {
                    self.results.push(*result);
                }
            }
            let next = self.machine.poll_deadline().filter(|due| due.0 <= end_ns);
            let Some(next) = next else { break };
            self.at_ns = next.0.max(self.at_ns);
        }
        self.at_ns = end_ns;
    }
}

fn now(ns: u64) -> Now {
    Now { monotonic: Monotonic(ns), unix: UnixTime(1_790_000_000_000_000_000 + ns) }
}

#[test]
fn after_a_pause_there_is_no_burst_and_what_is_left_out_is_counted() {
    for (interval_ns, pause_ns, left_out) in [
        (MS, 300 * MS, 299),
        (10 * MS, 1_000 * MS, 99),
        (500 * MS, 2_600 * MS, 4),
        (MS, 60 * MS, 0),
    ] {
        let mut driven = Driven::new(config(10_000, interval_ns));
        driven.run_until(100 * interval_ns, |_| Ok(()));
        let before = driven.sent;
        // Nobody comes round.
        driven.at_ns += pause_ns;
        driven.run_until(driven.at_ns, |_| Ok(()));
        let at_once = driven.sent - before;
        let figures = driven.machine.current().unwrap().1;
        assert_eq!(figures.probes_not_sent, left_out, "{interval_ns} {pause_ns}");
        assert!(at_once <= if left_out > 0 { 2 } else { 60 }, "{at_once} at once");
        // And the slots are where they were.
        let late = figures.schedule_error.unwrap();
        assert!(late.max_ns < (100 * MS).max(interval_ns) as i64, "{late:?}");
    }
}

#[test]
fn a_test_of_which_nothing_can_be_sent_is_unreachable() {
    let mut driven = Driven::new(config(4, 10 * MS));
    driven.run_until(500 * MS, |_| Err(Some(LossCause::NoRoute)));
    let first = &driven.results[0];
    assert_eq!((first.outcome(), first.cause()), (TestOutcome::Unreachable, LossCause::NoRoute));
    let figures = first.figures.as_ref().unwrap();
    assert_eq!((figures.probes_sent, figures.probes_not_sent, figures.probes_lost), (0, 4, 0));
    assert_eq!(figures.availability.as_ref().unwrap().unavailable_intervals, 2);
    driven.run_until(1_500 * MS, |_| Ok(()));
    let second = &driven.results[1];
    assert_eq!((second.outcome(), second.cause()), (TestOutcome::Complete, LossCause::Unspecified));
    driven.run_until(2_700 * MS, |_| Err(None));
    let third = driven.results.last().unwrap();
    assert_eq!(third.outcome(), TestOutcome::Complete);
    let figures = third.figures.as_ref().unwrap();
    assert_eq!((figures.probes_not_sent, figures.availability.is_some()), (4, false));
}

#[test]
fn the_next_test_comes_as_after_any_other() {
    let mut driven = Driven::new(config(4, 10 * MS));
    driven.run_until(5_000 * MS, |_| Err(Some(LossCause::Local)));
    let starts: Vec<u64> = driven
        .results
        .iter()
        .map(|result| UnixTime::from_proto(result.start.as_ref().unwrap()).0)
        .collect();
    // 30 ms of probes, 50 ms of loss timeout, a second of pause.
    assert!(starts.len() >= 4 && starts.windows(2).all(|pair| pair[1] - pair[0] == 1_080 * MS));
}
