//! Ages and quotas of records.

use std::{collections::BTreeMap, sync::Arc};

use crate::time::NANOS_PER_SECOND;

/// Windows that the retention age and the quota are divided into: what goes at once is a sixteenth.
const WINDOWS: u64 = 16;
/// Windows of the retention age at most, where records of a connection go sooner.
const MOST_WINDOWS: u64 = 256;
/// Records of a connection stay longer than its age by such a part of it, at most.
const TOGETHER: u64 = 8;
/// Octets of a window at most: it is opened and searched within tens of milliseconds.
const MOST_WINDOW_OCTETS: u64 = 16 << 20;
const SHORTEST_WINDOW_NS: u64 = 10 * NANOS_PER_SECOND;

/// Ages and quota of the records that are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Age at which records go, nanoseconds.
    pub age_ns: u64,
    /// Octets beyond which the oldest go.
    pub octets: u64,
    /// Age at which records of connections go, by their names, where that is sooner, nanoseconds.
    connection_ages_ns: Arc<BTreeMap<String, u64>>,
    /// The shortest of these; it is asked for with every record.
    shortest_age_ns: u64,
}

impl Retention {
    /// Keeps records of all connections for the same time.
    pub fn of_all(age_ns: u64, octets: u64) -> Self {
        Self { age_ns, octets, connection_ages_ns: Arc::default(), shortest_age_ns: u64::MAX }
    }

    /// Keeps records of these connections for less, nanoseconds.
    pub fn with_connection_ages(self, ages_ns: BTreeMap<String, u64>) -> Self {
        let shortest_age_ns = ages_ns.values().copied().min().unwrap_or(u64::MAX);
        Self { connection_ages_ns: Arc::new(ages_ns), shortest_age_ns, ..self }
    }

    /// Returns the span of time of a window.
    pub(super) fn window_span_ns(&self) -> u64 {
        (self.age_ns.min(self.shortest_age_ns) / WINDOWS)
            .max(self.age_ns / MOST_WINDOWS)
            .max(SHORTEST_WINDOW_NS)
    }

    /// Returns the octets of a window.
    pub(super) fn window_octets(&self) -> u64 {
        (self.octets / WINDOWS).min(MOST_WINDOW_OCTETS)
    }

    /// Returns true when a record of a connection is kept at this age.
    pub(super) fn keeps(&self, connection: &str, age_ns: u64) -> bool {
        self.connection_ages_ns.get(connection).is_none_or(|most| age_ns <= *most)
    }

    /// Returns true when all records are kept at this age.
    pub(super) fn keeps_all(&self, age_ns: u64) -> bool {
        age_ns <= self.shortest_age_ns
    }

    /// Returns the next age at which records of more connections go. A window is copied each time: ages
    /// that are near each other wait for the same copy.
    pub(super) fn next_age_ns(&self, age_ns: u64) -> u64 {
        let ages = self.connection_ages_ns.values().copied();
        let next = ages.filter(|age| *age >= age_ns).min().unwrap_or(u64::MAX);
        next.saturating_add(next / TOGETHER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_NS: u64 = 86_400 * NANOS_PER_SECOND;

    #[test]
    fn windows_are_as_short_as_the_shortest_age_asks_for_and_not_too_many() {
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
    fn ages_of_connections_come_one_after_the_other() {
        let ages = [("a".to_owned(), 20), ("b".to_owned(), 40)].into();
        let retention = Retention::of_all(100, 100).with_connection_ages(ages);
        assert_eq!([0, 20, 21, 41].map(|age| retention.next_age_ns(age)), [22, 22, 45, u64::MAX]);
        assert!(retention.keeps("a", 20) && !retention.keeps("a", 21));
        assert!(retention.keeps_all(20) && !retention.keeps_all(21));
        assert!(retention.keeps("b", 21) && retention.keeps("other", 99));
    }
}
