//! Layout of the test packets of a session: header, encryption and start of the padding.
//!
//! One format serves both directions and both ends of a session.

use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use super::{
    Layout,
    codes::{Modes, Sid},
    crypto::{BLOCK_OCTETS, SessionKeys, StampKey, TestKeys},
    test::{ProtectedReflectorPacket, ProtectedSenderPacket, ReflectorPacket, SenderPacket},
};
use crate::time::ErrorEstimate;

/// Octets of a STAMP packet without authentication, in both directions (RFC 8762 §4.2.1).
pub const STAMP_OCTETS: usize = 44;
/// Octets of a reply with DSCP and ECN in open mode (RFC 7750 §2.2.1, figure 2).
const DSCP_ECN_OCTETS: usize = 44;
/// Octets of a protected probe of TWAMP.
const PROTECTED_PROBE_OCTETS: usize = size_of::<ProtectedSenderPacket>() + BLOCK_OCTETS;
/// Octets of the shortest other protected packet.
pub const PROTECTED_OCTETS: usize = size_of::<ProtectedReflectorPacket>() + BLOCK_OCTETS;
/// Offset of T3 in an open reply, and in a protected one.
const T3_AT: [usize; 2] = [4, 16];
/// Offset of the Sender Timestamp in an open reply, and in a protected one.
const SENDER_TIMESTAMP_AT: [usize; 2] = [28, 64];
/// Octets of a reply up to the Sender Error Estimate.
const REPLY_WITHOUT_TTL_OCTETS: usize = 38;
const SENDER_TTL_AT: usize = 40;
/// Sender TTL of a reflector that does not know it (RFC 5357 §4.2.1).
const TTL_NOT_KNOWN: u8 = 255;

/// Protection of the test packets of a session.
#[derive(Clone, Debug, Default)]
pub enum Protection {
    /// No protection: unauthenticated and mixed mode (RFC 5357 §4.2.1, RFC 5618).
    #[default]
    Open,
    /// The block with the Sequence Number is encrypted and covered by the HMAC.
    Authenticated(Arc<TestKeys>),
    /// The whole header is encrypted and covered by the HMAC.
    Encrypted(Arc<TestKeys>),
    /// STAMP without authentication (RFC 8762 §4.2.1).
    StampOpen,
    /// STAMP with an HMAC over the header (RFC 8762 §4.2.2).
    StampAuthenticated(Arc<StampKey>),
}

/// Format of the test packets of one session.
#[derive(Clone, Debug, Default)]
pub struct PacketFormat {
    /// Protection of probes and replies.
    pub protection: Protection,
    /// True if probes are padded to the length of a reply's header, so that the padding keeps its
    /// offset (RFC 6038 §5).
    pub symmetrical: bool,
    /// True if replies carry the TOS of the probe (RFC 7750).
    pub dscp_ecn: bool,
}

/// Header fields of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeHeader {
    /// Sequence Number of the probe.
    pub sequence: u32,
    /// T1 as it is on the wire; the Error Estimate names the format.
    pub timestamp: u64,
    /// Error Estimate of T1.
    pub error_estimate: ErrorEstimate,
    /// STAMP session identifier; 0 in TWAMP.
    pub ssid: u16,
}

/// Header fields of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// Sequence Number of the reply.
    pub sequence: u32,
    /// T3 as it is on the wire; the Error Estimate names the format of T2 and T3.
    pub timestamp: u64,
    /// Error Estimate of T2 and T3.
    pub error_estimate: ErrorEstimate,
    /// T2 as it is on the wire.
    pub receive_timestamp: u64,
    /// Header of the probe as received. The reply carries its SSID.
    pub probe: ProbeHeader,
    /// TTL or hop limit of the received probe.
    pub sender_ttl: u8,
    /// TOS of the received probe (RFC 7750); `None` unless negotiated.
    pub sender_tos: Option<u8>,
}

/// Reason why a packet cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Shorter than its header.
    TooShort,
    /// The HMAC does not match.
    BadMac,
}

impl PacketFormat {
    /// Returns the format of unauthenticated TWAMP without extensions.
    pub fn open() -> Self {
        Self::default()
    }

