//! The course of a connection: when the next attempt is due, and the outage that goes on. No I/O
//! and no clock: a day of outages is a matter of milliseconds in a test.

use super::{failure::Failure, rhythm::Rhythm};
use crate::time::{Monotonic, Now, UnixTime};

/// An outage that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    /// How it began.
    pub(super) failure: Failure,
    pub(super) since: Monotonic,
    pub(super) began: UnixTime,
    /// Attempts that failed.
    pub(super) attempts: u64,
}

/// How attempts follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    pub(super) interval_ns: u64,
    /// 0 for one attempt every interval.
    pub(super) longest_ns: u64,
}

#[derive(Debug)]
pub(super) struct Course {
    rhythm: Rhythm,
    outage: Option<Outage>,
}

impl Course {
    /// Begins with an attempt; `outage` goes on where a task before this one left it.
    pub(super) fn new(outage: Option<Outage>, now: Monotonic) -> Self {
        Self { rhythm: Rhythm::new(now), outage }
    }

    /// An attempt that is outside of any rhythm is made at `due`, and beats are counted from it.
    pub(super) fn attempt_at(&mut self, due: Monotonic) {
        self.rhythm = Rhythm::new(due);
    }

    /// The connection was lost or, where its sessions had not been started, an attempt failed.
    /// Whether that begins an outage, and how many attempts of it have failed.
    pub(super) fn lost(&mut self, failure: &Failure, started: bool, now: Now) -> (bool, u64) {
        if started {
            self.rhythm = Rhythm::new(now.monotonic);
        }
        if let Some(outage) = &mut self.outage {
            outage.attempts += 1;
            return (false, outage.attempts);
        }
        // The loss of a running connection is no attempt; a first attempt that fails is.
        let attempts = u64::from(!started);
        self.outage = Some(Outage {
            failure: failure.clone(),
            since: now.monotonic,
            began: now.unix,
            attempts,
        });
        (true, attempts)
    }

    /// When an attempt that begins now and may take `limit_ns` is over.
    pub(super) fn deadline(&self, pauses: Pauses, limit_ns: u64, now: Monotonic) -> Monotonic {
        match pauses.longest_ns {
            0 => self.rhythm.deadline(pauses.interval_ns, limit_ns, now),
            _ => now.plus_ns(limit_ns),
        }
    }

    /// When the attempt is due behind one that is made now; `None` where that is left to chance.
    pub(super) fn attempt_behind(&self, pauses: Pauses, now: Monotonic) -> Option<Monotonic> {
        (pauses.longest_ns == 0).then(|| self.rhythm.beat_behind(pauses.interval_ns, now))
    }

    /// Attempts of the outage that failed.
    pub(super) fn failed(&self) -> u64 {
        self.outage.as_ref().map_or(0, |outage| outage.attempts)
    }

    /// When the next attempt is due: at the next beat or, for fleets, at random.
    pub(super) fn next_attempt(
        &mut self,
        pauses: Pauses,
        random: u64,
        now: Monotonic,
    ) -> Monotonic {
        match pauses.longest_ns {
            0 => self.rhythm.next(pauses.interval_ns, now),
            longest_ns => self.rhythm.back_off(pauses.interval_ns, longest_ns, random, now),
        }
    }

    /// All sessions are started, or nobody waits for that any more: the outage that this ends.
    pub(super) fn ended(&mut self) -> Option<Outage> {
        self.outage.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{AvailabilityRule, Schedule},
        proto::{FailureCause, TestOutcome},
        twamp::sender::{Carrier, SenderConfig, SenderEvent, SessionSender},
    };

    const MS: u64 = 1_000_000;
    const DAY: u64 = 86_400_000 * MS;
    const INTERVAL: u64 = 100 * MS;
    const HANDSHAKE: u64 = 3 * MS;
    const OUTAGES: usize = 100_000;

    /// How long an attempt takes to fail, by its cause.
    const CAUSES: [(FailureCause, u64); 6] = [
        (FailureCause::Refused, MS / 5),
        (FailureCause::NoRoute, MS / 50),
        (FailureCause::Dns, 40 * MS),
        (FailureCause::ConnectTimeout, INTERVAL),
        (FailureCause::ResponseTimeout, 250 * MS),
        (FailureCause::Rejected, 2 * MS),
    ];

    struct Scripted {
        begins: u64,
        ends: u64,
        cause: (FailureCause, u64),
    }

    /// Outages of random length and cause, all over a day.
    fn script(random: &mut impl FnMut(u64) -> u64) -> Vec<Scripted> {
        let mut at = 0;
        let mean = DAY / OUTAGES as u64;
        let scripted = |_| {
            let begins = at + 1 + random(mean);
            let ends = begins + 1 + random(mean);
            at = ends;
            Scripted { begins, ends, cause: CAUSES[random(CAUSES.len() as u64) as usize] }
        };
        (0..OUTAGES).map(scripted).collect()
    }

    fn now(ns: u64) -> Now {
        Now { monotonic: Monotonic(ns), unix: UnixTime(1_800_000_000_000_000_000 + ns) }
    }

    fn failure((cause, _): (FailureCause, u64)) -> Failure {
        Failure::new(cause, "scripted")
    }

    /// A session beside it, as its task runs it.
    struct Session {
        machine: SessionSender,
        at: u64,
        outcomes: std::collections::BTreeMap<i32, u64>,
        scheduled: u64,
        sent: u64,
        not_sent: u64,
    }

