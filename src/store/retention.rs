//! Limits of age and size of the records that are kept.

use std::{collections::BTreeMap, sync::Arc};

use crate::time::NANOS_PER_SECOND;

/// Number of windows into which the retention age and the quota are divided: a sixteenth of the
/// records is removed at once.
const WINDOWS: u64 = 16;
/// Maximum number of windows per retention age if a connection has a shorter one.
const MAXIMUM_WINDOWS: u64 = 256;
/// Reciprocal of the maximum extra time for which records of a connection are kept, relative to its
/// retention age.
const EXTRA_AGE_DIVISOR: u64 = 8;
/// Maximum size of a window, bytes, so that it is opened and searched within tens of milliseconds.
const MAXIMUM_WINDOW_OCTETS: u64 = 16 << 20;
const SHORTEST_WINDOW_NS: u64 = 10 * NANOS_PER_SECOND;

/// Limits of age and size of the records that are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Maximum age of records, nanoseconds.
    pub age_ns: u64,
    /// Maximum size of all records, bytes.
    pub octets: u64,
    /// Maximum size of the state directory, bytes.
    pub disk_octets: u64,
    /// Shorter maximum ages of connections, by name, nanoseconds.
    connection_ages_ns: Arc<BTreeMap<String, u64>>,
    /// Minimum of these, cached because each record needs it.
    shortest_age_ns: u64,
}

impl Retention {
    /// Creates a retention with the same age for all connections.
    pub fn of_all(age_ns: u64, octets: u64) -> Self {
        Self {
            age_ns,
            octets,
            disk_octets: u64::MAX,
            connection_ages_ns: Arc::default(),
            shortest_age_ns: u64::MAX,
        }
    }

    /// Limits the size of the state directory, bytes.
    pub fn with_disk_quota(self, disk_octets: u64) -> Self {
        Self { disk_octets, ..self }
    }

    /// Sets shorter ages for some connections, nanoseconds.
    pub fn with_connection_ages(self, ages_ns: BTreeMap<String, u64>) -> Self {
        let shortest_age_ns = ages_ns.values().copied().min().unwrap_or(u64::MAX);
        Self { connection_ages_ns: Arc::new(ages_ns), shortest_age_ns, ..self }
    }

    /// Returns the time span of a window, nanoseconds.
    pub(super) fn window_span_ns(&self) -> u64 {
        (self.age_ns.min(self.shortest_age_ns) / WINDOWS)
            .max(self.age_ns / MAXIMUM_WINDOWS)
            .max(SHORTEST_WINDOW_NS)
    }

    /// Returns the maximum size of a window, bytes.
    pub(super) fn window_octets(&self) -> u64 {
        (self.octets / WINDOWS).min(MAXIMUM_WINDOW_OCTETS)
    }

    /// Returns true if a record of a connection is kept at this age.
    pub(super) fn keeps(&self, connection: &str, age_ns: u64) -> bool {
        self.connection_ages_ns.get(connection).is_none_or(|most| age_ns <= *most)
    }

    /// Returns true if records of all connections are kept at this age.
    pub(super) fn keeps_all(&self, age_ns: u64) -> bool {
        age_ns <= self.shortest_age_ns
    }

    /// Returns the next age at which records of further connections are removed. Each removal
    /// copies the window, so it is delayed to include connections with similar ages.
    pub(super) fn next_age_ns(&self, age_ns: u64) -> u64 {
        let ages = self.connection_ages_ns.values().copied();
        let next = ages.filter(|age| *age >= age_ns).min().unwrap_or(u64::MAX);
        next.saturating_add(next / EXTRA_AGE_DIVISOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_NS: u64 = 86_400 * NANOS_PER_SECOND;

    #[test]
    fn window_span_follows_the_shortest_age_within_the_maximum_number() {
        let retention = Retention::of_all(16 * DAY_NS, 1 << 30);
        assert_eq!(retention.window_span_ns(), DAY_NS);
        for (age_ns, span_ns) in
            [(8 * DAY_NS, DAY_NS / 2), (60, DAY_NS / 16), (99 * DAY_NS, DAY_NS)]
        {
            let retention =
                retention.clone().with_connection_ages([("c".to_owned(), age_ns)].into());
            assert_eq!(retention.window_span_ns(), span_ns);
        }
    }

    #[test]
    fn next_age_is_the_next_longer_age_of_a_connection() {
        let ages = [("a".to_owned(), 20), ("b".to_owned(), 40)].into();
        let retention = Retention::of_all(100, 100).with_connection_ages(ages);
        assert_eq!([0, 20, 21, 41].map(|age| retention.next_age_ns(age)), [22, 22, 45, u64::MAX]);
        assert!(retention.keeps("a", 20) && !retention.keeps("a", 21));
        assert!(retention.keeps_all(20) && !retention.keeps_all(21));
        assert!(retention.keeps("b", 21) && retention.keeps("other", 99));
    }
}
