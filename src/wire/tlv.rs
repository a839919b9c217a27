//! TLVs of STAMP (RFC 8972 §4). They stand directly behind the base packet, without alignment.
//!
//! ```text
//! 0 Flags | 1 Type | 2 Length of the value (2) | 4 Value
//! ```

use std::ops::Range;

/// Octets before the value.
pub const HEADER_OCTETS: usize = 4;

/// Flags of a TLV (RFC 8972 §4).
pub mod flags {
    /// Set by senders; cleared by a reflector that understands the type.
    pub const UNRECOGNISED: u8 = 0x80;
    /// The length does not fit the type or the packet.
    pub const MALFORMED: u8 = 0x40;
    /// The HMAC TLV is missing or wrong.
    pub const INTEGRITY: u8 = 0x20;
}

/// Types of TLVs (IANA "STAMP TLV Types").
pub mod types {
    /// Any octets.
    pub const EXTRA_PADDING: u8 = 1;
    /// Ports and addresses as the reflector saw them.
    pub const LOCATION: u8 = 2;
    /// How the reflector takes its timestamps.
    pub const TIMESTAMP_INFORMATION: u8 = 3;
    /// DSCP wanted for the reply, DSCP and ECN received.
    pub const CLASS_OF_SERVICE: u8 = 4;
    /// Counters of both ends.
    pub const DIRECT_MEASUREMENT: u8 = 5;
    /// State of an access of the sender.
    pub const ACCESS_REPORT: u8 = 6;
    /// When the reply before really went out.
    pub const FOLLOW_UP_TELEMETRY: u8 = 7;
    /// HMAC over the TLVs before it.
    pub const HMAC: u8 = 8;
}

/// Types of the parts of a Location TLV (RFC 8972 §4.2).
pub mod location {
    /// Asks for the MAC address that the probe came from.
    pub const SOURCE_MAC: u8 = 1;
    /// The answer: 6 octets.
    pub const EUI_48: u8 = 2;
    /// The answer: 8 octets, zero where there is no MAC address.
    pub const EUI_64: u8 = 3;
    /// Asks for the address that the probe came to.
    pub const DESTINATION_ADDRESS: u8 = 4;
    /// The answer in IPv4.
    pub const DESTINATION_IPV4: u8 = 5;
    /// The answer in IPv6.
    pub const DESTINATION_IPV6: u8 = 6;
    /// Asks for the address that the probe came from.
    pub const SOURCE_ADDRESS: u8 = 7;
    /// The answer in IPv4.
    pub const SOURCE_IPV4: u8 = 8;
    /// The answer in IPv6.
    pub const SOURCE_IPV6: u8 = 9;
}

/// Where a timestamp is taken (RFC 8972 §4.3): by software on the host.
pub const METHOD_SOFTWARE: u8 = 2;
/// Source of synchronisation (RFC 8972 §4.3): NTP.
pub const SOURCE_NTP: u8 = 1;
/// Source of synchronisation (RFC 8972 §4.3): none, the clock runs freely.
pub const SOURCE_FREE_RUNNING: u8 = 5;

/// One TLV in an area of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tlv {
    /// Where its header begins.
    pub at: usize,
    /// Its flags.
    pub flags: u8,
    /// Its type.
    pub kind: u8,
    /// Octets of its value.
    pub length: usize,
}

/// A TLV that is longer than what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlong {
    /// Where its header begins.
    pub at: usize,
}

impl Tlv {
    /// Where its value is.
    pub fn value(self) -> Range<usize> {
        self.at + HEADER_OCTETS..self.end()
    }

    /// Behind its last octet.
    pub fn end(self) -> usize {
        self.at + HEADER_OCTETS + self.length
    }

    /// Whether the length is one that its type may have.
    pub fn has_right_length(self) -> bool {
        match self.kind {
            // What a longer one says behind the first four octets is for others.
            types::LOCATION | types::TIMESTAMP_INFORMATION => self.length >= 4,
            types::CLASS_OF_SERVICE | types::ACCESS_REPORT => self.length == 4,
            types::DIRECT_MEASUREMENT => self.length == 12,
            types::FOLLOW_UP_TELEMETRY | types::HMAC => self.length == 16,
            _ => true,
        }
    }
}

/// The TLVs of an area, in order. What is too short for a header at its end is padding.
#[derive(Clone, Debug)]
pub struct Tlvs<'a> {
    area: &'a [u8],
    at: usize,
}

/// Walks over an area. It ends behind a TLV that is overlong.
pub fn walk(area: &[u8]) -> Tlvs<'_> {
    Tlvs { area, at: 0 }
}

impl Iterator for Tlvs<'_> {
    type Item = Result<Tlv, Overlong>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let header = self.area.get(at..at + HEADER_OCTETS)?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let tlv = Tlv { at, flags: header[0], kind: header[1], length };
        if tlv.end() > self.area.len() {
            self.at = self.area.len();
            return Some(Err(Overlong { at }));
        }
        self.at = tlv.end();
        Some(Ok(tlv))
    }
}

/// Appends a TLV as a sender writes it.
pub fn append(area: &mut Vec<u8>, kind: u8, value: &[u8]) {
    area.push(flags::UNRECOGNISED);
    area.push(kind);
    area.extend_from_slice(&(value.len() as u16).to_be_bytes());
    area.extend_from_slice(value);
}
