//! Log records of events, gaps and single probes.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::{LogRecord, SeverityNumber},
};

use super::{
    peers::Peers,
    values::{self, number, text},
};
use crate::{
    proto::{Event, EventType, FailureCause, ProbeResult, Record, Threshold, Word, record},
    time::UnixTime,
};

/// Returns the log records of a record: one, or one for each probe.
pub(super) fn from_record(record: &Record, peers: &mut Peers) -> Vec<LogRecord> {
    let mut attributes = values::record_attributes(record);
    attributes.extend(peers.attributes(record));
    attributes.push(number("twamp.cursor", record.cursor.cast_signed()));
    if !record.incarnation.is_empty() {
        attributes.push(text("twamp.incarnation", &record.incarnation));
    }
    let time_ns = record.time.as_ref().map_or(0, |time| UnixTime::from_proto(time).0);
    match &record.kind {
        Some(record::Kind::Event(event)) => vec![event_log(event, attributes, time_ns)],
        Some(record::Kind::ProbeResults(results)) => {
            results.probes.iter().map(|probe| probe_log(probe, &attributes)).collect()
        }
        Some(record::Kind::Gap(gap)) => {
            let body = format!(
                "records {} to {} do not exist: removed by retention, lost or never written",
                gap.first_cursor, gap.last_cursor
            );
            attributes.push(number("twamp.gap.first_cursor", gap.first_cursor.cast_signed()));
            attributes.push(number("twamp.gap.last_cursor", gap.last_cursor.cast_signed()));
            vec![log("twamp.gap", SeverityNumber::Warn, body, attributes, time_ns)]
        }
        Some(record::Kind::TestResult(_) | record::Kind::IntervalResult(_)) | None => Vec::new(),
    }
}

fn event_log(event: &Event, mut attributes: Vec<KeyValue>, time_ns: u64) -> LogRecord {
    let name = event.r#type().word();
    let severity = match event.r#type() {
        EventType::ConnectionLost
        | EventType::ConnectionAbandoned
        | EventType::ThresholdRaised
        | EventType::AgentPaused
        | EventType::HostChanged
        | EventType::StoreDegraded
        | EventType::ClockStepped => SeverityNumber::Warn,
        EventType::Unspecified
        | EventType::AgentStarted
        | EventType::ConfigurationCommitted
        | EventType::ConnectionRestored
        | EventType::ConnectionCompleted
        | EventType::TestDone
        | EventType::TestIterationDone
        | EventType::ThresholdCleared
        | EventType::StoreRecovered
        | EventType::AgentStopped
        | EventType::StatisticsCleared => SeverityNumber::Info,
    };
    if event.cause() != FailureCause::Unspecified {
        let cause = event.cause().word();
        attributes.push(text("twamp.cause", cause));
    }
    if event.threshold() != Threshold::Unspecified {
        let threshold = event.threshold().word();
        attributes.push(text("twamp.threshold", threshold));
        attributes.push(number("twamp.limit", event.limit));
    }
    for (key, value) in [
        ("twamp.value", event.value),
        ("twamp.attempts", event.attempts.cast_signed()),
        ("twamp.revision", event.revision.cast_signed()),
        ("twamp.test", event.test_number.cast_signed()),
    ] {
        if value != 0 {
            attributes.push(number(key, value));
        }
    }
    if let Some(duration) = &event.duration {
        let nanoseconds = duration.seconds * 1_000_000_000 + i64::from(duration.nanos);
        attributes.push(number("twamp.duration_ns", nanoseconds));
    }
    let body = match event.detail.as_str() {
        "" => name.to_owned(),
        detail => format!("{name}: {detail}"),
    };
    let event_name = format!("twamp.{}", name.to_ascii_lowercase());
    log(&event_name, severity, body, attributes, time_ns)
}

fn probe_log(probe: &ProbeResult, attributes: &[KeyValue]) -> LogRecord {
    let status = probe.status().word();
    let mut attributes = attributes.to_vec();
    attributes.push(number("twamp.test", probe.test_number.cast_signed()));
    attributes.push(number("twamp.sequence", probe.sequence.into()));
    for (key, value) in [
        ("twamp.rtt_ns", probe.rtt_ns),
        ("twamp.egress_ns", probe.egress_ns),
        ("twamp.ingress_ns", probe.ingress_ns),
        ("twamp.reflector_processing_ns", probe.reflector_processing_ns),
        ("twamp.egress_ttl", probe.egress_ttl.map(i64::from)),
        ("twamp.ingress_ttl", probe.ingress_ttl.map(i64::from)),
        ("twamp.egress_tos", probe.egress_tos.map(i64::from)),
        ("twamp.ingress_tos", probe.ingress_tos.map(i64::from)),
    ] {
        if let Some(value) = value {
            attributes.push(number(key, value));
        }
    }
    attributes
        .push(text("twamp.transmit_timestamp_source", probe.transmit_timestamp_source().word()));
    if probe.receive_timestamp_source.is_some() {
        attributes
            .push(text("twamp.receive_timestamp_source", probe.receive_timestamp_source().word()));
    }
    if probe.one_way_validity.is_some() {
        attributes.push(text("twamp.one_way_validity", probe.one_way_validity().word()));
    }
    log("twamp.probe", SeverityNumber::Info, status.to_owned(), attributes, probe.sent_unix_ns)
}

fn log(
    event_name: &str,
    severity: SeverityNumber,
    body: String,
    attributes: Vec<KeyValue>,
    time_unix_nano: u64,
) -> LogRecord {
    LogRecord {
        time_unix_nano,
        observed_time_unix_nano: time_unix_nano,
        severity_number: severity.into(),
        severity_text: if severity == SeverityNumber::Warn { "WARN" } else { "INFO" }.into(),
        body: Some(AnyValue { value: Some(Value::StringValue(body)) }),
        attributes,
        event_name: event_name.to_owned(),
        ..LogRecord::default()
    }
}
