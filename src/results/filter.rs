//! Which records a reader wants.

use std::collections::{BTreeMap, HashSet};

use crate::proto::{Record, RecordFilter, RecordKind, record};

/// A filter; empty sets select everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    connections: HashSet<String>,
    sessions: HashSet<String>,
    kinds: HashSet<RecordKind>,
    labels: BTreeMap<String, String>,
}

impl Filter {
    /// From the API; an error names an unknown kind.
    pub fn new(filter: RecordFilter) -> Result<Self, String> {
        let kinds = filter
            .kinds
            .iter()
            .map(|number| match RecordKind::try_from(*number) {
                Ok(RecordKind::Unspecified) | Err(_) => Err(format!(
                    "{number} is no kind of record: 1 (TEST_RESULT), 2 (PROBE_RESULTS), 3 (EVENT)"
                )),
                Ok(kind) => Ok(kind),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            connections: filter.connections.into_iter().collect(),
            sessions: filter.sessions.into_iter().collect(),
            kinds,
            labels: filter.labels,
        })
    }

    /// Whether a record is wanted. A gap always is.
    pub fn wants(&self, record: &Record) -> bool {
        let kind = match &record.kind {
            Some(record::Kind::TestResult(_)) => RecordKind::TestResult,
            Some(record::Kind::ProbeResults(_)) => RecordKind::ProbeResults,
            Some(record::Kind::Event(_)) => RecordKind::Event,
            Some(record::Kind::Gap(_)) | None => return true,
        };
        let any = |set: &HashSet<String>, name: &String| set.is_empty() || set.contains(name);
        any(&self.connections, &record.connection)
            && any(&self.sessions, &record.session)
            && (self.kinds.is_empty() || self.kinds.contains(&kind))
            && self.labels.iter().all(|(key, value)| record.labels.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Event, Gap};

    fn event(connection: &str, label: &str) -> Record {
        Record {
            connection: connection.into(),
            labels: [("site".to_owned(), label.to_owned())].into(),
            kind: Some(record::Kind::Event(Event::default())),
            ..Record::default()
        }
    }

    #[test]
    fn selects_by_all_that_is_given() {
        let wants = |filter, record: &Record| Filter::new(filter).unwrap().wants(record);
        let record = event("c1", "a");
        assert!(wants(RecordFilter::default(), &record));
        let by_name = RecordFilter { connections: vec!["c1".into()], ..RecordFilter::default() };
        assert!(wants(by_name.clone(), &record));
        assert!(!wants(by_name, &event("c2", "a")));
        let labels = [("site".to_owned(), "b".to_owned())].into();
        let by_label = RecordFilter { labels, ..RecordFilter::default() };
        assert!(!wants(by_label, &record));
        let by_kind = RecordFilter { kinds: vec![1], ..RecordFilter::default() };
        assert!(!wants(by_kind.clone(), &record));
        let gap = Record { kind: Some(record::Kind::Gap(Gap::default())), ..Record::default() };
        assert!(wants(by_kind, &gap), "a gap concerns every reader");
        assert!(Filter::new(RecordFilter { kinds: vec![9], ..RecordFilter::default() }).is_err());
    }
}
