//! Wire formats of TWAMP (RFC 4656, RFC 5357 and extensions) and STAMP (RFC 8762, RFC 8972):
//! layouts and cryptography only.
//!
//! Reserved fields are written as zero and ignored when read.

pub mod codes;
pub mod control;
pub mod crypto;
pub mod format;
pub mod greeting;
pub mod individual;
pub mod request;
pub mod test;
pub mod tlv;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A fixed layout of octets.
pub trait Layout: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Clone {
    /// Length in octets of the layout.
    const SIZE: usize = size_of::<Self>();

    /// Interprets the beginning of `octets`; `None` if it is too short.
    fn read(octets: &[u8]) -> Option<&Self> {
        Self::ref_from_prefix(octets).ok().map(|(layout, _)| layout)
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Clone> Layout for T {}