    /// Returns the format of a negotiated mode, with the keys of the control connection.
    pub fn negotiated(mode: Modes, keys: Option<&SessionKeys>, sid: Sid) -> Self {
        let test_keys = || keys.map(|keys| Arc::new(keys.test_keys(sid)));
        let protection = match mode.security() {
            Modes::AUTHENTICATED => test_keys().map(Protection::Authenticated),
            Modes::ENCRYPTED => test_keys().map(Protection::Encrypted),
            _ => None,
        };
        Self {
            protection: protection.unwrap_or_default(),
            symmetrical: mode.contains(Modes::SYMMETRICAL_SIZE),
            dscp_ecn: mode.contains(Modes::DSCP_ECN_MONITORING),
        }
    }

    /// Returns the octets of the shortest probe.
    pub fn probe_octets(&self) -> usize {
        if self.symmetrical { self.reply_octets() } else { self.probe_header_octets() }
    }

    /// Returns the octets of the shortest reply.
    pub fn reply_octets(&self) -> usize {
        match self.protection {
            Protection::Open if self.dscp_ecn => DSCP_ECN_OCTETS,
            Protection::Open => size_of::<ReflectorPacket>(),
            Protection::StampOpen => STAMP_OCTETS,
            Protection::Authenticated(_)
            | Protection::Encrypted(_)
            | Protection::StampAuthenticated(_) => PROTECTED_OCTETS,
        }
    }

    /// Returns the octets of a probe before its padding or TLVs, without symmetrical size.
    pub fn probe_header_octets(&self) -> usize {
        match self.protection {
            Protection::Open => size_of::<SenderPacket>(),
            Protection::StampOpen => STAMP_OCTETS,
            Protection::Authenticated(_) | Protection::Encrypted(_) => PROTECTED_PROBE_OCTETS,
            Protection::StampAuthenticated(_) => PROTECTED_OCTETS,
        }
    }

    /// Writes and protects the header of a probe. `packet` must hold [`Self::probe_octets`]; its
    /// padding is not changed.
    pub fn write_probe(&self, probe: &ProbeHeader, packet: &mut [u8]) {
        if self.symmetrical {
            packet[self.probe_header_octets()..self.probe_octets()].fill(0);
        }
        match &self.protection {
            Protection::Open | Protection::StampOpen => {
                let header = SenderPacket {
                    sequence: probe.sequence.into(),
                    timestamp: probe.timestamp.into(),
                    error_estimate: probe.error_estimate.0.into(),
                };
                packet[..size_of::<SenderPacket>()].copy_from_slice(header.as_bytes());
                if matches!(self.protection, Protection::StampOpen) {
                    packet[14..16].copy_from_slice(&probe.ssid.to_be_bytes());
                    packet[16..STAMP_OCTETS].fill(0);
                }
            }
            Protection::Authenticated(_)
            | Protection::Encrypted(_)
            | Protection::StampAuthenticated(_) => {
                let mut header = ProtectedSenderPacket::new_zeroed();
                header.sequence = probe.sequence.into();
                header.timestamp = probe.timestamp.into();
                header.error_estimate = probe.error_estimate.0.into();
                header.ssid = probe.ssid.into();
                packet[..size_of::<ProtectedSenderPacket>()].copy_from_slice(header.as_bytes());
            }
        }
        match &self.protection {
            Protection::Open | Protection::StampOpen => {}
            Protection::Authenticated(keys) => keys.seal(packet, 16, 32),
            Protection::Encrypted(keys) => keys.seal(packet, 32, 32),
            Protection::StampAuthenticated(key) => {
                packet[32..96].fill(0);
                sign(key, packet);
            }
        }
    }

