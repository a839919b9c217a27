//! Code points. They are newtypes instead of enums, so that values which are legal but unknown here
//! are kept.

use std::fmt;

/// Bits of the Modes field (IANA "TWAMP-Modes").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes(pub u32);

impl Modes {
    /// No security (RFC 4656 §3.1).
    pub const UNAUTHENTICATED: Self = Self(1);
    /// Control encrypted, test packets authenticated (RFC 4656 §3.1).
    pub const AUTHENTICATED: Self = Self(2);
    /// Control and test packets encrypted (RFC 4656 §3.1).
    pub const ENCRYPTED: Self = Self(4);
    /// Control encrypted, test packets open (RFC 5618 §3.1).
    pub const MIXED: Self = Self(8);
    /// The bits of which a client chooses exactly one (RFC 4656 §3.1, RFC 5618 §3.1).
    pub const SECURITY: Self = Self(0x0f);
    /// Individual session control (RFC 5938).
    pub const INDIVIDUAL_SESSION_CONTROL: Self = Self(16);
    /// Reflect octets (RFC 6038).
    pub const REFLECT_OCTETS: Self = Self(32);
    /// Symmetrical size (RFC 6038).
    pub const SYMMETRICAL_SIZE: Self = Self(64);
    /// DSCP and ECN monitoring (RFC 7750).
    pub const DSCP_ECN_MONITORING: Self = Self(256);
    /// Timestamps in PTPv2 format (RFC 8186).
    pub const PTP_TIMESTAMPS: Self = Self(512);

    /// Returns true when all bits of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the security bits only.
    pub fn security(self) -> Self {
        self.and(Self::SECURITY)
    }

    /// Returns the extension bits only.
    pub fn extensions(self) -> Self {
        Self(self.0 & !Self::SECURITY.0)
    }

    /// Returns the bits set in both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the bits set in either.
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns true when the control connection is encrypted.
    pub fn is_protected(self) -> bool {
        let protected = Self(Self::AUTHENTICATED.0 | Self::ENCRYPTED.0 | Self::MIXED.0);
        self.and(protected).0 != 0
    }
}

impl fmt::Display for Modes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 10] = [
            "unauthenticated",
            "authenticated",
            "encrypted",
            "control-only-encrypted",
            "individual session control",
            "reflect octets",
            "symmetrical size",
            "IKEv2-derived keys",
            "DSCP and ECN monitoring",
            "PTPv2 timestamps",
        ];
        write!(f, "{:#x}", self.0)?;
        let set = (0..32).filter(|bit| self.0 >> bit & 1 == 1);
        for (index, bit) in set.enumerate() {
            f.write_str(if index == 0 { " (" } else { ", " })?;
            match NAMES.get(bit) {
                Some(name) => f.write_str(name)?,
                None => write!(f, "bit {bit}")?,
            }
        }
        f.write_str(if self.0 == 0 { "" } else { ")" })
    }
}

/// The Accept field (RFC 4656 §3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accept(pub u8);

impl Accept {
    /// Request accepted, no error.
    pub const OK: Self = Self(0);
    /// Refused for an unspecified reason.
    pub const FAILURE: Self = Self(1);
    /// Refused because of an internal error.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// Some aspect of the request is not supported.
    pub const NOT_SUPPORTED: Self = Self(3);
    /// Refused because of a permanent resource limitation.
    pub const PERMANENT_RESOURCE_LIMIT: Self = Self(4);
    /// Refused because of a temporary resource limitation.
    pub const TEMPORARY_RESOURCE_LIMIT: Self = Self(5);

    /// Returns a received value; RFC 4656 §3.3 treats undefined values as 1.
    pub fn received(value: u8) -> Self {
        if value <= Self::TEMPORARY_RESOURCE_LIMIT.0 { Self(value) } else { Self::FAILURE }
    }
}

impl fmt::Display for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::OK => "accepted",
            Self::INTERNAL_ERROR => "internal error",
            Self::NOT_SUPPORTED => "some aspect of the request is not supported",
            Self::PERMANENT_RESOURCE_LIMIT => "permanent resource limitation",
            Self::TEMPORARY_RESOURCE_LIMIT => "temporary resource limitation",
            _ => "refused for an unstated reason",
        };
        write!(f, "{text} (Accept {})", self.0)
    }
}

/// Command numbers (IANA "TWAMP-Control Command Numbers").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(pub u8);

impl Command {
    /// OWAMP's Request-Session; forbidden in TWAMP.
    pub const FORBIDDEN: Self = Self(1);
    /// Start-Sessions (RFC 5357 §3.7).
    pub const START_SESSIONS: Self = Self(2);
    /// Stop-Sessions (RFC 5357 §3.8).
    pub const STOP_SESSIONS: Self = Self(3);
    /// OWAMP's Fetch-Session; reserved in TWAMP.
    pub const RESERVED_FETCH: Self = Self(4);
    /// Request-TW-Session (RFC 5357 §3.5).
    pub const REQUEST_TW_SESSION: Self = Self(5);
    /// Start-N-Sessions (RFC 5938 §3.3).
    pub const START_N_SESSIONS: Self = Self(7);
    /// Start-N-Ack (RFC 5938 §3.4).
    pub const START_N_ACK: Self = Self(8);
    /// Stop-N-Sessions (RFC 5938 §3.5).
    pub const STOP_N_SESSIONS: Self = Self(9);
    /// Stop-N-Ack (RFC 5938 §3.6).
    pub const STOP_N_ACK: Self = Self(10);
}

/// Session identifier (RFC 4656 §3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sid(pub [u8; 16]);

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// Type-P Descriptor (RFC 4656 §3.5) in its DSCP form, with the two high bits clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypeP(pub u32);

impl TypeP {
    /// Returns the descriptor of a DSCP.
    pub fn from_dscp(dscp: u8) -> Self {
        Self(u32::from(dscp & 0x3f) << 24)
    }

    /// Returns the DSCP; `None` for the PHB form and for undefined bits.
    pub fn dscp(self) -> Option<u8> {
        (self.0 & 0xc0ff_ffff == 0).then_some((self.0 >> 24) as u8)
    }
}
