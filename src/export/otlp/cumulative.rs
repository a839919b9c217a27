//! Cumulative metrics: totals of each series since the exporter received the first record of it.

use std::collections::HashMap;

use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, HistogramDataPoint, Metric, NumberDataPoint, metric::Data,
        number_data_point::Value,
    },
};
use prost::Message;
use sha2::{Digest, Sha256};

/// Maximum number of series in memory. If there are more, the tenth that was updated longest ago is
/// removed. A removed series begins again with a new start time, which receivers treat as a reset.
const MAX_SERIES: usize = 1_000_000;

/// Digest of the name of a metric and the attributes of a point, which would take far more memory than
/// the totals.
type Key = [u8; 16];

/// Totals of all series. They begin again when the agent restarts.
#[derive(Debug, Default)]
pub(super) struct Totals {
    series: HashMap<Key, Series>,
}

/// Totals that are valid once the receiver has accepted the metrics made from them.
#[derive(Debug, Default)]
pub(super) struct Pending {
    series: HashMap<Key, Series>,
}

#[derive(Clone, Debug)]
struct Series {
    start_ns: u64,
    latest_ns: u64,
    total: Total,
}

#[derive(Clone, Debug)]
enum Total {
    Count(i64),
    Histogram(Box<HistogramTotal>),
}

#[derive(Clone, Debug)]
struct HistogramTotal {
    count: u64,
    /// Sum of the delays; `None` after a negative delay, because a sum must not decrease.
    sum: Option<f64>,
    buckets: Vec<u64>,
    min: Option<f64>,
    max: Option<f64>,
}

impl Totals {
    /// Converts deltas to cumulative values. The totals do not change until [`Self::commit`], so that a
    /// retry gives the same values again.
    pub(super) fn accumulate(&self, metrics: &mut [Metric]) -> Pending {
        let mut pending = Pending::default();
        let cumulative = AggregationTemporality::Cumulative.into();
        for metric in metrics {
            match &mut metric.data {
                Some(Data::Sum(sum)) => {
                    sum.aggregation_temporality = cumulative;
                    for point in &mut sum.data_points {
                        self.add_count(&metric.name, point, &mut pending);
                    }
                }
                Some(Data::Histogram(histogram)) => {
                    histogram.aggregation_temporality = cumulative;
                    for point in &mut histogram.data_points {
                        self.add_histogram(&metric.name, point, &mut pending);
                    }
                }
                Some(Data::Gauge(_) | Data::ExponentialHistogram(_) | Data::Summary(_)) | None => {}
            }
        }
        pending
    }

    /// Keeps the totals of metrics that were accepted.
    pub(super) fn commit(&mut self, pending: Pending) {
        self.series.extend(pending.series);
        self.limit(MAX_SERIES);
    }

    fn limit(&mut self, most: usize) {
        if self.series.len() <= most {
            return;
        }
        let mut times: Vec<u64> = self.series.values().map(|series| series.latest_ns).collect();
        let excess = self.series.len() - most + most / 10;
        let (_, newest_removed, _) = times.select_nth_unstable(excess.min(self.series.len()) - 1);
        let newest_removed = *newest_removed;
        self.series.retain(|_, series| series.latest_ns > newest_removed);
    }

    fn add_count(&self, name: &str, point: &mut NumberDataPoint, pending: &mut Pending) {
        let Some(Value::AsInt(delta)) = point.value else { return };
        let times = (point.start_time_unix_nano, point.time_unix_nano);
        let series = self.series(key(name, &point.attributes), times, pending, || Total::Count(0));
        if let Total::Count(count) = &mut series.total {
            *count = count.saturating_add(delta);
            point.value = Some(Value::AsInt(*count));
        }
        point.start_time_unix_nano = series.start_ns;
    }

    fn add_histogram(&self, name: &str, point: &mut HistogramDataPoint, pending: &mut Pending) {
        let times = (point.start_time_unix_nano, point.time_unix_nano);
        let empty = || {
            let buckets = vec![0; point.bucket_counts.len()];
            let (min, max) = (None, None);
            let total = HistogramTotal { count: 0, sum: Some(0.0), buckets, min, max };
            Total::Histogram(Box::new(total))
        };
        let series = self.series(key(name, &point.attributes), times, pending, empty);
        if let Total::Histogram(total) = &mut series.total {
            total.count += point.count;
            total.sum = total.sum.zip(point.sum).map(|(total, delta)| total + delta);
            for (total, delta) in total.buckets.iter_mut().zip(&point.bucket_counts) {
                *total += delta;
            }
            let least = total.min.into_iter().chain(point.min).reduce(f64::min);
            let most = total.max.into_iter().chain(point.max).reduce(f64::max);
            (total.min, total.max) = (least, most);
            (point.count, point.sum) = (total.count, total.sum);
            point.bucket_counts.clone_from(&total.buckets);
            (point.min, point.max) = (least, most);
        }
        point.start_time_unix_nano = series.start_ns;
    }

    /// Returns the series of a point. The times are those of the delta of the point.
    fn series<'a>(
        &self,
        key: Key,
        (start_ns, end_ns): (u64, u64),
        pending: &'a mut Pending,
        empty: impl Fn() -> Total,
    ) -> &'a mut Series {
        let new = || Series { start_ns, latest_ns: end_ns, total: empty() };
        let series = pending
            .series
            .entry(key)
            .or_insert_with(|| self.series.get(&key).cloned().unwrap_or_else(new));
        if end_ns <= series.start_ns {
            // The clock was stepped back: no point may be older than the start of its series.
            *series = new();
        }
        series.latest_ns = end_ns;
        series
    }
}

