//! Connection set-up from Set-Up-Response to Server-Start (RFC 4656 §3.1).

use zerocopy::IntoBytes;

use super::{ControlServer, ServerAction, ServerError, State};
use crate::{
    time::Monotonic,
    wire::{
        codes::{Accept, Modes},
        crypto::{Opener, Sealer, TokenKey},
        greeting::{ServerStart, SetUpResponse},
    },
};

impl ControlServer {
    /// Completes [`ServerAction::DeriveKeys`] with the keys of all candidate secrets, or `None`
    /// without capacity. Returns the index of the key of the client.
    pub fn authenticate(
        &mut self,
        candidates: Option<&[TokenKey]>,
        now: Monotonic,
    ) -> Option<usize> {
        let SetUpResponse { token, client_iv, .. } = self.response.take()?;
        let challenge = &self.options.challenge;
        let open = |(index, key): (usize, &TokenKey)| Some((index, key.open(&token, challenge)?));
        // All keys are tried even after a match, so that the duration reveals nothing.
        let found =
            candidates.map(|all| all.iter().enumerate().filter_map(open).collect::<Vec<_>>());
        let (index, keys) = match found.map(|mut keys| keys.pop()) {
            Some(Some(keys)) => keys,
            refused => {
                let busy = refused.is_none();
                let accept = if busy { Accept::TEMPORARY_RESOURCE_LIMIT } else { Accept::FAILURE };
                self.send(&ServerStart::unauthenticated(accept.0, 0));
                self.close(if busy { ServerError::Busy } else { ServerError::BadKey });
                return None;
            }
        };
        let server_iv = self.options.server_iv;
        let mut sealer = Sealer::new(&keys, server_iv);
        let start = ServerStart::protected(server_iv, self.options.start_time.0);
        let mut octets = start.as_bytes().to_vec();
        sealer.seal_part(&mut octets[ServerStart::CLEAR_OCTETS..]);
        self.actions.push_back(ServerAction::Send(octets));
        self.input.protect(Opener::new(&keys, client_iv));
        self.sealer = Some(Box::new(sealer));
        self.keys = Some(keys);
        self.state = State::Request;
        self.advance(now);
        Some(index)
    }

    pub(super) fn set_up(&mut self, response: SetUpResponse) -> Result<(), ServerError> {
        let (chosen, offered) = (Modes(response.mode.get()), self.options.offered);
        if chosen.security().0 == 0 {
            return Err(ServerError::ClientGaveUp);
        }
        if !offered.contains(chosen) || chosen.security().0.count_ones() != 1 {
            self.send(&ServerStart::unauthenticated(Accept::NOT_SUPPORTED.0, 0));
            return Err(ServerError::ModeNotOffered { chosen, offered });
        }
        self.mode = chosen;
        if chosen.is_protected() {
            self.actions.push_back(ServerAction::DeriveKeys {
                key_id: response.key_id().to_vec(),
                salt: self.options.salt,
                count: self.options.count,
            });
            self.response = Some(response);
            self.state = State::Deriving;
        } else {
            let start_time = self.options.start_time.0;
            self.send(&ServerStart::unauthenticated(Accept::OK.0, start_time));
            self.state = State::Request;
        }
        Ok(())
    }
}
