//! Progress of test sessions, as their threads report it, and the conclusions from silence.

use super::failure::Failure;
use crate::time::{Monotonic, NANOS_PER_SECOND};

/// Silence after which sessions are negotiated again, the first time.
const FIRST_SILENCE_NS: u64 = 30 * NANOS_PER_SECOND;
/// Limit of that time, which doubles each time that it does not help.
const MAX_SILENCE_NS: u64 = 900 * NANOS_PER_SECOND;
/// Fewer tests without a reply are no silence.
const SILENT_TESTS: u32 = 3;

/// Stage of a test session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SessionStage {
    /// Testing, or waiting for a connection.
    #[default]
    Testing,
    /// Between two tests; the next one is due at this time.
    Between(Monotonic),
    /// All `test_count` tests were run.
    Completed,
}

/// Progress of one test session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionProgress {
    pub(crate) stage: SessionStage,
    /// Reason for which this host sent no probe of the last test.
    pub(crate) refused: Option<Failure>,
    /// Tests with a reply since the session was started.
    answered: u32,
    unanswered: Unanswered,
}

/// Consecutive tests of a session without a single reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Unanswered {
    tests: u32,
    /// End of the first of them.
    since: Monotonic,
    /// End of the latest.
    until: Monotonic,
}

impl SessionProgress {
    /// Records the end of a test. `answered` tells of a test in which probes were sent, or would have
    /// been sent except for `refused`.
    pub(crate) fn test_ended(
        &mut self,
        answered: Option<bool>,
        refused: Option<Failure>,
        now: Monotonic,
    ) {
        self.refused = refused;
        match answered {
            None => {}
            Some(true) => {
                self.answered = self.answered.saturating_add(1);
                self.unanswered = Unanswered::default();
            }
            Some(false) => {
                let since = if self.unanswered.tests == 0 { now } else { self.unanswered.since };
                let tests = self.unanswered.tests.saturating_add(1);
                self.unanswered = Unanswered { tests, since, until: now };
            }
        }
    }

    /// Forgets replies and silence of the time before the session was started.
    pub(crate) fn session_started(&mut self) {
        self.wake();
        (self.refused, self.answered, self.unanswered) = (None, 0, Unanswered::default());
    }

    /// Ends the wait for the next test.
    pub(crate) fn wake(&mut self) {
        if matches!(self.stage, SessionStage::Between(_)) {
            self.stage = SessionStage::Testing;
        }
    }

    /// Moves the next test of a session that is in no test; returns whether anything changed. A session
    /// that waits for its first test counts as testing, unless it `waits_long`.
    pub(crate) fn move_due(&mut self, due: Monotonic, waits_long: bool) -> bool {
        let moves = match self.stage {
            SessionStage::Testing => waits_long,
            SessionStage::Between(before) => before != due,
            SessionStage::Completed => false,
        };
        if moves {
            self.stage = SessionStage::Between(due);
        }
        moves
    }

    fn silent_ns(&self) -> u64 {
        match self.unanswered {
            Unanswered { tests: 0..SILENT_TESTS, .. } => 0,
            Unanswered { since, until, .. } => until.since_ns(since),
        }
    }

    /// Returns whether only the first test after the start was answered, and no other since.
    fn died_after_first_test(&self) -> bool {
        self.answered == 1 && self.unanswered.tests >= SILENT_TESTS
    }
}

/// Detector of sessions that their server has forgotten although the control connection lives
/// (REFWAIT, a reflector that was restarted). Its limit grows each time that a new negotiation does not
/// help: then the path is the reason.
#[derive(Debug)]
pub(super) struct SilenceDetector {
    limit_ns: u64,
}

impl Default for SilenceDetector {
    fn default() -> Self {
        Self { limit_ns: FIRST_SILENCE_NS }
    }
}

impl SilenceDetector {
    /// Returns whether sessions have been silent for so long that they are to be negotiated again.
    pub(super) fn is_over<'a>(
        &mut self,
        sessions: impl Iterator<Item = &'a SessionProgress> + Clone,
    ) -> bool {
        let silent_ns = sessions.clone().map(SessionProgress::silent_ns).max().unwrap_or(0);
        if silent_ns == 0 {
            let mut unanswered = sessions.map(|session| session.unanswered.tests);
            if unanswered.all(|tests| tests == 0) {
                self.limit_ns = FIRST_SILENCE_NS;
            }
            return false;
        }
        let is_over = silent_ns >= self.limit_ns;
        if is_over {
            self.limit_ns = (self.limit_ns * 2).min(MAX_SILENCE_NS);
        }
        is_over
    }
}

