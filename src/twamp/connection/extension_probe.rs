//! Choice of the extensions that are requested from a server. Some servers refuse extensions that
//! they offer, or do not answer; the outcome of attempts determines the mode bits.

use super::failure::Suspect;
use crate::{
    model::{ControlConnection, Extensions},
    time::Monotonic,
};

/// Time after which extensions are first requested again from a server that works without them,
/// because it may have been upgraded or may have been starting. No negotiation is made for this
/// purpose alone.
pub(super) const FIRST_RETRY_NS: u64 = 3_600_000_000_000;
/// Limit of that time, which doubles with each failure.
pub(super) const MAX_RETRY_NS: u64 = 24 * FIRST_RETRY_NS;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ask,
    /// Request extensions once more, after a failure that may have been chance.
    AskOnceMore,
    /// Try without extensions, after a failure that extensions may explain.
    TryWithout,
    /// The server works without extensions, known since this time.
    Without(Monotonic),
    /// The server works without extensions; the current attempt requests them again.
    AskAgain,
}

/// Support of extensions by one server, as learnt from attempts; kept while server, mode and key
/// are the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExtensionProbe {
    state: State,
    retry_ns: u64,
}

impl Default for ExtensionProbe {
    fn default() -> Self {
        Self { state: State::default(), retry_ns: FIRST_RETRY_NS }
    }
}

impl ExtensionProbe {
    /// Returns the extensions that the next attempt requests.
    pub(crate) fn extensions(&mut self, config: &ControlConnection, now: Monotonic) -> Extensions {
        if let State::Without(since) = self.state
            && now.since_ns(since) >= self.retry_ns
        {
            self.state = State::AskAgain;
        }
        match self.state {
            State::Ask | State::AskOnceMore | State::AskAgain => {
                let reflect_octets =
                    config.extensions.reflect_octets && config.requests_reflected_octets();
                Extensions { reflect_octets, ..config.extensions }
            }
            State::TryWithout | State::Without(_) => Extensions::NONE,
        }
    }

    /// Returns true if the next attempt omits extensions to find out whether they were the reason.
    pub(super) fn tries_without(&self) -> bool {
        self.state == State::TryWithout
    }

    /// Records that all sessions were started.
    pub(super) fn record_success(&mut self, now: Monotonic) {
        self.state = match self.state {
            State::Ask | State::AskOnceMore => State::Ask,
            State::TryWithout => State::Without(now),
            State::Without(since) => State::Without(since),
            State::AskAgain => {
                self.retry_ns = FIRST_RETRY_NS;
                State::Ask
            }
        };
    }

    /// Records that the attempt failed.
    pub(super) fn record_failure(&mut self, suspect: &Suspect, now: Monotonic) {
        self.state = match (self.state, suspect) {
            (State::Ask | State::AskOnceMore, Suspect::ExtensionsLikely)
            | (State::AskOnceMore, Suspect::ExtensionsPossibly) => State::TryWithout,
            (State::Ask, Suspect::ExtensionsPossibly) => State::AskOnceMore,
            // The failure has another reason than extensions.
            (State::TryWithout, _) => State::Ask,
            (State::AskAgain, Suspect::ExtensionsLikely | Suspect::ExtensionsPossibly) => {
                self.retry_ns = (self.retry_ns * 2).min(MAX_RETRY_NS);
                State::Without(now)
            }
            (other, _) => other,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Monotonic = Monotonic(5);

    fn after(suspects: &[Suspect]) -> ExtensionProbe {
        let mut probe = ExtensionProbe::default();
        suspects.iter().for_each(|suspect| probe.record_failure(suspect, NOW));
        probe
    }

    #[test]
    fn a_refusal_is_stored_and_a_chance_failure_is_not() {
        assert_eq!(after(&[Suspect::ExtensionsLikely]).state, State::TryWithout);
        assert_eq!(after(&[Suspect::ExtensionsPossibly]).state, State::AskOnceMore);
        let twice = [Suspect::ExtensionsPossibly, Suspect::ExtensionsPossibly];
        assert_eq!(after(&twice).state, State::TryWithout);
        let other = [Suspect::ExtensionsLikely, Suspect::None];
        assert_eq!(after(&other).state, State::Ask, "it was not the extensions");
        let mut probe = after(&[Suspect::ExtensionsLikely]);
        probe.record_success(NOW);
        assert_eq!(probe.state, State::Without(NOW));
        probe.record_failure(&Suspect::None, NOW);
        assert_eq!(probe.state, State::Without(NOW), "remembered over a loss");
        let mut probe = after(&[Suspect::ExtensionsPossibly]);
        probe.record_success(NOW);
        assert_eq!(probe.state, State::Ask);
    }

    #[test]
    fn extensions_are_retried_after_increasing_times() {
        let config = super::super::tests::config(|_| {});
        let mut probe = after(&[Suspect::ExtensionsLikely]);
        probe.record_success(Monotonic(0));
        let mut now = Monotonic(0);
        for factor in [1, 2, 4, 8, 16, 24, 24] {
            let retry_ns = factor * FIRST_RETRY_NS;
            assert_eq!(probe.extensions(&config, now.plus_ns(retry_ns - 1)), Extensions::NONE);
            now = now.plus_ns(retry_ns);
            assert_ne!(probe.extensions(&config, now), Extensions::NONE);
            probe.record_failure(&Suspect::ExtensionsPossibly, now);
        }
        now = now.plus_ns(MAX_RETRY_NS);
        assert_ne!(probe.extensions(&config, now), Extensions::NONE);
        probe.record_success(now);
        assert_eq!(probe.state, State::Ask);
    }
}
