//! Headers of test packets (RFC 4656 §4.1.2, RFC 5357 §4.2.1; with SSID RFC 8972 §3).
//! [`super::format`] selects and encrypts them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

/// Header of an open probe.
///
/// ```text
///  0 Sequence Number (4) | 4 Timestamp (8) | 12 Error Estimate (2) | 14 Padding
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SenderPacket {
    /// Sequence Number, counted from 0.
    pub sequence: be::U32,
    /// T1, time of sending.
    pub timestamp: be::U64,
    /// Error Estimate of T1.
    pub error_estimate: be::U16,
}

/// Header of an open reply.
///
/// ```text
///  0 Sequence Number (4) | 4 Timestamp (8) | 12 Error Estimate (2) | 14 SSID (2; TWAMP: MBZ)
/// 16 Receive Timestamp (8) | 24 Sender Sequence Number (4) | 28 Sender Timestamp (8)
/// 36 Sender Error Estimate (2) | 38 MBZ (2) | 40 Sender TTL | 41 Padding
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReflectorPacket {
    /// Count of replies, or the probe's Sequence Number from a stateless reflector.
    pub sequence: be::U32,
    /// T3, time of sending.
    pub timestamp: be::U64,
    /// Error Estimate of T2 and T3.
    pub error_estimate: be::U16,
    /// SSID of the probe in STAMP; zero in TWAMP.
    pub ssid: be::U16,
    /// T2, time of reception.
    pub receive_timestamp: be::U64,
    /// Sequence Number of the probe.
    pub sender_sequence: be::U32,
    /// T1 of the probe.
    pub sender_timestamp: be::U64,
    /// Error Estimate of the probe.
    pub sender_error_estimate: be::U16,
    mbz: [u8; 2],
    /// TTL or hop limit of the received probe; 255 if unknown.
    pub sender_ttl: u8,
}

/// Header of a probe in authenticated and encrypted mode, before the HMAC.
///
/// ```text
///  0 Sequence Number (4) | 4 MBZ (12) | 16 Timestamp (8) | 24 Error Estimate (2)
/// 26 SSID (2; TWAMP: MBZ) | 28 MBZ (4)
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ProtectedSenderPacket {
    /// Sequence Number, counted from 0.
    pub sequence: be::U32,
    mbz: [u8; 12],
    /// T1, time of sending.
    pub timestamp: be::U64,
    /// Error Estimate of T1.
    pub error_estimate: be::U16,
    /// SSID in STAMP; zero in TWAMP.
    pub ssid: be::U16,
    mbz_2: [u8; 4],
}

/// Header of a reply in authenticated and encrypted mode, before the HMAC.
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
    /// Sequence Number as in [`ReflectorPacket`].
    pub sequence: be::U32,
    mbz: [u8; 12],
    /// T3, time of sending.
    pub timestamp: be::U64,
    /// Error Estimate of T2 and T3.
    pub error_estimate: be::U16,
    /// SSID of the probe in STAMP; zero in TWAMP.
    pub ssid: be::U16,
    mbz_2: [u8; 4],
    /// T2, time of reception.
    pub receive_timestamp: be::U64,
    mbz_3: [u8; 8],
    /// Sequence Number of the probe.
    pub sender_sequence: be::U32,
    mbz_4: [u8; 12],
    /// T1 of the probe.
    pub sender_timestamp: be::U64,
    /// Error Estimate of the probe.
    pub sender_error_estimate: be::U16,
    mbz_5: [u8; 6],
    /// TTL or hop limit of the received probe; 255 if unknown.
    pub sender_ttl: u8,
    /// TOS or traffic class of the received probe (RFC 7750); otherwise zero.
    pub sender_tos: u8,
    mbz_6: [u8; 14],
}

const _: () = assert!(size_of::<SenderPacket>() == 14);
const _: () = assert!(size_of::<ReflectorPacket>() == 41);
const _: () = assert!(size_of::<ProtectedSenderPacket>() == 32);
const _: () = assert!(size_of::<ProtectedReflectorPacket>() == 96);
