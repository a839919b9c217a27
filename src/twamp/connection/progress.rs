//! Progress of test sessions as reported by their threads, and conclusions from silence.

use super::failure::Failure;
use crate::time::{Monotonic, NANOS_PER_SECOND};

/// Silence after which sessions are negotiated again for the first time.
const FIRST_SILENCE_NS: u64 = 30 * NANOS_PER_SECOND;
/// Limit of that time, which doubles each time that the negotiation does not help.
const MAX_SILENCE_NS: u64 = 900 * NANOS_PER_SECOND;
/// Number of tests without a reply after which a session is silent.
const SILENT_TESTS: u32 = 3;
/// Number of probes that must be lost after pauses to rule out chance. They count only if the
/// probes after a new negotiation are answered each time.
const EXPIRY_PROBES: u64 = 5;

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
    pub(crate) refused: Option<Box<Failure>>,
    /// Tests with a reply since the session was started.
    answered: u32,
    unanswered: Unanswered,
}

/// Consecutive tests of a session without a single reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Unanswered {
    tests: u32,
    /// Number of probes of the latest of these tests.
    probes: u64,
    /// End of the first of these tests.
    since: Monotonic,
    /// End of the latest of these tests.
    until: Monotonic,
}

impl SessionProgress {
    /// Records the end of a test with `probes` sent. `answered` is `None` unless probes were sent,
    /// or would have been sent except for `refused`.
    pub(crate) fn test_ended(
        &mut self,
        answered: Option<bool>,
        probes: u64,
        refused: Option<Failure>,
        now: Monotonic,
    ) {
        self.refused = refused.map(Box::new);
        match answered {
            None => {}
            Some(true) => {
                self.answered = self.answered.saturating_add(1);
                self.unanswered = Unanswered::default();
            }
            Some(false) => {
                let since = if self.unanswered.tests == 0 { now } else { self.unanswered.since };
                let tests = self.unanswered.tests.saturating_add(1);
                self.unanswered = Unanswered { tests, probes, since, until: now };
            }
        }
    }

    /// Clears replies and silence from before the session was started.
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

    /// Moves the due time of the next test of a session between tests. Returns true if anything
    /// changed. A session that waits for its first test counts as testing, unless it `waits_long`.
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

    /// Returns true if the server may have ended the session in the pause after its first test:
    /// that test was answered, the next one was not.
    pub(crate) fn may_have_expired(&self) -> bool {
        self.answered == 1 && self.unanswered.tests == 1 && self.unanswered.probes > 0
    }

    /// Returns true if a test was answered since the session was started.
    pub(super) fn has_reply(&self) -> bool {
        self.answered > 0
    }

    /// Returns true if probes of the first test were sent and none was answered.
    pub(super) fn lost_first_test(&self) -> bool {
        self.answered == 0 && self.unanswered.tests > 0 && self.unanswered.probes > 0
    }

    pub(super) fn is_completed(&self) -> bool {
        self.stage == SessionStage::Completed
    }

    fn is_answered(&self) -> bool {
        self.answered > 0 && self.unanswered.tests == 0
    }
}

/// Detector of sessions that the server has ended although the control connection is open (REFWAIT,
/// a restarted reflector). The limit of silence grows each time that a new negotiation does not
/// help, because then the path is the reason.
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
    /// Returns true if sessions have been silent for so long that they must be negotiated again.
    pub(super) fn must_renegotiate<'a>(
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

/// Knowledge about sessions that end in the pause between two tests because the server's REFWAIT is
/// shorter. It is learnt if all probes of the test after a pause are lost and the probes after a
/// new negotiation are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PauseProbe {
    /// Sessions are kept over the pause.
    Keep {
        /// Number of probes lost after pauses, each time followed by replies after a new
        /// negotiation.
        lost: u64,
    },
    /// Some sessions may have expired; an answered first test confirms it.
    Suspected { lost: u64 },
    /// Each test gets a new negotiation; known since this time.
    Renegotiate(Monotonic),
}

impl Default for PauseProbe {
    fn default() -> Self {
        Self::Keep { lost: 0 }
    }
}

