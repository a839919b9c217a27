//! DSCP code points by name, as Junos and the RFCs spell them.

use std::{fmt, str::FromStr};

/// A DSCP, 0 to 63.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dscp(u8);

/// Aliases (RFC 2474, RFC 2597, RFC 3246, RFC 5865, RFC 8622).
const ALIASES: [(&str, u8); 24] = [
    ("be", 0),
    ("le", 1),
    ("cs0", 0),
    ("cs1", 8),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("cs2", 16),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("cs3", 24),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("cs4", 32),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("cs5", 40),
    ("va", 44),
    ("ef", 46),
    ("cs6", 48),
    ("cs7", 56),
];

impl Dscp {
    /// Creates a code point; `None` above 63.
    pub fn new(value: u8) -> Option<Self> {
        (value < 64).then_some(Self(value))
    }

    /// Returns the code point, 0 to 63.
    pub fn value(self) -> u8 {
        self.0
    }

    /// Returns the TOS or traffic class octet with this code point and ECN 0.
    pub fn tos(self) -> u8 {
        self.0 << 2
    }
}

impl FromStr for Dscp {
    type Err = ();

    /// Parses an alias in upper or lower case, exactly six bits, or a number from 0 to 63; an empty
    /// text is best effort.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.is_empty() {
            return Ok(Self(0));
        }
        if let Some((_, value)) = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(text))
        {
            return Ok(Self(*value));
        }
        let digits = |set: &[u8]| text.bytes().all(|digit| set.contains(&digit));
        let value = match text.len() {
            6 if digits(b"01") => u8::from_str_radix(text, 2),
            1..=2 if digits(b"0123456789") => text.parse(),
            _ => return Err(()),
        };
        value.ok().and_then(Self::new).ok_or(())
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ALIASES.iter().find(|(_, value)| *value == self.0) {
            Some((alias, _)) => f.write_str(alias),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_aliases_bits_and_numbers() {
        for (text, value) in
            [("", 0), ("ef", 46), ("EF", 46), ("101110", 46), ("46", 46), ("63", 63)]
        {
            assert_eq!(text.parse(), Ok(Dscp(value)), "{text}");
        }
        for text in ["64", "abc", "1011100", "-1", "10111", "+1", " ef", "af44"] {
            assert_eq!(text.parse::<Dscp>(), Err(()), "{text}");
        }
    }
}
