//! Cuts a stream of octets into messages, however they were cut into segments, and decrypts it
//! where the connection is protected.

use crate::wire::{
    Layout,
    crypto::{BLOCK_OCTETS, BadMac, Opener},
};

/// Octets received and not yet taken as a message.
#[derive(Debug, Default)]
pub(super) struct MessageBuffer {
    octets: Vec<u8>,
    /// Less than a block that waits for the rest to be decrypted; always empty without `opener`.
    sealed: Vec<u8>,
    /// Large, and most connections have none.
    opener: Option<Box<Opener>>,
}

impl MessageBuffer {
    pub(super) fn push(&mut self, octets: &[u8]) {
        let Some(opener) = &mut self.opener else {
            return self.octets.extend_from_slice(octets);
        };
        self.sealed.extend_from_slice(octets);
        let whole = self.sealed.len() / BLOCK_OCTETS * BLOCK_OCTETS;
        opener.decrypt(&mut self.sealed[..whole]);
        self.octets.extend(self.sealed.drain(..whole));
    }

    /// From here on messages are encrypted and have an HMAC; what came already included.
    pub(super) fn protect(&mut self, opener: Opener) {
        self.opener = Some(Box::new(opener));
        let early = std::mem::take(&mut self.octets);
        self.push(&early);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.octets.is_empty() && self.sealed.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.octets.len() + self.sealed.len()
    }

    /// The first octets, if so many are here. They are not yet known to be genuine.
    pub(super) fn peek<M: Layout>(&self) -> Option<&M> {
        M::read(&self.octets)
    }

    /// The first octet, once a whole block is here: it tells what the message is.
    pub(super) fn command(&self) -> Option<u8> {
        self.octets.first().copied().filter(|_| self.octets.len() >= BLOCK_OCTETS)
    }

    /// The next message, if all of it is here, without a look at an HMAC.
    pub(super) fn take_clear<M: Layout>(&mut self) -> Option<M> {
        let message = M::read(&self.octets)?.clone();
        self.octets.drain(..M::SIZE);
        Some(message)
    }

    /// The next message, if all of it is here and genuine.
    pub(super) fn take<M: Layout>(&mut self) -> Option<Result<M, BadMac>> {
        let message = M::read(&self.octets)?.clone();
        Some(self.take_octets(M::SIZE)?.map(|_| message))
    }

    /// The octets of the next message, if all of it is here and genuine.
    pub(super) fn take_octets(&mut self, length: usize) -> Option<Result<Vec<u8>, BadMac>> {
        if self.octets.len() < length {
            return None;
        }
        let message: Vec<u8> = self.octets.drain(..length).collect();
        let genuine = self.opener.as_mut().map_or(Ok(()), |opener| opener.check(&message));
        Some(genuine.map(|()| message))
    }

    /// Forgets everything; returns how much that was.
    pub(super) fn clear(&mut self) -> usize {
        let octets = self.len();
        self.octets.clear();
        self.sealed.clear();
        octets
    }
}
