//! The Session-Sender of one test session (RFC 5357 §4.1). It lives as long as the session is
//! configured, through any number of control connections, and runs one test after the other:
//! while the reflector is reachable with probes, otherwise as tests that could not be run, so that
//! availability is exact.

mod course;
mod fates;
mod outstanding;
mod reply;
mod stamp;
mod types;

use std::collections::VecDeque;

use crate::{
    model::{FailureCause, TestOutcome},
    stats::{Figures, TestFigures, Track},
    time::{ErrorEstimate, Monotonic, Now, StampSource, UnixTime},
    wire::format::ProbeHeader,
};
use course::Test;
use outstanding::Outstanding;
use reply::Held;

pub use stamp::StampSender;
pub use types::{Carrier, SenderConfig, SenderEvent};

/// Delay beyond which, and beyond the probe interval, overdue probes are skipped: a pause of the
/// thread must not cause a burst.
const LATEST_NS: u64 = 100_000_000;
/// Nor are more than so many sent at once because of it.
const MOST_OVERDUE: u64 = 20;

#[derive(Debug)]
enum Phase {
    /// Waits for the time of the next test; `None` before the first and after the last.
    Idle(Option<Monotonic>),
    Testing(Box<Test>),
}

/// State machine of a Session-Sender.
#[derive(Debug)]
pub struct SessionSender {
    config: SenderConfig,
    /// Configuration from the next test on.
    next_config: Option<SenderConfig>,
    phase: Phase,
    /// Why there is no session now; `None` while there is one.
    unreachable: Option<(FailureCause, u64)>,
    /// No test begins until the session is resumed.
    paused: bool,
    /// The next test follows another one after a pause: it is not the first of a session, nor one
    /// by command.
    behind_test: bool,
    /// It was told that the last test has ended.
    completed: bool,
    test_number: u64,
    tests_finished: u64,
    next_sequence: u32,
    carrier: Carrier,
    outstanding: Outstanding,
    track: Track,
    /// Of the last test: its room is for the next one.
    spare: Option<TestFigures>,
    /// Since when probes are due that nobody can be sent, and how many at most.
    missing: Option<(Monotonic, u64)>,
    /// Of these, what has yet to lower availability.
    missed: u64,
    /// Answered, and waiting to hear when the reflector really answered.
    held: VecDeque<Held>,
    events: VecDeque<SenderEvent>,
}

