//! Session-Sender of one test session (RFC 5357 §4.1).
//!
//! The machine lives as long as the session is configured, over any number of control connections,
//! and runs one test after the other. While the reflector is unreachable, tests that are due become
//! unreachable tests, so that availability is exact.

mod outcomes;
mod outstanding;
mod reply;
mod stamp;
mod test_run;
mod types;

use std::collections::VecDeque;

use crate::{
    model::{FailureCause, TestOutcome},
    stats::{Figures, Numbering, TestFigures, Track},
    time::{ErrorEstimate, Monotonic, Now, StampSource, UnixTime},
    wire::format::ProbeHeader,
};
use outstanding::Outstanding;
use reply::PendingSample;
use test_run::Test;

pub use stamp::StampSender;
pub use types::{Carrier, Discard, SenderConfig, SenderEvent};

/// Delay beyond which an overdue probe is skipped, if it also exceeds the probe interval: a pause
/// of the thread must not cause a burst.
const MAX_OVERDUE_NS: u64 = 100_000_000;
/// Catch-up limit: number of overdue probes that are sent at once.
const MAX_CATCHUP_BURST: u64 = 20;

#[derive(Debug)]
enum Phase {
    /// Waiting for the time of the next test; `None` before the first and after the last.
    Idle(Option<Monotonic>),
    Testing(Box<Test>),
}

/// State machine of a Session-Sender.
#[derive(Debug)]
pub struct SessionSender {
    config: SenderConfig,
    /// Configuration that takes effect with the next test.
    next_config: Option<SenderConfig>,
    phase: Phase,
    /// Cause for which no session is started, and the number of attempts to start one; `None` while
    /// a session is started.
    unreachable: Option<(FailureCause, u64)>,
    /// True if no test begins until a session is started again.
    paused: bool,
    /// True if the next test follows a previous one after `test_interval`; false before the first
    /// test of a session and before a test by command.
    is_inter_test_gap: bool,
    /// True once [`SenderEvent::Completed`] was reported.
    completed: bool,
    test_number: u64,
    tests_finished: u64,
    next_sequence: u32,
    carrier: Carrier,
    outstanding: Outstanding,
    track: Track,
    /// Figures of the previous test, whose allocations the next test reuses.
    spare: Option<TestFigures>,
    /// Due time of the first probe that could not be sent, and the largest number of such probes.
    missing: Option<(Monotonic, u64)>,
    /// Number of due and unsent probes that availability does not include yet.
    missed: u64,
    /// Samples that wait for the real transmit time of their reply (STAMP: Follow-Up Telemetry).
    pending_samples: VecDeque<PendingSample>,
    events: VecDeque<SenderEvent>,
}

