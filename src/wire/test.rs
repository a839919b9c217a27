//! Test packets in unauthenticated mode (RFC 4656 §4.1.2, RFC 5357 §4.2.1).

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
    /// T1, NTP format.
    pub timestamp: be::U64,
    /// Of T1.
    pub error_estimate: be::U16,
}

/// What a Session-Reflector sends, before its padding.
///
/// ```text
///  0 Sequence Number (4) | 4 Timestamp (8) | 12 Error Estimate (2) | 14 MBZ (2)
/// 16 Receive Timestamp (8) | 24 Sender Sequence Number (4) | 28 Sender Timestamp (8)
/// 36 Sender Error Estimate (2) | 38 MBZ (2) | 40 Sender TTL | 41 Padding
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReflectorPacket {
    /// The reflector's own count of replies, or the sender's number where it keeps none.
    pub sequence: be::U32,
    /// T3, NTP format.
    pub timestamp: be::U64,
    /// Of T2 and T3.
    pub error_estimate: be::U16,
    /// Zero.
    pub mbz: [u8; 2],
    /// T2, NTP format.
    pub receive_timestamp: be::U64,
    /// Copy.
    pub sender_sequence: be::U32,
    /// Copy.
    pub sender_timestamp: be::U64,
    /// Copy.
    pub sender_error_estimate: be::U16,
    /// Zero.
    pub mbz_2: [u8; 2],
    /// TTL or hop limit of the packet that is answered; 255 where it cannot be told.
    pub sender_ttl: u8,
}

const _: () = assert!(size_of::<SenderPacket>() == 14);
const _: () = assert!(size_of::<ReflectorPacket>() == 41);

/// Octets of a sender packet without padding.
pub const SENDER_PACKET_OCTETS: usize = size_of::<SenderPacket>();
/// Octets of a reflector packet without padding.
pub const REFLECTOR_PACKET_OCTETS: usize = size_of::<ReflectorPacket>();
