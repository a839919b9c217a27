//! Protection of measurements, and the extensions of TWAMP.

use super::Secret;

/// Protection of a control connection and its test packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthenticationMode {
    /// Unauthenticated mode: neither HMAC nor encryption.
    #[default]
    None,
    /// TWAMP-Control is encrypted; the first block of each test packet is encrypted and has an
    /// HMAC.
    Authenticated,
    /// TWAMP-Control and test packets are encrypted.
    Encrypted,
    /// TWAMP-Control is encrypted, test packets are not protected (RFC 5618).
    ControlOnlyEncrypted,
}

impl AuthenticationMode {
    /// Returns true if test packets are protected, too.
    pub fn protects_test_packets(self) -> bool {
        matches!(self, Self::Authenticated | Self::Encrypted)
    }
}

/// Key of a server, which its clients may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// KeyID of Set-Up-Response (RFC 4656 §3.1).
    pub id: String,
    /// Shared secret that the KeyID names.
    pub secret: Secret,
}

/// Extensions of TWAMP to use or to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a set of bits of the protocol")]
pub struct Extensions {
    /// Individual session control (RFC 5938).
    pub individual_session_control: bool,
    /// Reflection of octets of the request (RFC 6038).
    pub reflect_octets: bool,
    /// Symmetrical size of test packets (RFC 6038).
    pub symmetrical_size: bool,
    /// DSCP and ECN monitoring (RFC 7750).
    pub dscp_ecn_monitoring: bool,
    /// Timestamps in PTPv2 format (RFC 8186).
    pub ptp_timestamps: bool,
}

impl Extensions {
    /// Default of clients. An extension is used if the server offers it.
    pub const CLIENT: Self = Self { symmetrical_size: false, ..Self::SERVER };
    /// Default offer of servers.
    pub const SERVER: Self = Self {
        individual_session_control: true,
        reflect_octets: true,
        symmetrical_size: true,
        dscp_ecn_monitoring: true,
        ptp_timestamps: true,
    };
    /// No extension; for control types without TWAMP-Control.
    pub const NONE: Self = Self {
        individual_session_control: false,
        reflect_octets: false,
        symmetrical_size: false,
        dscp_ecn_monitoring: false,
        ptp_timestamps: false,
    };
}
