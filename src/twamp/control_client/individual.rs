//! Individual session control (RFC 5938): sessions are started and stopped by SID.

use super::{ClientAction, ClientError, ControlClient, State};
use crate::wire::{
    codes::{Accept, Command, Sid},
    individual::{self, IndividualHeader},
};

impl ControlClient {
    /// Handles one ack of a command; each Accept value has its own ack (RFC 5938 §3.3, §3.5).
    pub(super) fn individual_ack(
        &mut self,
        expected: Command,
    ) -> Option<Result<State, ClientError>> {
        let header: &IndividualHeader = self.input.peek()?;
        let (sessions, accept) = (header.sessions.get() as usize, Accept::received(header.accept));
        if header.command != expected.0 {
            return Some(Err(ClientError::Unexpected(self.input.clear())));
        }
        if sessions == 0 || sessions > self.unacknowledged.len() {
            return Some(Err(ClientError::UnknownSessions(sessions)));
        }
        let message = match self.input.pop_octets(individual::octets(sessions))? {
            Ok(message) => message,
            Err(error) => return Some(Err(error.into())),
        };
        let before = self.unacknowledged.len();
        let named = individual::sids(&message);
        self.unacknowledged.retain(|sid| !named.contains(sid));
        let known = before - self.unacknowledged.len();
        if known != sessions {
            return Some(Err(ClientError::UnknownSessions(sessions.saturating_sub(known))));
        }
        if expected == Command::START_N_ACK && accept != Accept::OK {
            return Some(Err(ClientError::StartRejected(accept)));
        }
        Some(Ok(match (expected, self.unacknowledged.is_empty()) {
            (Command::START_N_ACK, true) => self.all_started(),
            (_, true) if self.renegotiating => self.request(0),
            (_, true) => {
                self.actions.push_back(ClientAction::Stopped);
                State::Stopped
            }
            (_, false) => self.state,
        }))
    }

    pub(super) fn send_individual(&mut self, command: Command, sids: Vec<Sid>) {
        let message = individual::message(command, 0, &sids);
        self.unacknowledged = sids;
        self.send_octets(message);
    }
}
