//! Cuts a stream of octets into messages, however they were cut into segments.

use crate::wire::Layout;

/// Octets received and not yet taken as a message.
#[derive(Debug, Default)]
pub(super) struct MessageBuffer {
    octets: Vec<u8>,
}

impl MessageBuffer {
    pub(super) fn push(&mut self, octets: &[u8]) {
        self.octets.extend_from_slice(octets);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.octets.len()
    }

    pub(super) fn first(&self) -> Option<u8> {
        self.octets.first().copied()
    }

    /// The next message, if all of it is here.
    pub(super) fn take<M: Layout>(&mut self) -> Option<M> {
        let message = M::read(&self.octets)?.clone();
        self.octets.drain(..M::SIZE);
        Some(message)
    }
}
