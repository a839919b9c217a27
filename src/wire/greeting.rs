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
    /// Modes offered.
    pub modes: be::U32,
    /// Random.
    pub challenge: [u8; 16],
    /// Random, independent of everything else.
    pub salt: [u8; 16],
    /// PBKDF2 iterations.
    pub count: be::U32,
    mbz: [u8; 12],
}

impl ServerGreeting {
    /// A greeting that offers `modes`.
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
    /// Mode chosen.
    pub mode: be::U32,
    key_id: [u8; 80],
    token: [u8; 64],
    client_iv: [u8; 16],
}

impl SetUpResponse {
    /// The answer that chooses a mode without keys.
    pub fn unauthenticated(mode: u32) -> Self {
        Self { mode: mode.into(), key_id: [0; 80], token: [0; 64], client_iv: [0; 16] }
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
    /// Accept value.
    pub accept: u8,
    server_iv: [u8; 16],
    /// NTP timestamp of the start of this server; zero where refused.
    pub start_time: be::U64,
    mbz_2: [u8; 8],
}

impl ServerStart {
    /// Without keys.
    pub fn unauthenticated(accept: u8, start_time: u64) -> Self {
        Self {
            mbz: [0; 15],
            accept,
            server_iv: [0; 16],
            start_time: start_time.into(),
            mbz_2: [0; 8],
        }
    }
}

const _: () = assert!(size_of::<ServerGreeting>() == 64);
const _: () = assert!(size_of::<SetUpResponse>() == 164);
const _: () = assert!(size_of::<ServerStart>() == 48);
