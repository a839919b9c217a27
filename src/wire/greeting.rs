//! Connection set-up (RFC 4656 §3.1).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

/// Server-Greeting.
///
/// ```text
///  0 Unused (12) | 12 Modes (4) | 16 Challenge (16) | 32 Salt (16) | 48 Count (4) | 52 MBZ (12)
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ServerGreeting {
    unused: [u8; 12],
    /// Bits of the offered modes.
    pub modes: be::U32,
    /// Random octets to be returned in the Token.
    pub challenge: [u8; 16],
    /// Random octets for the key derivation.
    pub salt: [u8; 16],
    /// Iteration count of PBKDF2.
    pub count: be::U32,
    mbz: [u8; 12],
}

impl ServerGreeting {
    /// Creates a greeting that offers `modes`.
    pub fn new(modes: u32, challenge: [u8; 16], salt: [u8; 16], count: u32) -> Self {
        Self {
            unused: [0; 12],
            modes: modes.into(),
            challenge,
            salt,
            count: count.into(),
            mbz: [0; 12],
        }
    }
}

/// Set-Up-Response.
///
/// ```text
///  0 Mode (4) | 4 KeyID (80) | 84 Token (64) | 148 Client-IV (16)
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SetUpResponse {
    /// Bits of the chosen mode.
    pub mode: be::U32,
    key_id: [u8; KEY_ID_OCTETS],
    /// Encrypted challenge and session keys.
    pub token: [u8; 64],
    /// IV of all data that the client sends after this message.
    pub client_iv: [u8; 16],
}

/// Length of the KeyID field; a KeyID may fill it without a terminator.
pub const KEY_ID_OCTETS: usize = 80;

impl SetUpResponse {
    /// Creates a response that selects unauthenticated mode.
    pub fn unauthenticated(mode: u32) -> Self {
        Self { mode: mode.into(), key_id: [0; KEY_ID_OCTETS], token: [0; 64], client_iv: [0; 16] }
    }

    /// Creates a response that selects a mode with keys. A `key_id` of more than 80 octets is
    /// truncated.
    pub fn protected(mode: u32, key_id: &[u8], token: [u8; 64], client_iv: [u8; 16]) -> Self {
        let mut response = Self { mode: mode.into(), key_id: [0; KEY_ID_OCTETS], token, client_iv };
        let octets = key_id.len().min(KEY_ID_OCTETS);
        response.key_id[..octets].copy_from_slice(&key_id[..octets]);
        response
    }

    /// Returns the KeyID without trailing zeros.
    pub fn key_id(&self) -> &[u8] {
        let end = self.key_id.iter().rposition(|octet| *octet != 0).map_or(0, |last| last + 1);
        &self.key_id[..end]
    }
}

/// Server-Start.
///
/// ```text
///  0 MBZ (15) | 15 Accept (1) | 16 Server-IV (16) | 32 Start-Time (8) | 40 MBZ (8)
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ServerStart {
    mbz: [u8; 15],
    /// Accept value of the connection.
    pub accept: u8,
    /// IV of all data that the server sends from octet 32 of this message on.
    pub server_iv: [u8; 16],
    /// NTP timestamp of the start of this server; zero if refused.
    pub start_time: be::U64,
    mbz_2: [u8; 8],
}

impl ServerStart {
    /// Octets before the encrypted part in modes with keys.
    pub const CLEAR_OCTETS: usize = 32;

    /// Creates a message without keys.
    pub fn unauthenticated(accept: u8, start_time: u64) -> Self {
        Self {
            mbz: [0; 15],
            accept,
            server_iv: [0; 16],
            start_time: start_time.into(),
            mbz_2: [0; 8],
        }
    }

    /// Creates an acceptance in a mode with keys; its last block is not yet encrypted.
    pub fn protected(server_iv: [u8; 16], start_time: u64) -> Self {
        Self { server_iv, ..Self::unauthenticated(0, start_time) }
    }
}

const _: () = assert!(size_of::<ServerGreeting>() == 64);
const _: () = assert!(size_of::<SetUpResponse>() == 164);
const _: () = assert!(size_of::<ServerStart>() == 48);