impl SessionSender {
    /// With no session yet, and no test due.
    pub fn new(config: SenderConfig) -> Self {
        Self {
            outstanding: Outstanding::new(config.reflector_counts),
            config,
            next_config: None,
            phase: Phase::Idle(None),
            unreachable: Some((FailureCause::Unspecified, 0)),
            paused: false,
            behind_test: false,
            completed: false,
            test_number: 0,
            tests_finished: 0,
            next_sequence: 0,
            carrier: Carrier::default(),
            track: Track::default(),
            spare: None,
            missing: None,
            missed: 0,
            held: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// New intervals and counts, from the next test on; one that is due later than a new pause is
    /// long is due then. With a higher count, what was complete goes on.
    pub fn set_config(&mut self, config: SenderConfig, now: Monotonic) {
        match &mut self.phase {
            Phase::Idle(due) => {
                let (old_ns, new_ns) = (self.config.test_interval_ns, config.test_interval_ns);
                if let Some(due) = due.as_mut().filter(|_| self.behind_test) {
                    let moved = due.0.saturating_sub(old_ns).saturating_add(new_ns);
                    // Tests that were missed are not made up for.
                    *due = Monotonic(moved).max(now.min(*due));
                }
                self.config = config;
                if self.completed && !self.is_complete() {
                    (self.completed, self.behind_test) = (false, false);
                    self.phase = Phase::Idle(Some(now));
                } else if self.idle_until().is_some() {
                    self.complete();
                }
            }
            Phase::Testing(_) => self.next_config = Some(config),
        }
    }

    /// Returns whether the last test has ended.
    pub fn is_completed(&self) -> bool {
        self.completed
    }

    /// Reports once that all tests are done.
    fn complete(&mut self) {
        if self.is_complete() {
            self.phase = Phase::Idle(None);
            if !std::mem::replace(&mut self.completed, true) {
                self.events.push_back(SenderEvent::Completed);
            }
        }
    }

    /// The pause between two tests.
    pub fn test_interval_ns(&self) -> u64 {
        self.config.test_interval_ns
    }

    /// When the next test is due, between two of them.
    pub fn idle_until(&self) -> Option<Monotonic> {
        match &self.phase {
            Phase::Idle(due) => *due,
            Phase::Testing(_) => None,
        }
    }

    /// Tests ended since the machine was made.
    pub fn tests_finished(&self) -> u64 {
        self.tests_finished
    }

    /// Begins a new run of `test_count` tests.
    pub fn restart(&mut self) {
        self.tests_finished = 0;
        self.completed = false;
        if self.is_paused() {
            // A test that becomes due meanwhile starts with the session.
            self.phase = Phase::Idle(None);
        }
    }

    /// A session was started. A test begins at `first` or, where the session was paused, when it
    /// would have begun without that. Sequence numbers begin anew.
    pub fn session_started(&mut self, carrier: Carrier, first: Monotonic, now: Now) {
        self.unreachable = None;
        self.miss(first.max(now.monotonic));
        self.carrier = carrier;
        self.next_sequence = 0;
        self.outstanding = Outstanding::new(self.config.reflector_counts);
        self.track.session_started();
        if !self.is_complete() {
            let goes_on = self.paused && self.idle_until().is_some_and(|due| due > now.monotonic);
            if !goes_on {
                (self.phase, self.behind_test) = (Phase::Idle(Some(first)), false);
            }
        }
        self.complete();
        self.paused = false;
        self.handle_timeout(now);
    }

    /// The test that runs is the last until a session is started anew.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Returns whether it is paused and no test runs.
    pub fn is_paused(&self) -> bool {
        self.paused && matches!(self.phase, Phase::Idle(_))
    }

    /// The session is gone. A running test ends as INTERRUPTED; tests that are due until the next
    /// session are UNREACHABLE. `attempts` is how often a new one was tried for.
    pub fn session_lost(&mut self, cause: FailureCause, attempts: u64, now: Now) {
        self.paused = false;
        let was_reachable = self.unreachable.replace((cause, attempts)).is_none();
        if was_reachable {
            self.end_early(TestOutcome::Interrupted, cause, now);
        }
        if matches!(self.phase, Phase::Idle(None)) && !self.is_complete() {
            (self.phase, self.behind_test) = (Phase::Idle(Some(now.monotonic)), false);
        }
    }

    /// No further tests. A running test sends no more probes and ends as STOPPED as soon as those
    /// under way are answered or lost, after `grace_ns` at the latest.
    pub fn stop(&mut self, grace_ns: u64, now: Now) {
        let Phase::Testing(test) = &mut self.phase else {
            self.phase = Phase::Idle(None);
            return;
        };
        let left = self.config.probe_count - test.dealt_with;
        test.figures.not_sent(left.into(), now.unix);
        test.dealt_with = self.config.probe_count;
        test.outcome = TestOutcome::Stopped;
        let undecided = self.outstanding.first_undecided().is_some();
        test.ends = Some(now.monotonic.plus_ns(if undecided { grace_ns } else { 0 }));
    }

    /// Returns whether no test runs and none is due.
    pub fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::Idle(None))
    }

    /// The sequence number of a probe that is to be sent now.
    pub fn poll_probe(&mut self, now: Now) -> Option<u32> {
        let Phase::Testing(test) = &mut self.phase else { return None };
        let interval_ns = self.config.probe_interval_ns;
        let mut latest_ns = LATEST_NS.min(MOST_OVERDUE * interval_ns).max(interval_ns);
        while test.dealt_with < self.config.probe_count && test.next_due <= now.monotonic {
            let late = now.monotonic.since_ns(test.next_due);
            if late < latest_ns {
                return Some(self.next_sequence);
            }
            // With it all whose time was over before the next one's.
            latest_ns = interval_ns;
            test.figures.not_sent(1, now.unix);
            let gap_ns = self.config.behind_burst(test.dealt_with, interval_ns);
            test.advance(&self.config, gap_ns, now.monotonic);
        }
        None
    }

    /// Writes the probe of [`Self::poll_probe`]: all but its padding, which is the driver's.
    pub fn write_probe(
        &mut self,
        t1: UnixTime,
        error_estimate: ErrorEstimate,
        packet: &mut [u8],
        now: Monotonic,
    ) {
        let Carrier { format, timestamps, stamp } = &mut self.carrier;
        let probe = ProbeHeader {
            sequence: self.next_sequence,
            timestamp: timestamps.encode(t1),
            error_estimate: error_estimate.with_format(*timestamps),
            ssid: stamp.as_ref().map_or(0, |stamp| stamp.ssid()),
        };
        format.write_probe(&probe, packet);
        if let Some(stamp) = stamp {
            stamp.write_tlvs(probe.sequence, &mut packet[format.probe_octets()..], now);
        }
    }

    /// The probe of [`Self::poll_probe`] went out at `t1`. `random` is uniform, for the schedule.
    pub fn probe_sent(&mut self, t1: UnixTime, random: u64, now: Now) {
        let Phase::Testing(test) = &mut self.phase else { return };
        test.sent = true;
        if test.figures.sent(t1, now.monotonic.since_ns(test.next_due)) {
            test.set_minute_closes(self.config.loss_timeout_ns, now);
        }
        let wire = self.carrier.timestamps.encode(t1);
        self.outstanding.sent(self.next_sequence, t1, wire, now.monotonic);
        self.next_sequence = self.next_sequence.wrapping_add(1);
        let gap_ns = self.config.gap_ns(test.dealt_with, random);
        test.advance(&self.config, gap_ns, now.monotonic);
    }