fn key(name: &str, attributes: &[KeyValue]) -> Key {
    let mut digest = Sha256::new();
    digest.update(name);
    for attribute in attributes {
        digest.update(attribute.encode_length_delimited_to_vec());
    }
    let mut key = Key::default();
    key.copy_from_slice(&digest.finalize()[..16]);
    key
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::metrics::v1::{Histogram, Sum};

    use super::*;
    use crate::export::otlp::values::text;

    fn sum(session: &str, deltas: &[(u64, u64, i64)]) -> Metric {
        let point = |(start, end, delta): &(u64, u64, i64)| NumberDataPoint {
            attributes: vec![text("twamp.session", session)],
            start_time_unix_nano: *start,
            time_unix_nano: *end,
            value: Some(Value::AsInt(*delta)),
            ..NumberDataPoint::default()
        };
        let data_points = deltas.iter().map(point).collect();
        let data = Data::Sum(Sum { data_points, is_monotonic: true, ..Sum::default() });
        Metric { name: "twamp.probes.sent".into(), data: Some(data), ..Metric::default() }
    }

    /// Start, end and value of each point.
    fn points(metric: &Metric) -> Vec<(u64, u64, i64)> {
        let Some(Data::Sum(sum)) = &metric.data else { return Vec::new() };
        assert_eq!(sum.aggregation_temporality(), AggregationTemporality::Cumulative);
        let value = |point: &NumberDataPoint| match point.value {
            Some(Value::AsInt(value)) => value,
            _ => i64::MIN,
        };
        let points = sum.data_points.iter();
        points.map(|p| (p.start_time_unix_nano, p.time_unix_nano, value(p))).collect()
    }

    #[test]
    fn values_add_up_from_the_start_of_the_series() {
        let mut totals = Totals::default();
        let mut metrics = [sum("a", &[(10, 20, 3), (21, 30, 4)]), sum("b", &[(12, 22, 5)])];
        let pending = totals.accumulate(&mut metrics);
        assert_eq!(points(&metrics[0]), [(10, 20, 3), (10, 30, 7)]);
        assert_eq!(points(&metrics[1]), [(12, 22, 5)]);
        totals.commit(pending);
        let mut metrics = [sum("a", &[(31, 40, 1)])];
        totals.accumulate(&mut metrics);
        assert_eq!(points(&metrics[0]), [(10, 40, 8)]);
    }

    #[test]
    fn what_was_not_accepted_is_not_counted_twice() {
        let mut totals = Totals::default();
        for _ in 0..3 {
            let mut metrics = [sum("a", &[(10, 20, 3)])];
            let pending = totals.accumulate(&mut metrics);
            assert_eq!(points(&metrics[0]), [(10, 20, 3)]);
            drop(pending);
        }
        let pending = totals.accumulate(&mut [sum("a", &[(10, 20, 3)])]);
        totals.commit(pending);
        let mut metrics = [sum("a", &[(20, 30, 3)])];
        totals.accumulate(&mut metrics);
        assert_eq!(points(&metrics[0]), [(10, 30, 6)]);
    }

    #[test]
    fn a_clock_that_is_stepped_back_begins_the_series_again() {
        let mut totals = Totals::default();
        let pending = totals.accumulate(&mut [sum("a", &[(100, 200, 3)])]);
        totals.commit(pending);
        let mut metrics = [sum("a", &[(10, 20, 4), (20, 30, 5)])];
        totals.accumulate(&mut metrics);
        assert_eq!(points(&metrics[0]), [(10, 20, 4), (10, 30, 9)]);
    }

    #[test]
    fn histograms_add_up_and_have_no_sum_once_a_delay_was_negative() {
        let mut totals = Totals::default();
        let metric = |sum: Option<f64>, min: f64| {
            let point = HistogramDataPoint {
                start_time_unix_nano: 1,
                time_unix_nano: 2,
                count: 3,
                sum,
                bucket_counts: vec![1, 2],
                min: Some(min),
                max: Some(min + 1.0),
                ..HistogramDataPoint::default()
            };
            let data = Histogram { data_points: vec![point], ..Histogram::default() };
            let data = Some(Data::Histogram(data));
            [Metric { name: "twamp.egress".into(), data, ..Metric::default() }]
        };
        let mut add = |sum, min| {
            let mut metrics = metric(sum, min);
            let pending = totals.accumulate(&mut metrics);
            totals.commit(pending);
            let Some(Data::Histogram(histogram)) = &metrics[0].data else { return None };
            let point = histogram.data_points.first()?;
            Some((point.count, point.sum, point.bucket_counts.clone(), point.min, point.max))
        };
        assert_eq!(add(Some(1.5), 0.5), Some((3, Some(1.5), vec![1, 2], Some(0.5), Some(1.5))));
        assert_eq!(add(Some(2.0), 0.25), Some((6, Some(3.5), vec![2, 4], Some(0.25), Some(1.5))));
        assert_eq!(add(None, -1.0), Some((9, None, vec![3, 6], Some(-1.0), Some(1.5))));
        assert_eq!(add(Some(1.0), 1.0), Some((12, None, vec![4, 8], Some(-1.0), Some(2.0))));
    }

    #[test]
    fn the_series_that_rest_the_longest_go_first() {
        let mut totals = Totals::default();
        for n in 0..101u64 {
            let metrics = &mut [sum(&n.to_string(), &[(n, n + 1, 1)])];
            let pending = totals.accumulate(metrics);
            totals.commit(pending);
        }
        totals.limit(100);
        assert_eq!(totals.series.len(), 90);
        assert!(totals.series.values().all(|series| series.latest_ns > 11));
    }
}
