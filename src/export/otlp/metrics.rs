//! Metrics of the results of tests and intervals: deltas from the start to the end of each.

use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum,
        metric::Data, number_data_point::Value,
    },
};

use super::{
    super::limits::{limits_ns, limits_seconds, seconds},
    peers::Peers,
    values,
};
use crate::{
    proto::{DelayStats, Figures, Record, Word, record},
    results::convert,
    time::UnixTime,
};

const RTT: &str = "rtt";

/// Figures of one result with the attributes and times of all of its points.
struct ResultPoint<'a> {
    figures: &'a Figures,
    attributes: Vec<KeyValue>,
    start_ns: u64,
    end_ns: u64,
}

/// Returns the metrics of results. Metrics of intervals have other names than those of tests, because
/// intervals cover the same probes.
pub(super) fn from_records(records: &[&Record], peers: &mut Peers) -> Vec<Metric> {
    let (mut tests, mut intervals) = (Vec::new(), Vec::new());
    let mut ended = Vec::new();
    let time =
        |time: Option<&prost_types::Timestamp>| time.map_or(0, |time| UnixTime::from_proto(time).0);
    for record in records {
        let mut attributes = values::record_attributes(record);
        attributes.extend(peers.attributes(record));
        match &record.kind {
            Some(record::Kind::TestResult(result)) => {
                let (start_ns, end_ns) =
                    (time(result.start_time.as_ref()), time(result.end_time.as_ref()));
                let outcome = result.outcome().word();
                let outcome = [values::text("twamp.outcome", outcome)];
                let of_test = attributes.iter().cloned().chain(outcome).collect();
                ended.push(number(of_test, start_ns, end_ns, Value::AsInt(1)));
                if let Some(figures) = result.figures.as_deref() {
                    tests.push(ResultPoint { figures, attributes, start_ns, end_ns });
                }
            }
            Some(record::Kind::IntervalResult(result)) => {
                let scope = result.scope().word().trim_start_matches("INTERVAL_");
                attributes.push(values::text("twamp.interval", scope));
                attributes.push(values::boolean("twamp.suspect", result.suspect));
                let (start_ns, end_ns) =
                    (time(result.start_time.as_ref()), time(result.end_time.as_ref()));
                if let Some(figures) = result.figures.as_deref() {
                    intervals.push(ResultPoint { figures, attributes, start_ns, end_ns });
                }
            }
            Some(record::Kind::ProbeResults(_) | record::Kind::Event(_) | record::Kind::Gap(_))
            | None => {}
        }
    }
    let mut metrics = vec![sum("twamp.tests", "{test}", "Tests that ended", ended)];
    metrics.extend(figures("twamp", &tests));
    metrics.extend(figures("twamp.interval", &intervals));
    metrics.retain(|metric| !is_empty(metric));
    metrics
}

/// Counters of probes: their name, and one count or several with the direction as an attribute.
type Counter = (&'static str, &'static str, &'static [(Option<&'static str>, Count)]);
type Count = fn(&Figures) -> u64;

const COUNTERS: [Counter; 8] = [
    ("sent", "Probes sent", &[(None, |f| f.probes_sent)]),
    ("not_sent", "Probes that were due and not sent", &[(None, |f| f.probes_not_sent)]),
    ("received", "Probes whose reply arrived in time", &[(None, |f| f.probes_received)]),
    (
        "lost",
        "Probes without a reply in time, by direction of the loss",
        &[
            (Some("egress"), |f| f.probes_lost_egress.unwrap_or(0)),
            (Some("ingress"), |f| f.probes_lost_ingress.unwrap_or(0)),
            (Some("unknown"), |f| f.probes_lost_unattributed),
        ],
    ),
    ("late", "Replies that arrived after the loss timeout", &[(None, |f| f.probes_late)]),
    ("duplicate", "Further replies to answered probes", &[(None, |f| f.probes_duplicate)]),
    (
        "reordered",
        "Replies that arrived after the reply to a later probe",
        &[(None, |f| f.probes_reordered)],
    ),
    (
        "abandoned",
        "Probes in flight when their test was cut short",
        &[(None, |f| f.probes_abandoned)],
    ),
];

