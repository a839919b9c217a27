//! What was learnt of a server: whether it can be asked for extensions. Some offer what they then
//! refuse, or do not answer; which bits are set is decided by what came of it.

use crate::model::{ControlConnection, Extensions};

/// Kept from attempt to attempt, until the connection is configured anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PeerMemory {
    /// Extensions are asked for.
    #[default]
    Ask,
    /// They were, and no answer came: which may be chance, once.
    AskOnceMore,
    /// An attempt with extensions failed where it may be them: the next one does without.
    TryWithout,
    /// Without extensions it works.
    Without,
}

impl PeerMemory {
    /// What is asked for in the next attempt.
    pub(super) fn extensions(self, config: &ControlConnection) -> Extensions {
        match self {
            Self::Ask | Self::AskOnceMore => {
                let reflects = config.sessions.iter().any(|s| s.reflected_padding > 0);
                let reflect_octets = config.extensions.reflect_octets && reflects;
                Extensions { reflect_octets, ..config.extensions }
            }
            Self::TryWithout | Self::Without => Extensions::NONE,
        }
    }

    /// All sessions are started.
    pub(super) fn succeeded(&mut self) {
        *self = match *self {
            Self::Ask | Self::AskOnceMore => Self::Ask,
            Self::TryWithout | Self::Without => Self::Without,
        };
    }

    /// The attempt failed.
    pub(super) fn failed(&mut self, blame: Blame) {
        *self = match (*self, blame) {
            (Self::Ask | Self::AskOnceMore, Blame::Likely)
            | (Self::AskOnceMore, Blame::Possible) => Self::TryWithout,
            (Self::Ask, Blame::Possible) => Self::AskOnceMore,
            // It was not them.
            (Self::TryWithout, _) => Self::Ask,
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
    /// The server did not answer.
    Possible,
    /// The server refused, closed, or said what it should not.
    Likely,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_remembered_and_chance_is_not() {
        let after = |blames: &[Blame]| {
            let mut memory = PeerMemory::default();
            blames.iter().for_each(|blame| memory.failed(*blame));
            memory
        };
        assert_eq!(after(&[Blame::Likely]), PeerMemory::TryWithout);
        assert_eq!(after(&[Blame::Possible]), PeerMemory::AskOnceMore);
        assert_eq!(after(&[Blame::Possible, Blame::Possible]), PeerMemory::TryWithout);
        assert_eq!(after(&[Blame::Likely, Blame::None]), PeerMemory::Ask, "it was not them");
        let mut memory = after(&[Blame::Likely]);
        memory.succeeded();
        assert_eq!(memory, PeerMemory::Without);
        memory.failed(Blame::None);
        assert_eq!(memory, PeerMemory::Without, "remembered over a loss");
        let mut memory = after(&[Blame::Possible]);
        memory.succeeded();
        assert_eq!(memory, PeerMemory::Ask);
    }
}