    /// Verifies and reads a probe.
    pub fn read_probe(&self, packet: &[u8]) -> Result<ProbeHeader, Unreadable> {
        if packet.len() < self.probe_octets() {
            return Err(Unreadable::TooShort);
        }
        let mut plain = [0; PROTECTED_PROBE_OCTETS];
        let octets = match &self.protection {
            Protection::Open | Protection::StampOpen => {
                let header = SenderPacket::read(packet).ok_or(Unreadable::TooShort)?;
                let stamp = matches!(self.protection, Protection::StampOpen);
                return Ok(ProbeHeader {
                    sequence: header.sequence.get(),
                    timestamp: header.timestamp.get(),
                    error_estimate: ErrorEstimate(header.error_estimate.get()),
                    ssid: if stamp { u16::from_be_bytes([packet[14], packet[15]]) } else { 0 },
                });
            }
            Protection::Authenticated(keys) => open(keys, packet, &mut plain, 16, 32)?,
            Protection::Encrypted(keys) => open(keys, packet, &mut plain, 32, 32)?,
            Protection::StampAuthenticated(key) => verify(key, packet)?,
        };
        let header = ProtectedSenderPacket::read(octets).ok_or(Unreadable::TooShort)?;
        Ok(ProbeHeader {
            sequence: header.sequence.get(),
            timestamp: header.timestamp.get(),
            error_estimate: ErrorEstimate(header.error_estimate.get()),
            ssid: header.ssid.get(),
        })
    }

    /// Writes the header of a reply except T3 and the fields that depend on it, which
    /// [`Self::finish_reply`] writes. `packet` must hold [`Self::reply_octets`]; the timestamp of
    /// `reply` is ignored.
    pub fn write_reply(&self, reply: &ReplyHeader, packet: &mut [u8]) {
        let probe = &reply.probe;
        let tos = reply.sender_tos.filter(|_| self.dscp_ecn).unwrap_or(0);
        match &self.protection {
            Protection::Open | Protection::StampOpen => {
                let mut header = ReflectorPacket::new_zeroed();
                header.sequence = reply.sequence.into();
                header.error_estimate = reply.error_estimate.0.into();
                header.ssid = probe.ssid.into();
                header.receive_timestamp = reply.receive_timestamp.into();
                header.sender_sequence = probe.sequence.into();
                header.sender_timestamp = probe.timestamp.into();
                header.sender_error_estimate = probe.error_estimate.0.into();
                header.sender_ttl = reply.sender_ttl;
                packet[..size_of::<ReflectorPacket>()].copy_from_slice(header.as_bytes());
                if self.reply_octets() == DSCP_ECN_OCTETS {
                    packet[41..DSCP_ECN_OCTETS].copy_from_slice(&[tos, 0, 0]);
                }
            }
            Protection::Authenticated(_)
            | Protection::Encrypted(_)
            | Protection::StampAuthenticated(_) => {
                let mut header = ProtectedReflectorPacket::new_zeroed();
                header.sequence = reply.sequence.into();
                header.error_estimate = reply.error_estimate.0.into();
                header.ssid = probe.ssid.into();
                header.receive_timestamp = reply.receive_timestamp.into();
                header.sender_sequence = probe.sequence.into();
                header.sender_timestamp = probe.timestamp.into();
                header.sender_error_estimate = probe.error_estimate.0.into();
                header.sender_ttl = reply.sender_ttl;
                header.sender_tos = tos;
                packet[..size_of::<ProtectedReflectorPacket>()].copy_from_slice(header.as_bytes());
            }
        }
        // This mode does not protect T3, so the packet is sealed before T3 is read.
        if let Protection::Authenticated(keys) = &self.protection {
            keys.seal(packet, 16, 96);
        }
    }

    /// Writes T3 and completes the protection.
    pub fn finish_reply(&self, t3: u64, packet: &mut [u8]) {
        let at = T3_AT[usize::from(self.is_protected())];
        packet[at..at + 8].copy_from_slice(&t3.to_be_bytes());
        match &self.protection {
            Protection::Open | Protection::StampOpen | Protection::Authenticated(_) => {}
            Protection::Encrypted(keys) => keys.seal(packet, 96, 96),
            Protection::StampAuthenticated(key) => sign(key, packet),
        }
    }