fn counters(prefix: &str, results: &[ResultPoint<'_>]) -> Vec<Metric> {
    let counter = |(name, description, counts): &Counter| {
        let points = results.iter().flat_map(|one| {
            counts.iter().map(|(direction, count)| {
                let mut attributes = one.attributes.clone();
                attributes.extend(direction.map(|word| values::text("twamp.direction", word)));
                let count = Value::AsInt(count(one.figures).cast_signed());
                number(attributes, one.start_ns, one.end_ns, count)
            })
        });
        sum(&format!("{prefix}.probes.{name}"), "{probe}", description, points.collect())
    };
    COUNTERS.iter().map(counter).collect()
}

fn figures(prefix: &str, results: &[ResultPoint<'_>]) -> Vec<Metric> {
    let (mut quality, mut late) = (Vec::new(), Vec::new());
    for one in results {
        let figures = one.figures;
        if let Some(error) = figures.schedule_error.as_ref().filter(|error| error.samples > 0) {
            let most = Value::AsDouble(seconds(error.max_ns));
            late.push(number(one.attributes.clone(), one.start_ns, one.end_ns, most));
        }
        if let Some(voice) = &figures.voice_quality {
            let mos = Value::AsDouble(voice.mos_cq);
            quality.push(number(one.attributes.clone(), one.start_ns, one.end_ns, mos));
        }
    }
    let histogram = |name: &str, description: &str, of: fn(&Figures) -> Option<&DelayStats>| {
        let points = results.iter().filter_map(|one| {
            let mut attributes = one.attributes.clone();
            // One-way delays are meaningful only if both clocks are synchronised.
            if name != RTT {
                let validity = one.figures.one_way_validity().word();
                attributes.push(values::text("twamp.one_way_validity", validity));
            }
            for (key, source) in [
                ("twamp.transmit_timestamp_source", one.figures.transmit_timestamp_source()),
                ("twamp.receive_timestamp_source", one.figures.receive_timestamp_source()),
            ] {
                let source = source.word();
                attributes.push(values::text(key, source));
            }
            point(of(one.figures)?, one, attributes)
        });
        let points = points.collect();
        let data = Histogram {
            data_points: points,
            aggregation_temporality: AggregationTemporality::Delta.into(),
        };
        metric(&format!("{prefix}.{name}"), "s", description, Data::Histogram(data))
    };
    let mut metrics = counters(prefix, results);
    metrics.extend([
        histogram(RTT, "Round-trip time without the time in the reflector", |f| f.rtt.as_deref()),
        histogram("egress", "Delay to the reflector", |f| f.egress.as_deref()),
        histogram("ingress", "Delay from the reflector", |f| f.ingress.as_deref()),
        metric(
            &format!("{prefix}.mos"),
            "1",
            "Estimated quality of a voice call (G.107)",
            Data::Gauge(Gauge { data_points: quality }),
        ),
        metric(
            &format!("{prefix}.schedule_error.max"),
            "s",
            "Largest delay of a probe against its schedule",
            Data::Gauge(Gauge { data_points: late }),
        ),
    ]);
    metrics
}

fn point(
    stats: &DelayStats,
    result: &ResultPoint<'_>,
    attributes: Vec<KeyValue>,
) -> Option<HistogramDataPoint> {
    let histogram = convert::histogram(stats.histogram.as_ref()?);
    let mut below = 0;
    let mut bucket_counts: Vec<u64> = histogram
        .cumulative(&limits_ns())
        .into_iter()
        .map(|count| count - std::mem::replace(&mut below, count))
        .collect();
    bucket_counts.push(histogram.count() - below);
    Some(HistogramDataPoint {
        attributes,
        start_time_unix_nano: result.start_ns,
        time_unix_nano: result.end_ns,
        count: histogram.count(),
        // OTLP allows a sum only of values that cannot be negative.
        sum: (stats.min_ns >= 0).then(|| stats.mean_ns * stats.samples as f64 / 1e9),
        bucket_counts,
        explicit_bounds: limits_seconds(),
        min: Some(seconds(stats.min_ns)),
        max: Some(seconds(stats.max_ns)),
        ..HistogramDataPoint::default()
    })
}

fn number(
    attributes: Vec<KeyValue>,
    start_time_unix_nano: u64,
    time_unix_nano: u64,
    value: Value,
) -> NumberDataPoint {
    NumberDataPoint {
        attributes,
        start_time_unix_nano,
        time_unix_nano,
        value: Some(value),
        ..NumberDataPoint::default()
    }
}

fn sum(name: &str, unit: &str, description: &str, data_points: Vec<NumberDataPoint>) -> Metric {
    let data = Sum {
        data_points,
        aggregation_temporality: AggregationTemporality::Delta.into(),
        is_monotonic: true,
    };
    metric(name, unit, description, Data::Sum(data))
}

fn metric(name: &str, unit: &str, description: &str, data: Data) -> Metric {
    Metric {
        name: name.to_owned(),
        unit: unit.to_owned(),
        description: description.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn is_empty(metric: &Metric) -> bool {
    match &metric.data {
        Some(Data::Sum(sum)) => sum.data_points.is_empty(),
        Some(Data::Gauge(gauge)) => gauge.data_points.is_empty(),
        Some(Data::Histogram(histogram)) => histogram.data_points.is_empty(),
        Some(Data::ExponentialHistogram(_) | Data::Summary(_)) | None => true,
    }
}
