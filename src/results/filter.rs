//! Selection of records by connection, session, kind and labels.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use super::content;
use crate::{
    proto::{RecordFilter, RecordKind},
    store::Entry,
    time::UnixTime,
};

/// Filter of records; empty sets select everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    connections: HashSet<String>,
    sessions: HashSet<String>,
    kinds: HashSet<RecordKind>,
    labels: BTreeMap<String, String>,
    times: Option<Range<UnixTime>>,
}

impl Filter {
    /// Converts the filter of a request; an error names an unknown kind.
    pub fn new(filter: RecordFilter) -> Result<Self, String> {
        let kinds = filter
            .kinds
            .iter()
            .map(|number| match RecordKind::try_from(*number) {
                Ok(RecordKind::Unspecified) | Err(_) => Err(format!(
                    "{number} is not a record kind: expected 1 (TEST_RESULT), 2 (PROBE_RESULTS), 3 (EVENT), \
                     4 (INTERVAL_RESULT)"
                )),
                Ok(kind) => Ok(kind),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            connections: filter.connections.into_iter().collect(),
            sessions: filter.sessions.into_iter().collect(),
            kinds,
            labels: filter.labels,
            times: None,
        })
    }

    /// Limits the selection to records of a range of times.
    pub fn with_times(self, times: Range<UnixTime>) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Returns the times of the records that are selected; `None` for all.
    pub(super) fn times(&self) -> Option<&Range<UnixTime>> {
        self.times.as_ref()
    }

    /// Returns true if an entry is selected. An entry without content never is.
    pub(super) fn selects(&self, entry: &Entry) -> bool {
        let Some(kind) = content::kind(entry) else { return false };
        let any = |set: &HashSet<String>, name: &String| set.is_empty() || set.contains(name);
        let subject = &entry.subject;
        any(&self.connections, &subject.connection)
            && any(&self.sessions, &subject.session)
            && self.times.as_ref().is_none_or(|times| times.contains(&entry.time))
            && (self.kinds.is_empty() || self.kinds.contains(&kind))
            && self.labels.iter().all(|(key, value)| subject.labels.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Subject, content};
    use std::sync::Arc;

    fn event(connection: &str, label: &str) -> Entry {
        let subject = Subject {
            connection: connection.into(),
            session: String::new(),
            labels: [("site".to_owned(), label.to_owned())].into(),
        };
        Entry {
            cursor: 1,
            time: Default::default(),
            subject: Arc::new(subject),
            kind: content::EVENT,
            content: Default::default(),
        }
    }

    #[test]
    fn records_must_match_all_fields_of_a_filter() {
        let selects = |filter, record: &Entry| Filter::new(filter).unwrap().selects(record);
        let record = event("c1", "a");
        assert!(selects(RecordFilter::default(), &record));
        let by_name = RecordFilter { connections: vec!["c1".into()], ..RecordFilter::default() };
        assert!(selects(by_name.clone(), &record));
        assert!(!selects(by_name, &event("c2", "a")));
        let labels = [("site".to_owned(), "b".to_owned())].into();
        let by_label = RecordFilter { labels, ..RecordFilter::default() };
        assert!(!selects(by_label, &record));
        let by_kind = RecordFilter { kinds: vec![1], ..RecordFilter::default() };
        assert!(!selects(by_kind, &record));
        let nothing = Entry { kind: content::NOTHING, ..record };
        assert!(!selects(RecordFilter::default(), &nothing));
        assert!(Filter::new(RecordFilter { kinds: vec![9], ..RecordFilter::default() }).is_err());
    }
}