    /// The kernel or the network interface tells when the probe of this number went out: that is its
    /// T1 from now on.
    pub fn transmitted(&mut self, sequence: u32, at: UnixTime, source: StampSource) {
        self.outstanding.transmitted(sequence, at, source);
    }

    /// The socket dropped so many packets.
    pub fn dropped(&mut self, packets: u64) {
        if let Phase::Testing(test) = &mut self.phase {
            test.figures.dropped(packets);
        }
    }

    /// The socket did not take the probe of [`Self::poll_probe`]. `cause` says why nothing can be sent
    /// to the reflector, which lowers availability; it is `None` where the host was busy.
    pub fn probe_refused(&mut self, cause: Option<FailureCause>, random: u64, now: Now) {
        let Phase::Testing(test) = &mut self.phase else { return };
        test.figures.not_sent(1, now.unix);
        if let Some(cause) = cause {
            test.refused = (test.refused.0 + 1, cause);
        }
        let gap_ns = self.config.gap_ns(test.dealt_with, random);
        test.advance(&self.config, gap_ns, now.monotonic);
    }

    /// A datagram that is no answer, or from elsewhere.
    pub fn ignored(&mut self) {
        if let Phase::Testing(test) = &mut self.phase {
            test.figures.ignored();
        }
    }

    /// Call at or after [`Self::poll_deadline`].
    pub fn handle_timeout(&mut self, now: Now) {
        if let Phase::Testing(test) = &mut self.phase {
            test.figures.pass(now.unix);
        }
        let lost = self.outstanding.time_out(self.config.loss_timeout_ns, now.monotonic);
        self.lose(&lost);
        self.release_overdue(now.monotonic);
        if let Phase::Testing(test) = &self.phase
            && test.minute_closes.is_some_and(|closes| closes <= now.monotonic)
        {
            self.close_minutes(now);
        }
        match &self.phase {
            Phase::Testing(test) if test.ends.is_some_and(|ends| ends <= now.monotonic) => {
                let next = test.last_due.plus_ns(
                    self.config.loss_timeout_ns.saturating_add(self.config.test_interval_ns),
                );
                let outcome = test.outcome;
                let next = (outcome == TestOutcome::Complete).then_some(next);
                self.abandon();
                self.end(outcome, FailureCause::Unspecified, next, now);
            }
            Phase::Idle(Some(due)) if *due <= now.monotonic && !self.paused => {
                let due = *due;
                match self.unreachable {
                    None => self.begin(due, now),
                    Some((cause, attempts)) => self.unreachable_test(cause, attempts, due, now),
                }
            }
            Phase::Testing(_) | Phase::Idle(_) => {}
        }
    }

    /// When the next probe is due, or a test that begins with one: of what is due, this alone is not
    /// to be late.
    pub fn next_probe(&self) -> Option<Monotonic> {
        match &self.phase {
            Phase::Idle(due) => due.filter(|_| !self.paused),
            Phase::Testing(test) => {
                (test.dealt_with < self.config.probe_count).then_some(test.next_due)
            }
        }
    }

    /// When to call [`Self::handle_timeout`], or to ask [`Self::poll_probe`] again.
    pub fn poll_deadline(&self) -> Option<Monotonic> {
        match &self.phase {
            Phase::Idle(_) => self.next_probe(),
            Phase::Testing(test) => {
                let fate = self
                    .outstanding
                    .first_undecided()
                    .map(|sent| sent.plus_ns(self.config.loss_timeout_ns + 1));
                let held = self.held.front().map(|held| self.release_due(held));
                fate.into_iter()
                    .chain(self.next_probe())
                    .chain(test.ends)
                    .chain(test.minute_closes)
                    .chain(held)
                    .min()
            }
        }
    }

    /// Returns whether a probe is overdue, provided that no reply is still queued in the socket.
    pub fn loses(&self, now: Monotonic) -> bool {
        let sent = self.outstanding.first_undecided();
        sent.is_some_and(|sent| now.since_ns(sent) > self.config.loss_timeout_ns)
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<SenderEvent> {
        self.events.pop_front()
    }

    /// Figures and start of the running test.
    pub fn current(&self) -> Option<(UnixTime, Figures)> {
        let Phase::Testing(test) = &self.phase else { return None };
        let stamp = self.carrier.stamp.as_ref().map(|stamp| Box::new(stamp.figures()));
        let figures = test.figures.figures(self.outstanding.attribution().as_deref());
        Some((test.started.unix, Figures { stamp, ..figures }))
    }

    fn is_complete(&self) -> bool {
        self.config.test_count != 0 && self.tests_finished >= self.config.test_count
    }
}

#[cfg(test)]
mod tests;
