//! TLVs of STAMP (RFC 8972 §4), which follow the base packet without alignment.
//!
//! ```text
//! 0 Flags | 1 Type | 2 Length of the value (2) | 4 Value
//! ```

use std::ops::Range;

/// Octets before the value of a TLV.
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
    /// Padding of arbitrary octets.
    pub const EXTRA_PADDING: u8 = 1;
    /// Ports and addresses as the reflector sees them.
    pub const LOCATION: u8 = 2;
    /// Method and clock source of the reflector's timestamps.
    pub const TIMESTAMP_INFORMATION: u8 = 3;
    /// Requested DSCP of the reply, received DSCP and ECN.
    pub const CLASS_OF_SERVICE: u8 = 4;
    /// Counters of both ends.
    pub const DIRECT_MEASUREMENT: u8 = 5;
    /// State of an access network of the sender.
    pub const ACCESS_REPORT: u8 = 6;
    /// Transmit time of the previous reply.
    pub const FOLLOW_UP_TELEMETRY: u8 = 7;
    /// HMAC over the preceding TLVs.
    pub const HMAC: u8 = 8;
}

/// Types of the parts of a Location TLV (RFC 8972 §4.2).
pub mod location {
    /// Query for the source MAC address of the probe.
    pub const SOURCE_MAC: u8 = 1;
    /// Response with a MAC address of 6 octets.
    pub const EUI_48: u8 = 2;
    /// Response with a MAC address of 8 octets; zero if there is no MAC address.
    pub const EUI_64: u8 = 3;
    /// Query for the destination address of the probe.
    pub const DESTINATION_ADDRESS: u8 = 4;
    /// Response with an IPv4 destination address.
    pub const DESTINATION_IPV4: u8 = 5;
    /// Response with an IPv6 destination address.
    pub const DESTINATION_IPV6: u8 = 6;
    /// Query for the source address of the probe.
    pub const SOURCE_ADDRESS: u8 = 7;
    /// Response with an IPv4 source address.
    pub const SOURCE_IPV4: u8 = 8;
    /// Response with an IPv6 source address.
    pub const SOURCE_IPV6: u8 = 9;
}

/// Timestamping method (RFC 8972 §4.3): software on the host.
pub const METHOD_SOFTWARE: u8 = 2;
/// Source of synchronisation (RFC 8972 §4.3): NTP.
pub const SOURCE_NTP: u8 = 1;
/// Source of synchronisation (RFC 8972 §4.3): none, the clock runs freely.
pub const SOURCE_FREE_RUNNING: u8 = 5;

/// Position and header of one TLV in an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tlv {
    /// Offset of the header.
    pub at: usize,
    /// Flags, a combination of [`flags`].
    pub flags: u8,
    /// Type, one of [`types`].
    pub kind: u8,
    /// Length of the value in octets.
    pub length: usize,
}

/// A TLV that exceeds its area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlong {
    /// Offset of the header.
    pub at: usize,
}

impl Tlv {
    /// Returns the range of the value.
    pub fn value(self) -> Range<usize> {
        self.at + HEADER_OCTETS..self.end()
    }

    /// Returns the offset after the last octet.
    pub fn end(self) -> usize {
        self.at + HEADER_OCTETS + self.length
    }

    /// Returns true when the length is valid for the type.
    pub fn has_right_length(self) -> bool {
        match self.kind {
            // Octets after the first four are reserved for extensions.
            types::LOCATION | types::TIMESTAMP_INFORMATION => self.length >= 4,
            types::CLASS_OF_SERVICE | types::ACCESS_REPORT => self.length == 4,
            types::DIRECT_MEASUREMENT => self.length == 12,
            types::FOLLOW_UP_TELEMETRY | types::HMAC => self.length == 16,
            _ => true,
        }
    }
}

/// Iterator over the TLVs of an area. Octets at the end that are too few for a header are padding.
#[derive(Clone, Debug)]
pub struct Tlvs<'a> {
    area: &'a [u8],
    at: usize,
}

/// Iterates over the TLVs of an area; ends after an overlong one.
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

/// Appends a TLV of a sender, with the flag U set.
pub fn append(area: &mut Vec<u8>, kind: u8, value: &[u8]) {
    area.push(flags::UNRECOGNISED);
    area.push(kind);
    area.extend_from_slice(&(value.len() as u16).to_be_bytes());
    area.extend_from_slice(value);
}
