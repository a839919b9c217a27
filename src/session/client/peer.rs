//! What was learnt of a server: whether it can be asked for extensions. Some offer what they then
//! refuse, or do not answer; which bits are set is decided by what came of it.

use crate::{
    model::{ControlConnection, Extensions},
    time::Monotonic,
};

/// When a server that worked without extensions is asked for them again, the first time: it may
/// have been another one, or in the middle of a start. At a negotiation that takes place anyway.
const FIRST_PATIENCE_NS: u64 = 3_600_000_000_000;
/// And at most; the time doubles each time that it was for nothing.
const LONGEST_PATIENCE_NS: u64 = 24 * FIRST_PATIENCE_NS;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Extensions are asked for.
    #[default]
    Ask,
    /// They were, and it failed in a way that may be chance, once.
    AskOnceMore,
    /// An attempt with extensions failed where it may be them: the next one does without.
    TryWithout,
    /// Without extensions it works, since then.
    Without(Monotonic),
    /// It works without; whether it works with them now is being tried.
    AskAgain,
}

/// Kept from attempt to attempt, as long as the server, the mode and the key stay the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerMemory {
    state: State,
    patience_ns: u64,
}

impl Default for PeerMemory {
    fn default() -> Self {
        Self { state: State::default(), patience_ns: FIRST_PATIENCE_NS }
    }
}

impl PeerMemory {
    /// What is asked for in the next attempt.
    pub(super) fn extensions(&mut self, config: &ControlConnection, now: Monotonic) -> Extensions {
        if let State::Without(since) = self.state
            && now.since_ns(since) >= self.patience_ns
        {
            self.state = State::AskAgain;
        }
        match self.state {
            State::Ask | State::AskOnceMore | State::AskAgain => {
                let reflect_octets = config.extensions.reflect_octets && config.reflects();
                Extensions { reflect_octets, ..config.extensions }
            }
            State::TryWithout | State::Without(_) => Extensions::NONE,
        }
    }

    /// All sessions are started.
    pub(super) fn succeeded(&mut self, now: Monotonic) {
        self.state = match self.state {
            State::Ask | State::AskOnceMore => State::Ask,
            State::TryWithout => State::Without(now),
            State::Without(since) => State::Without(since),
            State::AskAgain => {
                self.patience_ns = FIRST_PATIENCE_NS;
                State::Ask
            }
        };
    }

    /// The attempt failed.
    pub(super) fn failed(&mut self, blame: Blame, now: Monotonic) {
        self.state = match (self.state, blame) {
            (State::Ask | State::AskOnceMore, Blame::Likely)
            | (State::AskOnceMore, Blame::Possible) => State::TryWithout,
            (State::Ask, Blame::Possible) => State::AskOnceMore,
            // It was not them.
            (State::TryWithout, _) => State::Ask,
            (State::AskAgain, Blame::Likely | Blame::Possible) => {
                self.patience_ns = (self.patience_ns * 2).min(LONGEST_PATIENCE_NS);
                State::Without(now)
            }
            (other, _) => other,
        };
    }
}

/// Whether extensions may be why an attempt failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Blame {
    /// They were not asked for, or have nothing to do with it.
    #[default]
    None,
    /// The server did not answer, closed, or said what it should not.
    Possible,
    /// The server refused.
    Likely,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Monotonic = Monotonic(5);

    fn after(blames: &[Blame]) -> PeerMemory {
        let mut memory = PeerMemory::default();
        blames.iter().for_each(|blame| memory.failed(*blame, NOW));
        memory
    }

    #[test]
    fn a_refusal_is_remembered_and_chance_is_not() {
        assert_eq!(after(&[Blame::Likely]).state, State::TryWithout);
        assert_eq!(after(&[Blame::Possible]).state, State::AskOnceMore);
        assert_eq!(after(&[Blame::Possible, Blame::Possible]).state, State::TryWithout);
        assert_eq!(after(&[Blame::Likely, Blame::None]).state, State::Ask, "it was not them");
        let mut memory = after(&[Blame::Likely]);
        memory.succeeded(NOW);
        assert_eq!(memory.state, State::Without(NOW));
        memory.failed(Blame::None, NOW);
        assert_eq!(memory.state, State::Without(NOW), "remembered over a loss");
        let mut memory = after(&[Blame::Possible]);
        memory.succeeded(NOW);
        assert_eq!(memory.state, State::Ask);
    }

    #[test]
    fn what_was_learnt_is_put_to_the_test_again_after_ever_longer() {
        let document = crate::proto::ControlConnection {
            name: "c1".into(),
            target_address: "192.0.2.1".into(),
            test_sessions: vec![crate::proto::TestSession {
                name: "s1".into(),
                ..crate::proto::TestSession::default()
            }],
            ..crate::proto::ControlConnection::default()
        };
        let config = crate::model::parse_connection(&document).unwrap();
        let mut memory = after(&[Blame::Likely]);
        memory.succeeded(Monotonic(0));
        let mut now = Monotonic(0);
        for patience in [1, 2, 4, 8, 16, 24, 24] {
            let patience_ns = patience * FIRST_PATIENCE_NS;
            assert_eq!(memory.extensions(&config, now.plus_ns(patience_ns - 1)), Extensions::NONE);
            now = now.plus_ns(patience_ns);
            assert_ne!(memory.extensions(&config, now), Extensions::NONE);
            memory.failed(Blame::Possible, now);
        }
        now = now.plus_ns(LONGEST_PATIENCE_NS);
        assert_ne!(memory.extensions(&config, now), Extensions::NONE);
        memory.succeeded(now);
        assert_eq!(memory.state, State::Ask);
    }
}
