//! What was learnt of a server: whether it can be asked for extensions. Some offer what they then
//! refuse, or do not answer; which bits are set is decided by what came of it.

use crate::model::{ControlConnection, Extensions};

/// Kept from attempt to attempt, until the connection is configured anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PeerMemory {
    /// Extensions are asked for.
    #[default]
    Ask,
    /// An attempt with extensions failed where it may be them: the next one does without.
    TryWithout,
    /// Without extensions it works.
    Without,
}

impl PeerMemory {
    /// What is asked for in the next attempt.
    pub(super) fn extensions(self, config: &ControlConnection) -> Extensions {
        match self {
            Self::Ask => {
                let reflects = config.sessions.iter().any(|s| s.reflected_padding > 0);
                let reflect_octets = config.extensions.reflect_octets && reflects;
                Extensions { reflect_octets, ..config.extensions }
            }
            Self::TryWithout | Self::Without => Extensions::NONE,
        }
    }

    /// All sessions are started.
    pub(super) fn succeeded(&mut self) {
        if *self == Self::TryWithout {
            *self = Self::Without;
        }
    }

    /// The attempt failed; whether extensions may be why.
    pub(super) fn failed(&mut self, blames_extensions: bool) {
        *self = match *self {
            Self::Ask if blames_extensions => Self::TryWithout,
            // It was not them.
            Self::TryWithout => Self::Ask,
            other => other,
        };
    }
}