    impl Session {
        fn run_until(&mut self, end: u64) {
            while let Some(due) = self.machine.poll_deadline().filter(|due| due.0 <= end) {
                self.at = self.at.max(due.0);
                self.machine.handle_timeout(now(self.at));
                while self.machine.poll_probe(now(self.at)).is_some() {
                    self.machine.probe_sent(now(self.at).unix, 0, now(self.at));
                }
                self.collect();
            }
            self.at = end;
        }

        fn collect(&mut self) {
            while let Some(event) = self.machine.poll_event() {
                let SenderEvent::Test(result, _) = event else { continue };
                *self.outcomes.entry(result.outcome).or_default() += 1;
                let figures = result.figures.unwrap();
                self.scheduled += figures.probes_scheduled;
                self.sent += figures.probes_sent;
                self.not_sent += figures.probes_not_sent;
            }
        }
    }

    #[test]
    fn a_day_of_a_hundred_thousand_outages() {
        let mut state = 7u64;
        let mut random = move |below: u64| {
            // SplitMix64: the same day in every run.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % below
        };
        let script = script(&mut random);
        let mut session = Session {
            machine: SessionSender::new(SenderConfig {
                probe_count: 5,
                probe_interval_ns: 10 * MS,
                burst_size: 1,
                schedule: Schedule::Periodic,
                loss_timeout_ns: 20 * MS,
                test_interval_ns: INTERVAL,
                test_count: 0,
                data_size: 41,
                reflector_counts: true,
                availability: AvailabilityRule::default(),
            }),
            at: 0,
            outcomes: Default::default(),
            scheduled: 0,
            sent: 0,
            not_sent: 0,
        };
        // What a driver does, in no time.
        let mut course = Course::new(None, Monotonic(0));
        let pauses = Pauses { interval_ns: INTERVAL, longest_ns: 0 };
        let down_at = |from: u64, to: u64| {
            let next = script.partition_point(|outage| outage.ends <= from);
            script.get(next).filter(|outage| outage.begins < to)
        };
        let (mut at, mut lost_at) = (0, None::<u64>);
        let (mut pairs, mut told_ns, mut expected_ns, mut attempts_in_all) = (0, 0, 0, 0u64);
        while at < DAY {
            attempts_in_all += 1;
            // An attempt fails where the server is away at any moment of it.
            if let Some(outage) = down_at(at, at + HANDSHAKE) {
                let failed = at.max(outage.begins) + outage.cause.1;
                session.run_until(failed);
                let (begins, attempts) = course.lost(&failure(outage.cause), false, now(failed));
                if begins {
                    lost_at = Some(failed);
                }
                session.machine.session_lost(outage.cause.0, attempts, now(failed));
                let beat_from = lost_at.unwrap();
                let due = course.next_attempt(pauses, 0, Monotonic(failed)).0;
                if beat_from != failed || attempts > 1 {
                    // On the beat of the loss: late by nothing, whatever the attempt took.
                    assert!(due + 25 * MS >= failed && due <= failed + INTERVAL, "{due} {failed}");
                    assert_eq!((due - beat_from) % INTERVAL, 0, "off the beat");
                }
                at = due.max(failed);
                continue;
            }
            let up = at + HANDSHAKE;
            session.run_until(up);
            if let Some(outage) = course.ended() {
                let since = lost_at.take().unwrap();
                assert_eq!((outage.since.0, outage.began), (since, now(since).unix));
                pairs += 1;
                told_ns += up - outage.since.0;
                expected_ns += up - since;
                // Back within an interval of the server's return, and a handshake.
                let returned = script[..script.partition_point(|o| o.ends <= at)].last().unwrap();
                let longest = CAUSES.iter().map(|(_, takes)| takes).max().unwrap();
                assert!(up - returned.ends <= 2 * INTERVAL + HANDSHAKE + longest);
            }
            session.machine.session_started(Carrier::default(), Monotonic(up), now(up));
            let next = script.partition_point(|outage| outage.begins < up);
            let Some(outage) = script.get(next) else { break };
            session.run_until(outage.begins);
            let (begins, attempts) = course.lost(&failure(outage.cause), true, now(outage.begins));
            assert!(begins && attempts == 0, "one event for each loss");
            lost_at = Some(outage.begins);
            session.machine.session_lost(outage.cause.0, 0, now(outage.begins));
            at = course.next_attempt(pauses, 0, Monotonic(outage.begins)).0;
            assert_eq!(at, outage.begins + INTERVAL);
        }
        session.collect();
        assert_eq!(told_ns, expected_ns, "nanosecond for nanosecond");
        assert!(pairs > OUTAGES / 4, "{pairs} pairs, {attempts_in_all} attempts");
        // Nothing is lost from the books: each probe was sent, or could not be.
        assert_eq!(session.scheduled, session.sent + session.not_sent);
        let outcomes = |outcome: TestOutcome| session.outcomes.get(&outcome.into()).copied();
        let unreachable = outcomes(TestOutcome::Unreachable).unwrap();
        let interrupted = outcomes(TestOutcome::Interrupted).unwrap();
        assert!(outcomes(TestOutcome::Complete).unwrap() > 10_000);
        assert!(interrupted <= pairs as u64 + 1);
        // A test takes 160 ms with its pause: as many could not be run as fit into the outages.
        let fit = told_ns / (160 * MS);
        assert!(unreachable.abs_diff(fit) < fit / 2, "{unreachable} of {fit}");
    }
}
