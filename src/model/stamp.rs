//! STAMP options of a session (RFC 8972).

use super::{Dscp, Secret};

/// Octets of a packet without and with authentication (RFC 8762 §4.2).
const BASE_OCTETS: [usize; 2] = [44, 112];
/// Octets of a TLV before its value.
const TLV_HEADER_OCTETS: usize = 4;

/// STAMP extensions of one session.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each asks for a TLV of its own")]
pub struct StampSession {
    /// Session identifier; `None` for one at random.
    pub ssid: Option<u16>,
    /// True if packets have an HMAC.
    pub authenticated: bool,
    /// Key of HMACs; `None` if neither packets nor TLVs have one.
    pub secret: Option<Secret>,
    /// DSCP requested for replies.
    pub class_of_service: Option<Dscp>,
    /// Requests the packet counters of the reflector.
    pub direct_measurement: bool,
    /// Requests the addresses as the reflector sees them.
    pub location: bool,
    /// Requests the timestamp methods of the reflector.
    pub timestamp_information: bool,
    /// Requests the transmit times of earlier replies.
    pub follow_up_telemetry: bool,
    /// Report of the state of an access network of this host.
    pub access_report: Option<AccessReport>,
    /// True if TLVs have an HMAC even if packets have none.
    pub sign_tlvs: bool,
    /// Ignores replies without the identifier (RFC 8972 §3).
    pub require_ssid: bool,
}

/// State of an access network (RFC 8972 §4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessReport {
    /// Access ID: 1 for 3GPP, 2 for non-3GPP.
    pub access_id: u8,
    /// Return Code: 1 for available, 2 for unavailable.
    pub return_code: u8,
    /// Time after which an unacknowledged report is sent again, in nanoseconds.
    pub retransmission_interval_ns: u64,
    /// Number of times that it is sent again.
    pub retransmissions: u32,
}

impl StampSession {
    /// Returns the length of a packet without TLVs in octets.
    pub fn base_octets(&self) -> usize {
        BASE_OCTETS[usize::from(self.authenticated)]
    }

    /// Returns the length of the configured TLVs in octets, without Extra Padding.
    pub fn tlv_octets(&self) -> usize {
        // A Location TLV contains two address TLVs of 16 octets.
        let location = 4 + 2 * (TLV_HEADER_OCTETS + 16);
        let values = [
            (self.class_of_service.is_some(), 4),
            (self.location, location),
            (self.timestamp_information, 4),
            (self.direct_measurement, 12),
            (self.follow_up_telemetry, 16),
            (self.access_report.is_some(), 4),
            (self.signs_tlvs(), 16),
        ];
        let asked = values.iter().filter(|(asked, _)| *asked);
        asked.map(|(_, octets)| TLV_HEADER_OCTETS + octets).sum()
    }

    /// Returns true if an HMAC TLV follows the others: with authentication, if there are TLVs other
    /// than padding (RFC 8972 §4.8).
    pub fn signs_tlvs(&self) -> bool {
        self.sign_tlvs || (self.authenticated && self.has_tlvs())
    }

    fn has_tlvs(&self) -> bool {
        self.class_of_service.is_some()
            || self.direct_measurement
            || self.location
            || self.timestamp_information
            || self.follow_up_telemetry
            || self.access_report.is_some()
    }
}
