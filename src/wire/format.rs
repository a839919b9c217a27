//! How the test packets of a session look: which header, what of it is encrypted, where the padding
//! begins. One format serves both directions of a session, and both of its ends.

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
/// Octets of all other protected packets.
pub const PROTECTED_OCTETS: usize = size_of::<ProtectedReflectorPacket>() + BLOCK_OCTETS;
/// Where T3 is in an open reply, and in a protected one.
const T3_AT: [usize; 2] = [4, 16];
/// Where the copy of the sender's time is, likewise.
const SENDER_TIMESTAMP_AT: [usize; 2] = [28, 64];
/// Up to the Sender Error Estimate.
const REPLY_WITHOUT_TTL_OCTETS: usize = 38;
const SENDER_TTL_AT: usize = 40;
/// What a reflector that cannot tell the TTL writes (RFC 5357 §4.2.1).
const TTL_NOT_KNOWN: u8 = 255;

/// What protects the test packets of a session.
#[derive(Clone, Debug, Default)]
pub enum Protection {
    /// Nothing: unauthenticated and mixed mode (RFC 5357 §4.2.1, RFC 5618).
    #[default]
    Open,
    /// The block with the number is encrypted and has an HMAC.
    Authenticated(Arc<TestKeys>),
    /// All of the header is encrypted and has an HMAC.
    Encrypted(Arc<TestKeys>),
    /// STAMP without authentication (RFC 8762 §4.2.1).
    StampOpen,
    /// STAMP with an HMAC over the header (RFC 8762 §4.2.2).
    StampAuthenticated(Arc<StampKey>),
}

/// The format.
#[derive(Clone, Debug, Default)]
pub struct PacketFormat {
    /// What protects the packets.
    pub protection: Protection,
    /// Probes have room for the header of a reply, so that padding stays where it is (RFC 6038 §5).
    pub symmetrical: bool,
    /// Replies carry the TOS of the probe (RFC 7750).
    pub dscp_ecn: bool,
}

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeHeader {
    /// Sequence Number.
    pub sequence: u32,
    /// T1 as on the wire; the estimate tells its format.
    pub timestamp: u64,
    /// Of T1.
    pub error_estimate: ErrorEstimate,
    /// STAMP session identifier; 0 in TWAMP.
    pub ssid: u16,
}

/// What a reply says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// Sequence Number of the reply.
    pub sequence: u32,
    /// T3 as on the wire; the estimate tells its format and that of T2.
    pub timestamp: u64,
    /// Of T2 and T3.
    pub error_estimate: ErrorEstimate,
    /// T2 as on the wire.
    pub receive_timestamp: u64,
    /// Of the probe, as it came; its SSID stands in the reply.
    pub probe: ProbeHeader,
    /// TTL with which the probe came.
    pub sender_ttl: u8,
    /// TOS with which the probe came, with RFC 7750.
    pub sender_tos: Option<u8>,
}

/// Why a packet cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Shorter than its header.
    TooShort,
    /// The HMAC is not that of the packet.
    BadMac,
}

impl PacketFormat {
    /// Unauthenticated TWAMP without extensions.
    pub fn open() -> Self {
        Self::default()
    }

    /// What was negotiated: the mode, and the keys of the control connection in modes with keys.
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

    /// Octets of the shortest probe.
    pub fn probe_octets(&self) -> usize {
        if self.symmetrical { self.reply_octets() } else { self.probe_header_octets() }
    }

    /// Octets of the shortest reply.
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

    /// Octets of a probe before its padding, or its TLVs, where sizes are not symmetrical.
    pub fn probe_header_octets(&self) -> usize {
        match self.protection {
            Protection::Open => size_of::<SenderPacket>(),
            Protection::StampOpen => STAMP_OCTETS,
            Protection::Authenticated(_) | Protection::Encrypted(_) => PROTECTED_PROBE_OCTETS,
            Protection::StampAuthenticated(_) => PROTECTED_OCTETS,
        }
    }

    /// Writes the header of a probe and protects it. `packet` must hold [`Self::probe_octets`]; its
    /// padding stays as it is.
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

    /// Reads a probe, once it is found genuine.
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
            Protection::StampAuthenticated(key) => verified(key, packet)?,
        };
        let header = ProtectedSenderPacket::read(octets).ok_or(Unreadable::TooShort)?;
        Ok(ProbeHeader {
            sequence: header.sequence.get(),
            timestamp: header.timestamp.get(),
            error_estimate: ErrorEstimate(header.error_estimate.get()),
            ssid: header.ssid.get(),
        })
    }

    /// Writes the header of a reply, all but T3 and what depends on it: [`Self::finish_reply`] does
    /// that. `packet` must hold [`Self::reply_octets`]. The timestamp of `reply` is not used.
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
        // T3 is outside of what this mode protects: what can be done before it is taken is done.
        if let Protection::Authenticated(keys) = &self.protection {
            keys.seal(packet, 16, 96);
        }
    }

    /// Writes T3 and what is left to be protected.
    pub fn finish_reply(&self, t3: u64, packet: &mut [u8]) {
        let at = T3_AT[usize::from(self.is_protected())];
        packet[at..at + 8].copy_from_slice(&t3.to_be_bytes());
        match &self.protection {
            Protection::Open | Protection::StampOpen | Protection::Authenticated(_) => {}
            Protection::Encrypted(keys) => keys.seal(packet, 96, 96),
            Protection::StampAuthenticated(key) => sign(key, packet),
        }
    }

    /// Reads a reply, once it is found genuine.
    pub fn read_reply(&self, packet: &[u8]) -> Result<ReplyHeader, Unreadable> {
        let mut plain = [0; PROTECTED_OCTETS];
        let octets = match &self.protection {
            Protection::Open | Protection::StampOpen => return self.read_open_reply(packet),
            Protection::Authenticated(keys) => open(keys, packet, &mut plain, 16, 96)?,
            Protection::Encrypted(keys) => open(keys, packet, &mut plain, 96, 96)?,
            Protection::StampAuthenticated(key) => verified(key, packet)?,
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

    /// Replies without authentication are taken from 38 octets on, whatever the extension says of
    /// their length: some reflectors send 41 (RFC 7750 §2.2.1; RFC 8762 §4.6), and some leave
    /// out the Sender TTL.
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

    /// The copy of a sender's time, where the packet is a reply of this format that is not
    /// encrypted: what a reflector looks at to know its own replies again.
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

fn verified<'a>(key: &StampKey, packet: &'a [u8]) -> Result<&'a [u8], Unreadable> {
    let whole = packet.get(..PROTECTED_OCTETS).ok_or(Unreadable::TooShort)?;
    let (header, hmac) = whole.split_at(PROTECTED_OCTETS - BLOCK_OCTETS);
    if key.verify(header, &[], hmac) { Ok(whole) } else { Err(Unreadable::BadMac) }
}
