//! Headers of test packets (RFC 4656 §4.1.2, RFC 5357 §4.2.1; with SSID RFC 8972 §3). Which of them
//! a session uses, and what is encrypted of them, is in [`super::format`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

/// What a Session-Sender sends, before its padding.
///
/// ```text
///  0 Sequence Number (4) | 4 Timestamp (8) | 12 Error Estimate (2) | 14 Padding
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SenderPacket {
    /// From 0, one more for each packet.
    pub sequence: be::U32,
    /// T1.
    pub timestamp: be::U64,
    /// Of T1.
    pub error_estimate: be::U16,
}

/// What a Session-Reflector sends, before its padding.
///
/// ```text
///  0 Sequence Number (4) | 4 Timestamp (8) | 12 Error Estimate (2) | 14 SSID (2; TWAMP: MBZ)
/// 16 Receive Timestamp (8) | 24 Sender Sequence Number (4) | 28 Sender Timestamp (8)
/// 36 Sender Error Estimate (2) | 38 MBZ (2) | 40 Sender TTL | 41 Padding
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReflectorPacket {
    /// The reflector's own count of replies, or the sender's number where it keeps none.
    pub sequence: be::U32,
    /// T3.
    pub timestamp: be::U64,
    /// Of T2 and T3.
    pub error_estimate: be::U16,
    /// Copy, in STAMP; zero in TWAMP.
    pub ssid: be::U16,
    /// T2.
    pub receive_timestamp: be::U64,
    /// Copy.
    pub sender_sequence: be::U32,
    /// Copy.
    pub sender_timestamp: be::U64,
    /// Copy.
    pub sender_error_estimate: be::U16,
    /// Zero.
    pub mbz: [u8; 2],
    /// TTL or hop limit of the packet that is answered; 255 where it cannot be told.
    pub sender_ttl: u8,
}

/// What a Session-Sender sends in authenticated and encrypted mode, before the HMAC.
///
/// ```text
///  0 Sequence Number (4) | 4 MBZ (12) | 16 Timestamp (8) | 24 Error Estimate (2)
/// 26 SSID (2; TWAMP: MBZ) | 28 MBZ (4)
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ProtectedSenderPacket {
    /// From 0, one more for each packet.
    pub sequence: be::U32,
    /// Zero.
    pub mbz: [u8; 12],
    /// T1.
    pub timestamp: be::U64,
    /// Of T1.
    pub error_estimate: be::U16,
    /// In STAMP; zero in TWAMP.
    pub ssid: be::U16,
    /// Zero.
    pub mbz_2: [u8; 4],
}

/// What a Session-Reflector sends in authenticated and encrypted mode, before the HMAC.
///
/// ```text
///  0 Sequence Number (4) | 4 MBZ (12) | 16 Timestamp (8) | 24 Error Estimate (2)
/// 26 SSID (2; TWAMP: MBZ) | 28 MBZ (4) | 32 Receive Timestamp (8) | 40 MBZ (8)
/// 48 Sender Sequence Number (4) | 52 MBZ (12) | 64 Sender Timestamp (8)
/// 72 Sender Error Estimate (2) | 74 MBZ (6) | 80 Sender TTL | 81 DSCP and ECN (RFC 7750) | 82 MBZ
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ProtectedReflectorPacket {
    /// As in [`ReflectorPacket`].
    pub sequence: be::U32,
    /// Zero.
    pub mbz: [u8; 12],
    /// T3.
    pub timestamp: be::U64,
    /// Of T2 and T3.
    pub error_estimate: be::U16,
    /// Copy, in STAMP; zero in TWAMP.
    pub ssid: be::U16,
    /// Zero.
    pub mbz_2: [u8; 4],
    /// T2.
    pub receive_timestamp: be::U64,
    /// Zero.
    pub mbz_3: [u8; 8],
    /// Copy.
    pub sender_sequence: be::U32,
    /// Zero.
    pub mbz_4: [u8; 12],
    /// Copy.
    pub sender_timestamp: be::U64,
    /// Copy.
    pub sender_error_estimate: be::U16,
    /// Zero.
    pub mbz_5: [u8; 6],
    /// TTL or hop limit of the packet that is answered; 255 where it cannot be told.
    pub sender_ttl: u8,
    /// TOS or traffic class of the packet that is answered, with RFC 7750; else zero.
    pub sender_tos: u8,
    /// Zero.
    pub mbz_6: [u8; 14],
}

const _: () = assert!(size_of::<SenderPacket>() == 14);
const _: () = assert!(size_of::<ReflectorPacket>() == 41);
const _: () = assert!(size_of::<ProtectedSenderPacket>() == 32);
const _: () = assert!(size_of::<ProtectedReflectorPacket>() == 96);