impl SessionSender {
    /// Creates a sender without a session, with no test due.
    pub fn new(config: SenderConfig) -> Self {
        Self {
            outstanding: Outstanding::new(Numbering::new(false, false)),
            config,
            next_config: None,
            phase: Phase::Idle(None),
            unreachable: Some((FailureCause::Unspecified, 0)),
            paused: false,
            is_inter_test_gap: false,
            completed: false,
            test_number: 0,
            tests_finished: 0,
            next_sequence: 0,
            carrier: Carrier::default(),
            track: Track::default(),
            spare: None,
            missing: None,
            missed: 0,
            pending_samples: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Sets intervals and counts from the next test on. A test that is due later than the new pause
    /// allows is moved forward. A completed sender continues if the new count is higher.
    pub fn set_config(&mut self, config: SenderConfig, now: Monotonic) {
        match &mut self.phase {
            Phase::Idle(due) => {
                let (old_ns, new_ns) = (self.config.test_interval_ns, config.test_interval_ns);
                if let Some(due) = due.as_mut().filter(|_| self.is_inter_test_gap) {
                    let moved = due.0.saturating_sub(old_ns).saturating_add(new_ns);
                    // The new time is not in the past, so that missed tests are not run later.
                    *due = Monotonic(moved).max(now.min(*due));
                }
                self.config = config;
                if self.completed && !self.is_complete() {
                    (self.completed, self.is_inter_test_gap) = (false, false);
                    self.phase = Phase::Idle(Some(now));
                } else if self.idle_until().is_some() {
                    self.complete();
                }
            }
            Phase::Testing(_) => self.next_config = Some(config),
        }
    }

    /// Returns true if the last of `test_count` tests has ended.
    pub fn is_completed(&self) -> bool {
        self.completed
    }

    /// Reports once that all tests have ended.
    fn complete(&mut self) {
        if self.is_complete() {
            self.phase = Phase::Idle(None);
            if !std::mem::replace(&mut self.completed, true) {
                self.events.push_back(SenderEvent::Completed);
            }
        }
    }

    /// Returns the pause between two tests, in nanoseconds.
    pub fn test_interval_ns(&self) -> u64 {
        self.config.test_interval_ns
    }

    /// Returns the time at which the next test is due; `None` during a test, and if none is due.
    pub fn idle_until(&self) -> Option<Monotonic> {
        match &self.phase {
            Phase::Idle(due) => *due,
            Phase::Testing(_) => None,
        }
    }

    /// Returns the number of tests that ended since the latest [`Self::restart`].
    pub fn tests_finished(&self) -> u64 {
        self.tests_finished
    }

    /// Begins a new run of `test_count` tests.
    pub fn restart(&mut self) {
        self.tests_finished = 0;
        self.completed = false;
        if self.is_paused() {
            // A test that becomes due during the pause starts with the session.
            self.phase = Phase::Idle(None);
        }
    }

    /// Starts a session with new sequence numbers. A test begins at `first` or, if the session was
    /// paused, at the time at which it was due.
    pub fn session_started(&mut self, carrier: Carrier, first: Monotonic, now: Now) {
        self.unreachable = None;
        self.count_missed(first.max(now.monotonic));
        let counts = self.config.reflector_numbers_replies;
        let is_seen = counts && self.outstanding.has_own_numbers();
        let numbering = Numbering::new(counts && carrier.has_extensions, is_seen);
        self.carrier = carrier;
        self.next_sequence = 0;
        self.outstanding = Outstanding::new(numbering);
        self.track.session_started();
        if !self.is_complete() {
            let keeps_schedule =
                self.paused && self.idle_until().is_some_and(|due| due > now.monotonic);
            if !keeps_schedule {
                (self.phase, self.is_inter_test_gap) = (Phase::Idle(Some(first)), false);
            }
        }
        self.complete();
        self.paused = false;
        self.handle_timeout(now);
    }

    /// Begins no further test until a session is started again; a running test continues.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Returns true if the sender is paused and no test runs.
    pub fn is_paused(&self) -> bool {
        self.paused && matches!(self.phase, Phase::Idle(_))
    }

    /// Ends the session. A running test ends as INTERRUPTED; tests that become due before the next
    /// session are UNREACHABLE. `attempts` is the number of attempts for a new session.
    pub fn session_lost(&mut self, cause: FailureCause, attempts: u64, now: Now) {
        self.paused = false;
        let was_reachable = self.unreachable.replace((cause, attempts)).is_none();
        if was_reachable {
            self.end_early(TestOutcome::Interrupted, cause, now);
        }
        if matches!(self.phase, Phase::Idle(None)) && !self.is_complete() {
            (self.phase, self.is_inter_test_gap) = (Phase::Idle(Some(now.monotonic)), false);
        }
    }

    /// Begins no further test. A running test sends no more probes and ends as STOPPED when those
    /// in flight are answered or lost, after `grace_ns` at the latest.
    pub fn stop(&mut self, grace_ns: u64, now: Now) {
        let Phase::Testing(test) = &mut self.phase else {
            self.phase = Phase::Idle(None);
            return;
        };
        let left = self.config.probe_count - test.handled;
        test.figures.not_sent(left.into(), now.unix);
        test.handled = self.config.probe_count;
        test.outcome = TestOutcome::Stopped;
        let undecided = self.outstanding.first_undecided().is_some();
        test.ends = Some(now.monotonic.plus_ns(if undecided { grace_ns } else { 0 }));
    }

    /// Returns true if no test runs and none is due.
    pub fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::Idle(None))
    }

    /// Returns the sequence number of a probe to send now.
    pub fn poll_probe(&mut self, now: Now) -> Option<u32> {
        let Phase::Testing(test) = &mut self.phase else { return None };
        let interval_ns = self.config.probe_interval_ns;
        let mut max_overdue_ns =
            MAX_OVERDUE_NS.min(MAX_CATCHUP_BURST * interval_ns).max(interval_ns);
        while test.handled < self.config.probe_count && test.next_due <= now.monotonic {
            let overdue_ns = now.monotonic.since_ns(test.next_due);
            if overdue_ns < max_overdue_ns {
                return Some(self.next_sequence);
            }
            // Further overdue probes are skipped as well, until one is less than an interval late.
            max_overdue_ns = interval_ns;
            test.figures.not_sent(1, now.unix);
            let gap_ns = self.config.gap_in_burst(test.handled, interval_ns);
            test.advance(&self.config, gap_ns, now.monotonic);
        }
        None
    }

