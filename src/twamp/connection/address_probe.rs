//! Addresses in session requests. Zeros stand for the ends of the control connection (RFC 5357
//! §3.5); some servers take the zeros for addresses, and refuse the session or reflect nothing.

use super::{
    extension_probe::FIRST_RETRY_NS,
    failure::{Failure, Suspect},
    progress::SessionProgress,
};
use crate::{
    model::{ControlConnection, FailureCause, SendAddresses},
    time::Monotonic,
    wire::codes::Accept,
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Zeros,
    /// Addresses are tried after zeros failed.
    Trying {
        /// True if the server refused zeros explicitly. Otherwise it reported a limit, did not
        /// answer, or accepted zeros and the first tests were lost.
        were_refused: bool,
    },
    /// The server is known to reflect with addresses.
    Addresses,
}

/// Knowledge about the addresses that one server needs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AddressProbe {
    state: State,
    /// True if a session requested with zeros was answered once. Later silence then has another
    /// reason.
    zeros_worked: bool,
    /// Time at which addresses did not end the silence either. The path is then its reason.
    addresses_failed_at: Option<Monotonic>,
}

impl AddressProbe {
    /// Returns true when requests name the ends of the control connection.
    pub(super) fn sends_addresses(&self, config: &ControlConnection) -> bool {
        match config.send_addresses {
            SendAddresses::Always => true,
            SendAddresses::Never => false,
            SendAddresses::Auto => self.state != State::Zeros,
        }
    }

    /// Records a failed attempt. After a refusal of the sessions, the next attempt sends addresses
    /// instead of zeros or the reverse.
    pub(super) fn record_failure(&mut self, failure: &Failure) {
        let were_refused = is_refusal(failure);
        if were_refused || may_be_refusal(failure) {
            self.state = match self.state {
                State::Zeros => State::Trying { were_refused },
                State::Trying { .. } | State::Addresses => State::Zeros,
            };
        }
    }

    /// Evaluates the first tests of the running sessions. Returns true if the sessions must be
    /// requested again, with addresses instead of zeros or the reverse.
    pub(super) fn must_switch<'a>(
        &mut self,
        config: &ControlConnection,
        sessions: impl Iterator<Item = &'a SessionProgress> + Clone,
        now: Monotonic,
    ) -> bool {
        if config.send_addresses != SendAddresses::Auto {
            return false;
        }
        if sessions.clone().any(SessionProgress::has_reply) {
            match self.state {
                State::Zeros => self.zeros_worked = true,
                State::Trying { .. } | State::Addresses => self.state = State::Addresses,
            }
            return false;
        }
        if !sessions.clone().all(SessionProgress::lost_first_test) || sessions.count() == 0 {
            return false;
        }
        let is_too_early =
            self.addresses_failed_at.is_some_and(|since| now.since_ns(since) < FIRST_RETRY_NS);
        match self.state {
            State::Zeros if !is_too_early && !self.zeros_worked => {
                self.state = State::Trying { were_refused: false }
            }
            State::Trying { were_refused: false } => {
                self.state = State::Zeros;
                self.addresses_failed_at = Some(now);
            }
            State::Zeros | State::Trying { were_refused: true } | State::Addresses => return false,
        }
        true
    }
}

/// Returns true for failures of servers that cannot bind a socket to zeros: they report a limit, end
/// the connection or do not answer.
fn may_be_refusal(failure: &Failure) -> bool {
    let limits = [Accept::PERMANENT_RESOURCE_LIMIT, Accept::TEMPORARY_RESOURCE_LIMIT];
    failure.suspect == Suspect::Addresses
        || failure.cause == FailureCause::Rejected && limits.contains(&Accept(failure.accept_code))
}