impl PauseProbe {
    /// Records that sessions are negotiated again because they are silent.
    pub(super) fn record_silence<'a>(
        &mut self,
        sessions: impl Iterator<Item = &'a SessionProgress>,
    ) {
        let before = if let Self::Keep { lost } = self { *lost } else { 0 };
        let expired = sessions.filter(|session| session.may_have_expired());
        *self = match expired.map(|session| session.unanswered.probes).max() {
            Some(probes) => Self::Suspected { lost: before.saturating_add(probes) },
            None => Self::default(),
        };
    }

    /// Returns true if the connection must be closed in the pause between two tests.
    pub(super) fn closes_in_pause<'a>(
        &mut self,
        mut sessions: impl Iterator<Item = &'a SessionProgress> + Clone,
        retry_ns: u64,
        now: Monotonic,
    ) -> bool {
        *self = match *self {
            // A session that was never answered shows nothing about the others.
            Self::Suspected { lost }
                if sessions.clone().any(SessionProgress::is_answered)
                    && !sessions.clone().any(SessionProgress::may_have_expired) =>
            {
                let is_chance = lost < EXPIRY_PROBES;
                if is_chance { Self::Keep { lost } } else { Self::Renegotiate(now) }
            }
            Self::Suspected { .. } if sessions.any(|session| session.unanswered.tests > 0) => {
                Self::default()
            }
            Self::Keep { .. } if sessions.any(|session| session.answered > 1) => Self::default(),
            // The server may have been configured differently since.
            Self::Renegotiate(since) if now.since_ns(since) >= retry_ns => Self::default(),
            state @ (Self::Keep { .. } | Self::Suspected { .. } | Self::Renegotiate(_)) => state,
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
    fn silence_needs_several_lost_tests_and_its_limit_doubles() {
        let mut silence = SilenceDetector::default();
        let (mut a, mut b) = (SessionProgress::default(), SessionProgress::default());
        b.test_ended(Some(true), 1, None, second(0));
        for now in 0..30 {
            a.test_ended(Some(false), 1, None, second(now));
            assert!(!silence.must_renegotiate([&a, &b].into_iter()), "{now}");
        }
        a.test_ended(Some(false), 1, None, second(30));
        assert!(silence.must_renegotiate([&a, &b].into_iter()));
        // The new negotiation did not help: the limit has doubled.
        a.session_started();
        for now in 40..100 {
            a.test_ended(Some(false), 1, None, second(now));
            assert!(!silence.must_renegotiate([&a, &b].into_iter()), "{now}");
        }
        a.test_ended(Some(false), 1, None, second(100));
        assert!(silence.must_renegotiate([&a, &b].into_iter()));
        // One reply resets the limit.
        a.test_ended(Some(true), 1, None, second(101));
        assert!(!silence.must_renegotiate([&a, &b].into_iter()));
        assert_eq!(silence.limit_ns, FIRST_SILENCE_NS);
    }

    #[test]
    fn expiry_in_pauses_is_learnt_after_a_successful_negotiation() {
        let mut probe = PauseProbe::default();
        let mut session = SessionProgress::default();
        session.test_ended(Some(true), 5, None, second(0));
        assert!(!session.may_have_expired());
        session.test_ended(Some(false), 5, None, second(1));
        assert!(session.may_have_expired());
        probe.record_silence([&session].into_iter());
        assert_eq!(probe, PauseProbe::Suspected { lost: 5 });
        session.session_started();
        assert!(!probe.closes_in_pause([&session].into_iter(), 100, second(4)), "not yet cured");
        session.test_ended(Some(true), 5, None, second(5));
        assert!(probe.closes_in_pause([&session].into_iter(), u64::MAX, second(5)));
        assert!(!probe.closes_in_pause([&session].into_iter(), 100, second(6)), "tried again");
        // A session that was answered for longer fell silent for another reason.
        session.test_ended(Some(true), 5, None, second(7));
        session.test_ended(Some(false), 5, None, second(8));
        assert!(!session.may_have_expired());
        probe.record_silence([&session].into_iter());
        assert_eq!(probe, PauseProbe::default());
    }

    #[test]
    fn expiry_is_learnt_from_five_tests_of_a_single_probe() {
        let mut probe = PauseProbe::default();
        let mut session = SessionProgress::default();
        let lost_and_cured = |probe: &mut PauseProbe, session: &mut SessionProgress| {
            session.session_started();
            session.test_ended(Some(true), 1, None, second(0));
            session.test_ended(Some(false), 1, None, second(1));
            probe.record_silence([&*session].into_iter());
            session.session_started();
            session.test_ended(Some(true), 1, None, second(2));
            probe.closes_in_pause([&*session].into_iter(), u64::MAX, second(2))
        };
        for _ in 0..3 {
            assert!(!lost_and_cured(&mut probe, &mut session));
        }
        // A session that survives a pause refutes the suspicion.
        session.test_ended(Some(true), 1, None, second(3));
        assert!(!probe.closes_in_pause([&session].into_iter(), u64::MAX, second(3)));
        assert_eq!(probe, PauseProbe::default());
        let learnt = [(); 5].map(|()| lost_and_cured(&mut probe, &mut session));
        assert_eq!(learnt, [false, false, false, false, true]);
    }

    #[test]
    fn new_session_without_a_reply_refutes_expiry() {
        let mut probe = PauseProbe::Suspected { lost: 5 };
        let mut session = SessionProgress::default();
        session.test_ended(Some(false), 5, None, second(0));
        assert!(!probe.closes_in_pause([&session].into_iter(), u64::MAX, second(0)));
        session.test_ended(Some(true), 5, None, second(1));
        assert!(!probe.closes_in_pause([&session].into_iter(), u64::MAX, second(1)));
        assert_eq!(probe, PauseProbe::default());
    }

    #[test]
    fn unanswered_session_does_not_hide_an_expiring_one() {
        let mut probe = PauseProbe::Suspected { lost: 5 };
        let (mut cured, mut silent) = (SessionProgress::default(), SessionProgress::default());
        cured.test_ended(Some(true), 5, None, second(0));
        silent.test_ended(Some(false), 5, None, second(0));
        assert!(probe.closes_in_pause([&cured, &silent].into_iter(), u64::MAX, second(0)));
    }
}
