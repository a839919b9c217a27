//! From layouts of earlier agents to this one, one step for each version. A step that was cut short
//! is done again from its beginning, and comes to the same.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::{
    Entry, Retention, StoreError, Subject, content,
    engine::Engine,
    results::{Trees, snapshot_value},
    windows::Windows,
};
use crate::{
    proto::{self, record},
    time::UnixTime,
};

/// One tree for each window, with records by cursor: their time and a [`proto::Record`].
const RECORDS_OF_1: &[u8] = b"log/";

/// Statistics of a session as schema 1 kept them, under connection, NUL and session.
#[derive(Clone, PartialEq, Message)]
struct StatisticsOf1 {
    #[prost(bytes = "vec", optional, tag = "1")]
    all: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    last: Option<Vec<u8>>,
    #[prost(uint64, tag = "3")]
    as_of_cursor: u64,
}

/// Brings the result database to this agent's layout.
pub(super) fn forward(engine: &Engine, trees: &Trees) -> Result<(), StoreError> {
    if engine.schema() == 1 {
        tracing::info!("results of an earlier agent are taken over");
        records_of_1(engine, trees)?;
        statistics_of_1(trees)?;
    }
    engine.set_schema()
}

fn records_of_1(engine: &Engine, trees: &Trees) -> Result<(), StoreError> {
    let mut names = engine.tree_names();
    names.retain(|name| name.starts_with(RECORDS_OF_1));
    names.sort_unstable();
    // Every old window becomes one: what made it end was its age or its size.
    let whole = Retention::forever();
    for name in names {
        let mut windows = Windows::beginning(trees.meta.clone());
        for entry in &engine.tree(&name)? {
            let (key, value) = entry?;
            let entry = entry_of_1(&key, &value).ok_or(StoreError::Damaged("record"))?;
            windows.append(engine, &whole, &entry)?;
        }
        windows.write_page()?;
        windows.summarise()?;
        drop(windows);
        engine.flush_durably()?;
        engine.drop_tree(&name)?;
        trees.meta.remove(&name)?;
    }
    Ok(())
}

fn entry_of_1(key: &[u8], value: &[u8]) -> Option<Entry> {
    let cursor = u64::from_be_bytes(key.try_into().ok()?);
    let (time, record) = value.split_first_chunk()?;
    let record = proto::Record::decode(record).ok()?;
    let (kind, content) = match record.kind? {
        record::Kind::TestResult(result) => (content::TEST_RESULT, result.encode_to_vec()),
        record::Kind::ProbeResults(probes) => (content::PROBE_RESULTS, probes.encode_to_vec()),
        record::Kind::Event(event) => (content::EVENT, event.encode_to_vec()),
        record::Kind::Gap(_) | record::Kind::IntervalResult(_) => return None,
    };
    let subject =
        Subject { connection: record.connection, session: record.session, labels: record.labels };
    let time = UnixTime(u64::from_be_bytes(*time));
    Some(Entry { cursor, time, subject: Arc::new(subject), kind, content: Bytes::from(content) })
}

fn statistics_of_1(trees: &Trees) -> Result<(), StoreError> {
    let tree = &trees.statistics;
    let old: Vec<_> = tree.iter().collect::<sled::Result<_>>()?;
    for (key, value) in old {
        let names = key.split(|octet| *octet == 0).count();
        // Those of this layout have a third part; without names it is the mark of the whole.
        if names > 2 || key.is_empty() && value.len() == size_of::<u64>() {
            continue;
        }
        let StatisticsOf1 { all, last, as_of_cursor } =
            StatisticsOf1::decode(value.as_ref()).map_err(|_| StoreError::Damaged("statistics"))?;
        if key.is_empty() {
            tree.insert(key, snapshot_value(as_of_cursor, &[]))?;
            continue;
        }
        let last = last.map(|last| result_of(&last)).transpose()?;
        for (part, content) in [(content::STATISTICS_ALL, all), (content::STATISTICS_LAST, last)] {
            if let Some(content) = content {
                let key = [key.as_ref(), &[0], part].concat();
                tree.insert(key, snapshot_value(as_of_cursor, &content))?;
            }
        }
        tree.remove(key)?;
    }
    Ok(())
}

