//! Start-Sessions, Start-Ack and Stop-Sessions (RFC 5357 §3.7, §3.8).

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be,
};

use super::codes::Command;

/// Start-Sessions: `0 Command = 2 | 1 MBZ (15) | 16 HMAC (16)`.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct StartSessions {
    /// Command number, always 2.
    pub command: u8,
    mbz: [u8; 15],
    hmac: [u8; 16],
}

impl StartSessions {
    /// Creates the command with a zero HMAC.
    pub fn new() -> Self {
        let mut message = Self::new_zeroed();
        message.command = Command::START_SESSIONS.0;
        message
    }
}

impl Default for StartSessions {
    fn default() -> Self {
        Self::new()
    }
}

/// Start-Ack: `0 Accept | 1 MBZ (15) | 16 HMAC (16)`.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct StartAck {
    /// Accept value of all sessions.
    pub accept: u8,
    mbz: [u8; 15],
    hmac: [u8; 16],
}

impl StartAck {
    /// Creates the acknowledgement with a zero HMAC.
    pub fn new(accept: u8) -> Self {
        let mut message = Self::new_zeroed();
        message.accept = accept;
        message
    }
}

/// Stop-Sessions: `0 Command = 3 | 1 Accept | 2 MBZ (2) | 4 Number (4) | 8 MBZ (8) | 16 HMAC (16)`.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct StopSessions {
    /// Command number, always 3.
    pub command: u8,
    /// 0 for a normal end.
    pub accept: u8,
    mbz: [u8; 2],
    /// Sessions accepted and not yet stopped.
    pub sessions: be::U32,
    mbz_2: [u8; 8],
    hmac: [u8; 16],
}

impl StopSessions {
    /// Creates the command with a zero HMAC.
    pub fn new(accept: u8, sessions: u32) -> Self {
        let mut message = Self::new_zeroed();
        message.command = Command::STOP_SESSIONS.0;
        message.accept = accept;
        message.sessions = sessions.into();
        message
    }
}

const _: () = assert!(size_of::<StartSessions>() == 32);
const _: () = assert!(size_of::<StartAck>() == 32);
const _: () = assert!(size_of::<StopSessions>() == 32);
