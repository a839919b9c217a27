//! Individual session control (RFC 5938 §3): commands that name their sessions.
//!
//! ```text
//!  0 Command | 1 Accept (acks) or MBZ | 2 MBZ (10) | 12 Number of Sessions (4) | 16 SIDs (16 each)
//! 16 + 16n HMAC (16)
//! ```

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be,
};

use super::{
    codes::{Command, Sid},
    crypto::BLOCK_OCTETS,
};

/// Message header before the SIDs.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IndividualHeader {
    /// Command number, 7 to 10.
    pub command: u8,
    /// Accept value of all sessions in an ack; zero in commands.
    pub accept: u8,
    mbz: [u8; 10],
    /// Number of SIDs that follow.
    pub sessions: be::U32,
}

const _: () = assert!(size_of::<IndividualHeader>() == BLOCK_OCTETS);

/// Returns the length in octets of a message with this number of sessions.
pub fn octets(sessions: usize) -> usize {
    size_of::<IndividualHeader>() + (sessions + 1) * BLOCK_OCTETS
}

/// Creates a message with a zero HMAC.
pub fn message(command: Command, accept: u8, sids: &[Sid]) -> Vec<u8> {
    let mut header = IndividualHeader::new_zeroed();
    header.command = command.0;
    header.accept = accept;
    header.sessions = (sids.len() as u32).into();
    let mut message = Vec::with_capacity(octets(sids.len()));
    message.extend_from_slice(header.as_bytes());
    message.extend(sids.iter().flat_map(|sid| sid.0));
    message.resize(octets(sids.len()), 0);
    message
}

/// Returns the SIDs in a complete message.
pub fn sids(message: &[u8]) -> Vec<Sid> {
    let sids = message.get(size_of::<IndividualHeader>()..message.len() - BLOCK_OCTETS);
    let (sids, _) = sids.unwrap_or_default().as_chunks::<BLOCK_OCTETS>();
    sids.iter().map(|sid| Sid(*sid)).collect()
}
