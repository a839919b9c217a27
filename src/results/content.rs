//! Stored form of the content of records.

use bytes::Bytes;
use prost::Message;

use super::{block, convert, statistics::IntervalResult};
use crate::{
    proto::{self, Event, Gap, Record, RecordKind, record},
    stats::{self, Figures, ProbeResult, TestResult},
    store::{Entry, MAXIMUM_CONTENT_OCTETS, StoreError, content},
    time::UnixTime,
};

/// Encodes the result of a test.
pub(super) fn test_result(result: &mut TestResult) -> Bytes {
    encode_within_limit(result, |result| result.figures.as_deref_mut())
}

/// Encodes the statistics of an interval.
pub(super) fn interval_result(result: &mut IntervalResult) -> Bytes {
    encode_within_limit(result, |result| result.figures.as_deref_mut())
}

/// Encodes a message. Makes its histograms coarser until the message fits into the size limit of the
/// store.
pub(super) fn encode_within_limit<M: Message>(
    message: &mut M,
    figures: fn(&mut M) -> Option<&mut Figures>,
) -> Bytes {
    let mut octets = message.encode_to_vec();
    let mut buckets = 128;
    while octets.len() > MAXIMUM_CONTENT_OCTETS && buckets > 1 {
        if let Some(figures) = figures(message) {
            stats::coarsen(figures, buckets);
        }
        octets = message.encode_to_vec();
        buckets /= 2;
    }
    octets.into()
}

/// Encodes probes for a record of the time `recorded`. Returns several contents only if a single one
/// would exceed the size limit.
pub(super) fn probe_results(mut probes: Vec<ProbeResult>, recorded: UnixTime) -> Vec<(u8, Bytes)> {
    let (kind, octets) = match block::encode(&probes, recorded) {
        Some(block) => (content::PROBE_BLOCK, block),
        None => {
            let results = ProbeResults { probes: probes.clone() };
            (content::PROBE_RESULTS, results.encode_to_vec())
        }
    };
    if octets.len() <= MAXIMUM_CONTENT_OCTETS || probes.len() < 2 {
        return vec![(kind, octets.into())];
    }
    let rest = probes.split_off(probes.len() / 2);
    [probe_results(probes, recorded), probe_results(rest, recorded)].concat()
}

/// Probes with values that a block cannot hold.
#[derive(Clone, PartialEq, Eq, Message)]
struct ProbeResults {
    #[prost(message, repeated, tag = "1")]
    probes: Vec<ProbeResult>,
}

/// Returns the kind of a record; `None` for a record that never had content.
pub(super) fn kind(entry: &Entry) -> Option<RecordKind> {
    match entry.kind & !content::REMOVED {
        content::TEST_RESULT => Some(RecordKind::TestResult),
        content::PROBE_BLOCK | content::PROBE_RESULTS => Some(RecordKind::ProbeResults),
        content::EVENT => Some(RecordKind::Event),
        content::INTERVAL_RESULT => Some(RecordKind::IntervalResult),
        _ => None,
    }
}

/// Returns true if retention removed the content of a record.
pub(super) fn is_removed(entry: &Entry) -> bool {
    entry.kind & content::REMOVED != 0
}

/// Decodes the record of an entry, without the parts that are never stored.
pub(super) fn decode(entry: &Entry) -> Result<Record, StoreError> {
    let damaged = || StoreError::Damaged("record");
    let content = entry.content.clone();
    let read = match kind(entry).filter(|_| !is_removed(entry)).ok_or_else(damaged)? {
        RecordKind::TestResult => TestResult::decode(content)
            .map(|result| record::Kind::TestResult(convert::test_result(result))),
        RecordKind::Event => Event::decode(content).map(record::Kind::Event),
        RecordKind::IntervalResult => IntervalResult::decode(content)
            .map(|result| record::Kind::IntervalResult(result.into())),
        RecordKind::ProbeResults | RecordKind::Unspecified => {
            let probes = if entry.kind == content::PROBE_BLOCK {
                block::decode(content, entry.time)
            } else {
                ProbeResults::decode(content).ok().map(|results| results.probes)
            };
            let probes = probes.ok_or_else(damaged)?.into_iter().map(convert::probe_result);
            Ok(record::Kind::ProbeResults(proto::ProbeResults { probes: probes.collect() }))
        }
    };
    Ok(Record {
        cursor: entry.cursor,
        time: Some(entry.time.to_proto()),
        connection: entry.subject.connection.clone(),
        session: entry.subject.session.clone(),
        labels: entry.subject.labels.clone(),
        // The reader adds the incarnation.
        incarnation: String::new(),
        kind: Some(read.map_err(|_| damaged())?),
    })
}

/// Creates a gap. It has the cursor of its last record, so that acknowledging it moves past the
/// gap.
pub(super) fn gap(first_cursor: u64, last_cursor: u64) -> Record {
    let kind = Some(record::Kind::Gap(Gap { first_cursor, last_cursor }));
    Record { cursor: last_cursor, kind, ..Record::default() }
}
