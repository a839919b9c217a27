//! Parts of the statistics of a session, in memory and in the store. They are kept encoded, because
//! thousands of sessions have a dozen parts each and use few of them at a time.

use prost::Message;

use super::{super::content::encode_within_limit, Key, totals::Totals};
use crate::{
    proto::StatisticsScope,
    store::content::{STATISTICS_ALL, STATISTICS_LAST},
    time::NANOS_PER_SECOND,
};

/// Length of an interval by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Level {
    Minute,
    Quarter,
    Hour,
    Day,
}

impl Level {
    pub(super) const ALL: [Self; 4] = [Self::Minute, Self::Quarter, Self::Hour, Self::Day];

    pub(super) fn length_ns(self) -> u64 {
        let seconds = match self {
            Self::Minute => 60,
            Self::Quarter => 900,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        };
        seconds * NANOS_PER_SECOND
    }

    /// Returns the start of the interval around a time.
    pub(super) fn start_ns(self, time_ns: u64) -> u64 {
        time_ns - time_ns % self.length_ns()
    }

    pub(super) fn scope(self) -> StatisticsScope {
        match self {
            Self::Minute => StatisticsScope::Interval1Minute,
            Self::Quarter => StatisticsScope::Interval15Minutes,
            Self::Hour => StatisticsScope::Interval1Hour,
            Self::Day => StatisticsScope::Interval1Day,
        }
    }
}

/// Part of the statistics of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    /// Metadata of the session.
    Meta,
    /// Statistics of all tests.
    All,
    /// Statistics of all tests except the running one. Exists only while [`Self::All`] includes minutes
    /// of the running test.
    BeforeCurrent,
    /// Statistics of the last test.
    Last,
    /// Interval that is not over, by its start.
    Running(Level, u64),
    /// Latest interval that is over.
    Finished(Level),
    /// Test of the moving average, by its slot in the ring.
    WindowSlot(u16),
}

const META: &[u8] = b"head";
const BEFORE: &[u8] = b"before";
const RUNNING: &[u8] = b"run";
const FINISHED: &[u8] = b"end";
const WINDOW_SLOT: &[u8] = b"test";

impl Part {
    /// Returns the level and start of an interval that is not over.
    pub(super) fn running(self) -> Option<(Level, u64)> {
        match self {
            Self::Running(level, start_ns) => Some((level, start_ns)),
            Self::Meta
            | Self::All
            | Self::BeforeCurrent
            | Self::Last
            | Self::Finished(_)
            | Self::WindowSlot(_) => None,
        }
    }

    /// Returns the key in the store. Names contain no NUL.
    pub(super) fn key(self, (connection, session): &Key) -> Vec<u8> {
        let level = |level: Level| [level as u8];
        let part = match self {
            Self::Meta => META.to_vec(),
            Self::All => STATISTICS_ALL.to_vec(),
            Self::BeforeCurrent => BEFORE.to_vec(),
            Self::Last => STATISTICS_LAST.to_vec(),
            Self::Running(of, start_ns) => [RUNNING, &level(of), &start_ns.to_be_bytes()].concat(),
            Self::Finished(of) => [FINISHED, &level(of)].concat(),
            Self::WindowSlot(slot) => [WINDOW_SLOT, &slot.to_be_bytes()].concat(),
        };
        [connection.as_bytes(), b"\0", session.as_bytes(), b"\0", &part].concat()
    }

    /// Parses a key of the store.
    pub(super) fn from_key(key: &[u8]) -> Option<(Key, Self)> {
        let mut parts = key.splitn(3, |octet| *octet == 0);
        let mut name = || Some(std::str::from_utf8(parts.next()?).ok()?.to_owned());
        let names = (name()?, name()?);
        let part = parts.next()?;
        let level = |octet: &u8| Level::ALL.get(usize::from(*octet)).copied();
        let part = match part {
            META => Self::Meta,
            STATISTICS_ALL => Self::All,
            BEFORE => Self::BeforeCurrent,
            STATISTICS_LAST => Self::Last,
            _ => {
                if let Some([of, start @ ..]) = part.strip_prefix(RUNNING) {
                    Self::Running(level(of)?, u64::from_be_bytes(start.try_into().ok()?))
                } else if let Some([of]) = part.strip_prefix(FINISHED) {
                    Self::Finished(level(of)?)
                } else {
                    let slot = part.strip_prefix(WINDOW_SLOT)?.try_into().ok()?;
                    Self::WindowSlot(u16::from_be_bytes(slot))
                }
            }
        };
        Some((names, part))
    }
}

/// Totals in encoded form, to save memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Packed(pub(super) Box<[u8]>);

impl Packed {
    pub(super) fn from_totals(mut totals: Totals) -> Self {
        let octets = encode_within_limit(&mut totals, |totals| totals.figures.as_deref_mut());
        Self(octets.as_ref().into())
    }

    /// Decodes the totals. Unreadable ones count as empty.
    pub(super) fn unpack(&self) -> Totals {
        Totals::decode(self.0.as_ref()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back() {
        let names = ("c:1".to_owned(), "s-1".to_owned());
        let parts = [
            Part::Meta,
            Part::All,
            Part::Last,
            Part::Finished(Level::Minute),
            Part::Finished(Level::Day),
            Part::Running(Level::Minute, 0),
            Part::Running(Level::Hour, u64::MAX),
            Part::WindowSlot(0),
            Part::WindowSlot(1023),
        ];
        for part in parts {
            assert_eq!(Part::from_key(&part.key(&names)), Some((names.clone(), part)));
        }
        for wrong in [&b""[..], b"c", b"c\0s", b"c\0s\0", b"c\0s\0run\x09", b"c\0s\0end\x04"] {
            assert_eq!(Part::from_key(wrong), None, "{wrong:?}");
        }
    }
}