    /// Verifies and reads a reply.
    pub fn read_reply(&self, packet: &[u8]) -> Result<ReplyHeader, Unreadable> {
        let mut plain = [0; PROTECTED_OCTETS];
        let octets = match &self.protection {
            Protection::Open | Protection::StampOpen => return self.read_open_reply(packet),
            Protection::Authenticated(keys) => open(keys, packet, &mut plain, 16, 96)?,
            Protection::Encrypted(keys) => open(keys, packet, &mut plain, 96, 96)?,
            Protection::StampAuthenticated(key) => verify(key, packet)?,
        };
        let header = ProtectedReflectorPacket::read(octets).ok_or(Unreadable::TooShort)?;
        Ok(ReplyHeader {
            sequence: header.sequence.get(),
            timestamp: header.timestamp.get(),
            error_estimate: ErrorEstimate(header.error_estimate.get()),
            receive_timestamp: header.receive_timestamp.get(),
            probe: ProbeHeader {
                sequence: header.sender_sequence.get(),
                timestamp: header.sender_timestamp.get(),
                error_estimate: ErrorEstimate(header.sender_error_estimate.get()),
                ssid: header.ssid.get(),
            },
            sender_ttl: header.sender_ttl,
            sender_tos: self.dscp_ecn.then_some(header.sender_tos),
        })
    }

    /// Reads an open reply of at least 38 octets. Shorter replies than specified are accepted,
    /// because some reflectors omit the octets of the extension (RFC 7750 §2.2.1; RFC 8762 §4.6),
    /// and some omit the Sender TTL.
    fn read_open_reply(&self, packet: &[u8]) -> Result<ReplyHeader, Unreadable> {
        let mut whole = [0; size_of::<ReflectorPacket>()];
        if (REPLY_WITHOUT_TTL_OCTETS..whole.len()).contains(&packet.len()) {
            whole[..REPLY_WITHOUT_TTL_OCTETS].copy_from_slice(&packet[..REPLY_WITHOUT_TTL_OCTETS]);
            whole[SENDER_TTL_AT] = TTL_NOT_KNOWN;
            return self.read_open_reply(&whole);
        }
        let header = ReflectorPacket::read(packet).ok_or(Unreadable::TooShort)?;
        let stamp = matches!(self.protection, Protection::StampOpen);
        Ok(ReplyHeader {
            sequence: header.sequence.get(),
            timestamp: header.timestamp.get(),
            error_estimate: ErrorEstimate(header.error_estimate.get()),
            receive_timestamp: header.receive_timestamp.get(),
            probe: ProbeHeader {
                sequence: header.sender_sequence.get(),
                timestamp: header.sender_timestamp.get(),
                error_estimate: ErrorEstimate(header.sender_error_estimate.get()),
                ssid: if stamp { header.ssid.get() } else { 0 },
            },
            sender_ttl: header.sender_ttl,
            sender_tos: packet.get(41).copied().filter(|_| self.dscp_ecn),
        })
    }

    /// Returns the Sender Timestamp if the packet is an unencrypted reply of this format. A
    /// reflector recognises its own replies by it.
    pub fn sender_timestamp_of_reply(&self, packet: &[u8]) -> Option<u64> {
        let at = SENDER_TIMESTAMP_AT[usize::from(self.is_protected())];
        let octets = packet.get(at..at + 8)?;
        Some(u64::from_be_bytes(octets.try_into().ok()?))
    }

    fn is_protected(&self) -> bool {
        !matches!(self.protection, Protection::Open | Protection::StampOpen)
    }
}

/// Decrypts the header of `packet` into `plain` and checks its HMAC.
fn open<'a, const N: usize>(
    keys: &TestKeys,
    packet: &[u8],
    plain: &'a mut [u8; N],
    covered: usize,
    mac_at: usize,
) -> Result<&'a [u8], Unreadable> {
    plain.copy_from_slice(packet.get(..N).ok_or(Unreadable::TooShort)?);
    if keys.open(plain, covered, mac_at) { Ok(plain) } else { Err(Unreadable::BadMac) }
}

fn sign(key: &StampKey, packet: &mut [u8]) {
    let (header, rest) = packet.split_at_mut(PROTECTED_OCTETS - BLOCK_OCTETS);
    rest[..BLOCK_OCTETS].copy_from_slice(&key.sign(header, &[]));
}

fn verify<'a>(key: &StampKey, packet: &'a [u8]) -> Result<&'a [u8], Unreadable> {
    let whole = packet.get(..PROTECTED_OCTETS).ok_or(Unreadable::TooShort)?;
    let (header, hmac) = whole.split_at(PROTECTED_OCTETS - BLOCK_OCTETS);
    if key.verify(header, &[], hmac) { Ok(whole) } else { Err(Unreadable::BadMac) }
}