/// Sessions that end in the pause between two tests, because the server's REFWAIT is shorter: learnt
/// when only the first test after a start is answered and a new negotiation cures that.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum PauseProbe {
    /// Sessions are kept over the pause.
    #[default]
    Keep,
    /// They fell silent after their first test; a first test that is answered confirms it.
    Suspected,
    /// Each test gets a new negotiation, known since this time.
    Renegotiate(Monotonic),
}

impl PauseProbe {
    /// Records that silent sessions are negotiated again.
    pub(super) fn record_silence<'a>(
        &mut self,
        mut sessions: impl Iterator<Item = &'a SessionProgress>,
    ) {
        *self = match sessions.any(SessionProgress::died_after_first_test) {
            true => Self::Suspected,
            false => Self::Keep,
        };
    }

    /// Returns whether the connection is to be closed in the pause between two tests.
    pub(super) fn closes_in_pause<'a>(
        &mut self,
        mut sessions: impl Iterator<Item = &'a SessionProgress>,
        retry_ns: u64,
        now: Monotonic,
    ) -> bool {
        *self = match *self {
            Self::Suspected
                if sessions
                    .all(|session| session.unanswered.tests == 0 && session.answered > 0) =>
            {
                Self::Renegotiate(now)
            }
            // The server may have been configured differently since.
            Self::Renegotiate(since) if now.since_ns(since) >= retry_ns => Self::Keep,
            state @ (Self::Keep | Self::Suspected | Self::Renegotiate(_)) => state,
        };
        matches!(self, Self::Renegotiate(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Monotonic {
        Monotonic(n * NANOS_PER_SECOND)
    }

    #[test]
    fn silence_differs_from_a_lost_test_and_its_limit_grows() {
        let mut silence = SilenceDetector::default();
        let (mut a, mut b) = (SessionProgress::default(), SessionProgress::default());
        b.test_ended(Some(true), None, second(0));
        for now in 0..30 {
            a.test_ended(Some(false), None, second(now));
            assert!(!silence.is_over([&a, &b].into_iter()), "{now}");
        }
        a.test_ended(Some(false), None, second(30));
        assert!(silence.is_over([&a, &b].into_iter()));
        // Negotiated again to no avail: the limit has doubled.
        a.session_started();
        for now in 40..100 {
            a.test_ended(Some(false), None, second(now));
            assert!(!silence.is_over([&a, &b].into_iter()), "{now}");
        }
        a.test_ended(Some(false), None, second(100));
        assert!(silence.is_over([&a, &b].into_iter()));
        // One reply resets the limit.
        a.test_ended(Some(true), None, second(101));
        assert!(!silence.is_over([&a, &b].into_iter()));
        assert_eq!(silence.limit_ns, FIRST_SILENCE_NS);
    }

    #[test]
    fn sessions_that_end_in_pauses_are_learnt_once_a_negotiation_cured_them() {
        let mut probe = PauseProbe::default();
        let mut session = SessionProgress::default();
        session.test_ended(Some(true), None, second(0));
        for now in 1..=3 {
            session.test_ended(Some(false), None, second(now));
        }
        probe.record_silence([&session].into_iter());
        assert_eq!(probe, PauseProbe::Suspected);
        session.session_started();
        assert!(!probe.closes_in_pause([&session].into_iter(), 100, second(4)), "not yet cured");
        session.test_ended(Some(true), None, second(5));
        assert!(probe.closes_in_pause([&session].into_iter(), u64::MAX, second(5)));
        assert!(!probe.closes_in_pause([&session].into_iter(), 100, second(6)), "tried again");
        // A session that was answered for longer fell silent for another reason.
        session.test_ended(Some(true), None, second(7));
        session.test_ended(Some(true), None, second(8));
        for now in 9..=12 {
            session.test_ended(Some(false), None, second(now));
        }
        probe.record_silence([&session].into_iter());
        assert_eq!(probe, PauseProbe::Keep);
    }
}
