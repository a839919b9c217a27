//! Division of an octet stream into messages, independent of segment boundaries, with decryption
//! on protected connections.

use crate::wire::{
    Layout,
    crypto::{BLOCK_OCTETS, BadMac, Opener},
};

/// Octets received and not yet handled.
#[derive(Debug, Default)]
pub(super) struct MessageBuffer {
    octets: Vec<u8>,
    /// Incomplete cipher block; always empty without `opener`.
    sealed: Vec<u8>,
    /// Boxed: large and absent in most connections.
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

    /// Starts decryption and authentication, including octets already received.
    pub(super) fn protect(&mut self, opener: Opener) {
        self.opener = Some(Box::new(opener));
        let early = std::mem::take(&mut self.octets);
        self.push(&early);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.octets.is_empty() && self.sealed.is_empty()
    }

    /// Returns the octets that were received without protection and are not yet handled.
    pub(super) fn clear_octets(&self) -> &[u8] {
        &self.octets
    }

    pub(super) fn len(&self) -> usize {
        self.octets.len() + self.sealed.len()
    }

    /// Reads the beginning of the buffer without authentication; `None` if too short.
    pub(super) fn peek<M: Layout>(&self) -> Option<&M> {
        M::read(&self.octets)
    }

    /// Returns the command octet once a whole block is buffered.
    pub(super) fn command(&self) -> Option<u8> {
        self.octets.first().copied().filter(|_| self.octets.len() >= BLOCK_OCTETS)
    }

    /// Removes the next message without authentication; `None` until it is complete.
    pub(super) fn pop_clear<M: Layout>(&mut self) -> Option<M> {
        let message = M::read(&self.octets)?.clone();
        self.octets.drain(..M::SIZE);
        Some(message)
    }

    /// Removes and authenticates the next message; `None` until it is complete.
    pub(super) fn pop<M: Layout>(&mut self) -> Option<Result<M, BadMac>> {
        let message = M::read(&self.octets)?.clone();
        Some(self.pop_octets(M::SIZE)?.map(|_| message))
    }

    /// Removes and authenticates a message of `len` octets; `None` until it is complete.
    pub(super) fn pop_octets(&mut self, len: usize) -> Option<Result<Vec<u8>, BadMac>> {
        if self.octets.len() < len {
            return None;
        }
        let message: Vec<u8> = self.octets.drain(..len).collect();
        let genuine = self.opener.as_mut().map_or(Ok(()), |opener| opener.check(&message));
        Some(genuine.map(|()| message))
    }

    /// Discards everything and returns the number of octets.
    pub(super) fn clear(&mut self) -> usize {
        let octets = self.len();
        self.octets.clear();
        self.sealed.clear();
        octets
    }
}