    /// Writes the probe of [`Self::poll_probe`] without its padding, which the driver provides.
    pub fn write_probe(
        &mut self,
        t1: UnixTime,
        error_estimate: ErrorEstimate,
        packet: &mut [u8],
        now: Monotonic,
    ) {
        let Carrier { format, timestamps, stamp, .. } = &mut self.carrier;
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

    /// Records that the probe of [`Self::poll_probe`] was sent at `t1`. `random` is uniform, for
    /// the schedule.
    pub fn probe_sent(&mut self, t1: UnixTime, random: u64, now: Now) {
        let Phase::Testing(test) = &mut self.phase else { return };
        test.sent = true;
        if test.figures.sent(t1, now.monotonic.since_ns(test.next_due)) {
            test.set_minute_closes(self.config.loss_timeout_ns, now);
        }
        let wire = self.carrier.timestamps.encode(t1);
        self.outstanding.sent(self.next_sequence, t1, wire, now.monotonic);
        self.next_sequence = self.next_sequence.wrapping_add(1);
        let gap_ns = self.config.gap_ns(test.handled, random);
        test.advance(&self.config, gap_ns, now.monotonic);
    }

    /// Replaces T1 of a probe by the transmit time of the kernel or the network interface.
    pub fn transmitted(&mut self, sequence: u32, at: UnixTime, source: StampSource) {
        self.outstanding.transmitted(sequence, at, source);
    }

    /// Counts packets that the kernel dropped because the receive buffer was full.
    pub fn count_dropped(&mut self, packets: u64) {
        if let Phase::Testing(test) = &mut self.phase {
            test.figures.dropped(packets);
        }
    }

    /// Records that the socket refused the probe of [`Self::poll_probe`]. `cause` is the reason why
    /// nothing can be sent to the reflector, which lowers availability; `None` if the host was
    /// busy.
    pub fn probe_refused(&mut self, cause: Option<FailureCause>, random: u64, now: Now) {
        let Phase::Testing(test) = &mut self.phase else { return };
        test.figures.not_sent(1, now.unix);
        if let Some(cause) = cause {
            test.refused = (test.refused.0 + 1, cause);
        }
        let gap_ns = self.config.gap_ns(test.handled, random);
        test.advance(&self.config, gap_ns, now.monotonic);
    }

    /// Counts a datagram that is not a reply, or not from the reflector.
    pub fn count_ignored(&mut self) {
        if let Phase::Testing(test) = &mut self.phase {
            test.figures.ignored();
        }
    }

    /// Handles an expired deadline; called at or after [`Self::poll_deadline`].
    pub fn handle_timeout(&mut self, now: Now) {
        if let Phase::Testing(test) = &mut self.phase {
            test.figures.advance_to(now.unix);
        }
        let lost = self.outstanding.time_out(self.config.loss_timeout_ns, now.monotonic);
        self.handle_lost(&lost);
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
                self.abandon_probes();
                self.end_test(outcome, FailureCause::Unspecified, next, now);
            }
            Phase::Idle(Some(due)) if *due <= now.monotonic && !self.paused => {
                let due = *due;
                match self.unreachable {
                    None => self.begin_test(due, now),
                    Some((cause, attempts)) => self.unreachable_test(cause, attempts, due, now),
                }
            }
            Phase::Testing(_) | Phase::Idle(_) => {}
        }
    }

    /// Returns the time at which the next probe is due, the only deadline that must be met exactly.
    pub fn next_probe(&self) -> Option<Monotonic> {
        match &self.phase {
            Phase::Idle(due) => due.filter(|_| !self.paused),
            Phase::Testing(test) => {
                (test.handled < self.config.probe_count).then_some(test.next_due)
            }
        }
    }

    /// Returns the time for the next call of [`Self::handle_timeout`] or [`Self::poll_probe`].
    pub fn poll_deadline(&self) -> Option<Monotonic> {
        match &self.phase {
            Phase::Idle(_) => self.next_probe(),
            Phase::Testing(test) => {
                let outcome = self
                    .outstanding
                    .first_undecided()
                    .map(|sent| sent.plus_ns(self.config.loss_timeout_ns + 1));
                let pending = self.pending_samples.front().map(|sample| self.release_due(sample));
                outcome
                    .into_iter()
                    .chain(self.next_probe())
                    .chain(test.ends)
                    .chain(test.minute_closes)
                    .chain(pending)
                    .min()
            }
        }
    }

    /// Returns true if the loss timeout of a probe has passed. Its reply may still be queued in the
    /// socket.
    pub fn has_expired_probe(&self, now: Monotonic) -> bool {
        let sent = self.outstanding.first_undecided();
        sent.is_some_and(|sent| now.since_ns(sent) > self.config.loss_timeout_ns)
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<SenderEvent> {
        self.events.pop_front()
    }

    /// Returns the start and the figures of the running test.
    pub fn current(&self) -> Option<(UnixTime, Figures)> {
        let Phase::Testing(test) = &self.phase else { return None };
        let stamp = self.carrier.stamp.as_ref().map(|stamp| Box::new(stamp.figures()));
        let losses = self.outstanding.losses_so_far();
        let figures = test.figures.figures(self.outstanding.directions(&losses));
        Some((test.started.unix, Figures { stamp, ..figures }))
    }

    fn is_complete(&self) -> bool {
        self.config.test_count != 0 && self.tests_finished >= self.config.test_count
    }
}

#[cfg(test)]
mod direction_tests;
#[cfg(test)]
mod tests;
