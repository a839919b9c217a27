//! Messages and packets, octet by octet (RFC 4656, RFC 5357 and their extensions, RFC 8762, RFC 8972).
//! Layouts and cryptography: nothing here decides, or knows sockets. Reserved fields are written as
//! zero and ignored when read.

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

/// A fixed layout that can be read from and written to octets.
pub trait Layout: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Clone {
    /// Octets of the layout.
    const SIZE: usize = size_of::<Self>();

    /// Reads the layout from the beginning of `octets`; `None` where they are too few.
    fn read(octets: &[u8]) -> Option<&Self> {
        Self::ref_from_prefix(octets).ok().map(|(layout, _)| layout)
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Clone> Layout for T {}
