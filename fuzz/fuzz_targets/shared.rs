//! Parts shared by the targets: an input consists of choices followed by pieces with their
//! lengths.

#![allow(dead_code, reason = "each target uses some of it")]

use std::sync::Arc;

use twamp_agent::wire::{
    codes::{Modes, Sid},
    crypto::{Sealer, SessionKeys, StampKey},
    format::{PacketFormat, Protection},
};

pub fn keys() -> SessionKeys {
    SessionKeys::new([0x20; 16], [0x30; 32])
}

pub fn formats() -> Vec<PacketFormat> {
    let mut formats = Vec::new();
    for security in [1, 2, 4, 8] {
        for extensions in [0, 64, 256, 64 | 256] {
            let mode = Modes(security | extensions);
            formats.push(PacketFormat::negotiated(mode, Some(&keys()), Sid([1; 16])));
        }
    }
    let key = Arc::new(StampKey::new(b"secret"));
    for protection in [Protection::StampOpen, Protection::StampAuthenticated(key)] {
        formats.push(PacketFormat { protection, ..PacketFormat::default() });
    }
    formats
}

/// Iterates over the pieces of an input; the octet before each is its length divided by four.
pub fn pieces(mut data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[choice, length], rest) = data.split_first_chunk::<2>()?;
        let length = (usize::from(length) * 4).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        data = rest;
        Some((choice, piece))
    })
}

/// Returns a piece as sent by the peer: sealed if keys are agreed and the choice says so.
pub fn sealed(sealer: &mut Option<Sealer>, choice: u8, piece: &[u8]) -> Vec<u8> {
    let mut octets = piece.to_vec();
    if let Some(sealer) = sealer
        && octets.len() >= 32
        && choice & 1 == 0
    {
        octets.truncate(octets.len() / 16 * 16);
        sealer.seal(&mut octets);
    }
    octets
}