/// The result that the statistics of the last test were made of, but for its number.
fn result_of(statistics: &[u8]) -> Result<Vec<u8>, StoreError> {
    let last = proto::Statistics::decode(statistics);
    let last = last.map_err(|_| StoreError::Damaged("statistics"))?;
    let outcome = match () {
        () if last.tests_complete > 0 => proto::TestOutcome::Complete,
        () if last.tests_interrupted > 0 => proto::TestOutcome::Interrupted,
        () if last.tests_unreachable > 0 => proto::TestOutcome::Unreachable,
        () => proto::TestOutcome::Stopped,
    };
    let result = proto::TestResult {
        outcome: outcome.into(),
        start_time: last.start_time,
        end_time: last.end_time,
        figures: last.figures,
        ..proto::TestResult::default()
    };
    Ok(result.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ResultStore, StateDirectory};

    fn now() -> crate::time::Now {
        crate::time::Now { unix: UnixTime(1_000_000_000_000_000_000), ..Default::default() }
    }

    #[test]
    fn records_and_statistics_of_schema_1_are_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let engine = Engine::open(&directory.path().join("results.sled"), 1 << 20).unwrap();
        let trees = Trees::open(&engine).unwrap();
        trees.meta.insert("schema", &1u32.to_be_bytes()).unwrap();
        engine.set_schema_to(1).unwrap();
        let at = now().unix.0 - 1_000;
        let mut cursor = 1u64;
        for first in [1u64, 41] {
            let tree = engine.tree([RECORDS_OF_1, &first.to_be_bytes()].concat()).unwrap();
            for _ in 0..40 {
                let kind = match cursor % 3 {
                    0 => record::Kind::Event(proto::Event::default()),
                    1 => record::Kind::TestResult(proto::TestResult {
                        test_number: cursor,
                        ..Default::default()
                    }),
                    _ => record::Kind::ProbeResults(proto::ProbeResults {
                        probes: vec![proto::ProbeResult { sequence: 9, ..Default::default() }],
                    }),
                };
                let record = proto::Record {
                    connection: "c".into(),
                    session: "s".into(),
                    kind: Some(kind),
                    ..Default::default()
                };
                let value = [at.to_be_bytes().to_vec(), record.encode_to_vec()].concat();
                tree.insert(cursor.to_be_bytes(), value).unwrap();
                cursor += 1;
            }
        }
        let last = proto::Statistics { tests_interrupted: 1, ..Default::default() };
        let last = Some(last.encode_to_vec());
        let statistics = StatisticsOf1 { all: Some(vec![1]), last, as_of_cursor: 77 };
        trees.statistics.insert(b"c\0s", statistics.encode_to_vec()).unwrap();
        let mark = StatisticsOf1 { as_of_cursor: 77, ..Default::default() };
        trees.statistics.insert(b"", mark.encode_to_vec()).unwrap();
        engine.flush_durably().unwrap();
        drop(trees);
        drop(engine);

        for run in 0..3 {
            let retention = Retention::of_all(u64::MAX, 1 << 30);
            let store = ResultStore::open(&state, retention, "agent", now).unwrap();
            let newest = 80 + run;
            let found = store.state().borrow().clone();
            assert_eq!((found.newest, found.records), (newest, newest));
            let entries = store.entries(0, newest, 1000, 1 << 20, false).unwrap();
            assert_eq!(entries.len() as u64, newest);
            // What comes is behind it, also for the next start.
            store.append(Entry { cursor: store.next_cursor(), ..entries[0].clone() }).unwrap();
            assert!(entries.iter().zip(1..).all(|(entry, cursor)| entry.cursor == cursor));
            assert_eq!(entries[0].kind, content::TEST_RESULT);
            let result = proto::TestResult::decode(entries[0].content.clone()).unwrap();
            assert_eq!((result.test_number, &*entries[0].subject.session), (1, "s"));
            let mut kept = store.statistics().unwrap();
            kept.sort_by_key(|snapshot| snapshot.content.clone());
            assert!(kept.iter().all(|snapshot| snapshot.as_of_cursor == 77));
            let contents: Vec<_> = kept.into_iter().map(|snapshot| snapshot.content).collect();
            let interrupted = proto::TestOutcome::Interrupted.into();
            let last = proto::TestResult { outcome: interrupted, ..Default::default() };
            assert_eq!(contents, [vec![], vec![1], last.encode_to_vec()]);
            store.close();
        }
    }
}