/// Returns true when a server refuses sessions for a reason other than its limits.
fn is_refusal(failure: &Failure) -> bool {
    let refusals = [Accept::FAILURE, Accept::INTERNAL_ERROR, Accept::NOT_SUPPORTED];
    failure.cause == FailureCause::Rejected && refusals.contains(&Accept(failure.accept_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(accept: Accept) -> Failure {
        Failure { accept_code: accept.0, ..Failure::new(FailureCause::Rejected, "refused") }
    }

    fn tested(answers: &[bool]) -> SessionProgress {
        let mut progress = SessionProgress::default();
        answers.iter().for_each(|answered| {
            progress.test_ended(Some(*answered), 1, None, Monotonic(0));
        });
        progress
    }

    #[test]
    fn addresses_are_tried_after_a_refusal_and_dropped_if_they_are_refused_too() {
        let config = super::super::tests::config(|_| {});
        let mut probe = AddressProbe::default();
        probe.record_failure(&Failure::closed_by_server());
        assert!(!probe.sends_addresses(&config), "not at a request");
        probe.record_failure(&refused(Accept::NOT_SUPPORTED));
        assert!(probe.sends_addresses(&config));
        probe.record_failure(&refused(Accept::NOT_SUPPORTED));
        assert!(!probe.sends_addresses(&config));
        probe.record_failure(&refused(Accept::FAILURE));
        assert!(!probe.must_switch(&config, [&tested(&[false])].into_iter(), Monotonic(0)));
        assert!(probe.sends_addresses(&config), "zeros would be refused");
        assert!(!probe.must_switch(&config, [&tested(&[true])].into_iter(), Monotonic(0)));
        probe.record_failure(&Failure::closed_by_server());
        assert!(probe.sends_addresses(&config), "remembered over a loss");
    }

    #[test]
    fn addresses_alternate_with_zeros_while_servers_give_another_reason_or_none() {
        let config = super::super::tests::config(|_| {});
        let unanswered = Failure { suspect: Suspect::Addresses, ..Failure::closed_by_server() };
        for failure in [refused(Accept::TEMPORARY_RESOURCE_LIMIT), unanswered] {
            let mut probe = AddressProbe::default();
            for sent in [true, false, true] {
                probe.record_failure(&failure);
                assert_eq!(probe.sends_addresses(&config), sent);
            }
            // Accepted, but the addresses lead nowhere, as behind NAT.
            let (lost, now) = (tested(&[false]), Monotonic(0));
            assert!(probe.must_switch(&config, [&lost].into_iter(), now));
            assert!(!probe.sends_addresses(&config));
        }
    }

    #[test]
    fn addresses_are_tried_once_when_all_first_tests_are_lost() {
        let config = super::super::tests::config(|_| {});
        let mut probe = AddressProbe::default();
        let (lost, answered, begun) = (tested(&[false]), tested(&[true, false]), tested(&[]));
        let due = |probe: &mut AddressProbe, sessions: &[&SessionProgress], now: u64| {
            probe.must_switch(&config, sessions.iter().copied(), Monotonic(now))
        };
        assert!(!due(&mut probe, &[], 0));
        assert!(!due(&mut probe, &[&lost, &begun], 0), "a first test has not ended");
        assert!(due(&mut probe, &[&lost], 1));
        assert!(probe.sends_addresses(&config));
        assert!(due(&mut probe, &[&lost], 2), "in vain");
        assert!(!probe.sends_addresses(&config));
        assert!(!due(&mut probe, &[&lost], 3), "not again at once");
        assert!(due(&mut probe, &[&lost], 2 + FIRST_RETRY_NS));
        assert!(!due(&mut probe, &[&answered], 3 + FIRST_RETRY_NS));
        assert!(!due(&mut probe, &[&lost], 4 + FIRST_RETRY_NS), "it has worked with addresses");
        assert!(probe.sends_addresses(&config));
    }

    #[test]
    fn silence_after_a_reply_has_another_reason() {
        let config = super::super::tests::config(|_| {});
        let mut probe = AddressProbe::default();
        assert!(!probe.must_switch(&config, [&tested(&[true])].into_iter(), Monotonic(0)));
        assert!(!probe.must_switch(&config, [&tested(&[false])].into_iter(), Monotonic(1)));
        assert!(!probe.sends_addresses(&config));
    }

    #[test]
    fn a_configured_choice_is_kept() {
        for (choice, sent) in [(SendAddresses::Always, true), (SendAddresses::Never, false)] {
            let mut config = (*super::super::tests::config(|_| {})).clone();
            config.send_addresses = choice;
            let mut probe = AddressProbe::default();
            assert_eq!(probe.sends_addresses(&config), sent);
            probe.record_failure(&refused(Accept::NOT_SUPPORTED));
            let lost = tested(&[false]);
            assert!(!probe.must_switch(&config, [&lost].into_iter(), Monotonic(0)));
            assert_eq!(probe.sends_addresses(&config), sent);
        }
    }
}
