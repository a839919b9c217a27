//! Conversion of results to messages of the API. A field that is added to [`stats`] or to the API
//! alone does not compile until it is listed here.

use crate::{
    proto, stats,
    stats::{Histogram, HistogramBuckets, voice_quality},
    time::UnixTime,
};

/// Converts a value of [`stats`] to the message of the same name. The lists name the fields that are
/// equal in both, fields of both with their conversion, and fields that only the message has with
/// their value: `message!(Name of value; same: a, b; converted: c: function; added: d = 1)`.
macro_rules! message {
    (
        $name:ident of $value:expr;
        same: $($same:ident),*
        $(; converted: $($field:ident: $convert:expr),*)?
        $(; added: $($added:ident = $new:expr),*)?
    ) => {{
        let stats::$name { $($same,)* $($($field,)*)? } = $value;
        proto::$name {
            $($same,)*
            $($($field: $convert($field),)*)?
            $($($added: $new,)*)?
        }
    }};
}

/// Converts the result of a test.
pub(super) fn test_result(result: stats::TestResult) -> proto::TestResult {
    let stats::TestResult {
        test_number,
        outcome,
        start_unix_ns,
        end_unix_ns,
        cause,
        attempts,
        figures,
    } = result;
    proto::TestResult {
        test_number,
        outcome,
        start_time: Some(UnixTime(start_unix_ns).to_proto()),
        end_time: Some(UnixTime(end_unix_ns).to_proto()),
        cause,
        attempts,
        figures: figures.map(|figures| Box::new(self::figures(*figures))),
    }
}

/// Converts counts and delays, and estimates the voice quality. Percentiles are added by
/// [`add_percentiles`], because only the configuration of the session has their list.
pub fn figures(figures: stats::Figures) -> proto::Figures {
    let voice_quality = voice_quality(&figures)
        .map(|quality| message!(VoiceQuality of quality; same: r_factor, mos_cq));
    message!(Figures of figures;
        same: probes_scheduled,
        probes_sent,
        probes_not_sent,
        probes_received,
        probes_lost,
        probes_late,
        probes_duplicate,
        probes_reordered,
        probes_lost_egress,
        probes_lost_ingress,
        probes_lost_unattributed,
        packets_ignored,
        replies_without_error_estimate,
        interarrival_jitter_ns,
        one_way_validity,
        reflector_numbering,
        kernel_receive_timestamps,
        samples_invalid,
        egress_ttl,
        ingress_ttl,
        ingress_tos,
        egress_tos,
        packets_integrity_failed,
        reflector_timestamps_corrected,
        kernel_transmit_timestamps,
        samples_other_timestamp_source,
        transmit_timestamp_source,
        receive_timestamp_source,
        packets_dropped,
        probes_abandoned,
        egress_ttl_changes,
        ingress_ttl_changes,
        egress_tos_changes,
        ingress_tos_changes,
        clock_error_ns,
        reflector_clock_error_ns;
        converted: rtt: delay_stats,
        egress: delay_stats,
        ingress: delay_stats,
        rtt_jitter: delay_stats,
        egress_jitter: delay_stats,
        ingress_jitter: delay_stats,
        reflector_processing: delay_stats,
        schedule_error: delay_stats,
        egress_delay_variation: delay_stats,
        ingress_delay_variation: delay_stats,
        stamp: stamp_figures,
        loss_bursts: loss_burst_counts,
        reordering: reordering_extent,
        availability: availability_intervals;
        added: voice_quality = voice_quality
    )
}

fn delay_stats(stats: Option<Box<stats::DelayStats>>) -> Option<Box<proto::DelayStats>> {
    let stats = *stats?;
    let peak_to_peak_ns = stats.max_ns.abs_diff(stats.min_ns);
    Some(Box::new(message!(DelayStats of stats;
        same: samples, min_ns, max_ns, mean_ns, stddev_ns;
        converted: histogram: histogram_message;
        added: peak_to_peak_ns = peak_to_peak_ns, percentiles = Vec::new()
    )))
}

fn histogram_message(histogram: Option<HistogramBuckets>) -> Option<proto::Histogram> {
    let HistogramBuckets { precision, bucket_deltas, counts } = histogram?;
    Some(proto::Histogram { precision, bucket_deltas, counts })
}

/// Converts a message of the API to a histogram. An invalid message gives an empty histogram.
pub fn histogram(histogram: &proto::Histogram) -> Histogram {
    let proto::Histogram { precision, bucket_deltas, counts } = histogram.clone();
    Histogram::from(&HistogramBuckets { precision, bucket_deltas, counts })
}

fn loss_burst_counts(bursts: Option<stats::LossBursts>) -> Option<proto::LossBursts> {
    Some(message!(LossBursts of bursts?; same: bursts, max_length, counts_by_length))
}

fn reordering_extent(reordering: Option<stats::Reordering>) -> Option<proto::Reordering> {
    Some(message!(Reordering of reordering?; same: max_extent, total_extent))
}

fn availability_intervals(
    availability: Option<stats::Availability>,
) -> Option<proto::Availability> {
    Some(message!(Availability of availability?;
        same: available_intervals,
        unavailable_intervals,
        high_loss_intervals,
        consecutive_high_loss_intervals
    ))
}

fn stamp_figures(figures: Option<Box<stats::StampFigures>>) -> Option<Box<proto::StampFigures>> {
    Some(Box::new(message!(StampFigures of *figures?;
        same: replies_without_ssid,
        replies_without_tlvs,
        tlvs_unrecognised,
        tlvs_malformed,
        tlvs_integrity_failed,
        dscp_refused,
        direct_sender_transmitted,
        direct_reflector_received,
        direct_reflector_transmitted,
        reflector_sync_source,
        reflector_receive_method,
        reflector_transmit_method,
        observed_source_address,
        observed_destination_address,
        access_report_acknowledged
    )))
}

/// Converts the outcome of a probe.
pub fn probe_result(result: stats::ProbeResult) -> proto::ProbeResult {
    message!(ProbeResult of result;
        same: test_number,
        sequence,
        sent_unix_ns,
        status,
        rtt_ns,
        egress_ns,
        ingress_ns,
        reflector_processing_ns,
        reflector_sequence,
        egress_ttl,
        ingress_ttl,
        ingress_tos,
        egress_tos,
        transmit_timestamp_source,
        receive_timestamp_source,
        one_way_validity,
        reflector_timestamp_corrected
    )
}

/// Calculates percentiles of all delays with histograms. `percentiles` are percentages.
pub fn add_percentiles(figures: &mut proto::Figures, percentiles: &[f64]) {
    for stats in delays_with_histograms(figures).into_iter().flatten() {
        let Some(histogram) = stats.histogram.as_ref().map(histogram) else { continue };
        let value = |percent: &f64| {
            let value_ns = histogram.percentile(*percent)?.clamp(stats.min_ns, stats.max_ns);
            Some(proto::Percentile { percent: *percent, value_ns })
        };
        stats.percentiles = percentiles.iter().filter_map(value).collect();
    }
}

/// Removes all histograms.
pub fn remove_histograms(figures: &mut proto::Figures) {
    delays_with_histograms(figures).into_iter().flatten().for_each(|stats| stats.histogram = None);
}

/// Returns the delays that have histograms. `reflector_processing`, `schedule_error` and both delay
/// variations have only moments.
fn delays_with_histograms(
    figures: &mut proto::Figures,
) -> [&mut Option<Box<proto::DelayStats>>; 6] {
    [
        &mut figures.rtt,
        &mut figures.egress,
        &mut figures.ingress,
        &mut figures.rtt_jitter,
        &mut figures.egress_jitter,
        &mut figures.ingress_jitter,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fields_of_a_test_are_converted() {
        let result = stats::TestResult {
            test_number: 7,
            outcome: 1,
            start_unix_ns: 1_000_000_001,
            end_unix_ns: 2_000_000_002,
            cause: 3,
            attempts: 4,
            figures: Some(Box::new(stats::Figures { probes_sent: 5, ..Default::default() })),
        };
        let message = test_result(result);
        let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        assert_eq!((message.start_time, message.end_time), (at(1, 1), at(2, 2)));
        assert_eq!((message.test_number, message.outcome), (7, 1));
        assert_eq!((message.cause, message.attempts), (3, 4));
        assert_eq!(message.figures.unwrap().probes_sent, 5);
    }

    #[test]
    fn percentiles_come_with_the_histograms_and_stay_without_them() {
        let mut histogram = Histogram::default();
        histogram.add(1_000, stats::TEST_BUCKETS);
        let delays = |histogram| {
            let (samples, min_ns, max_ns) = (1, 1_000, 1_000);
            Some(Box::new(stats::DelayStats {
                samples,
                min_ns,
                max_ns,
                histogram,
                ..Default::default()
            }))
        };
        let buckets = || Some((&histogram).into());
        let mut message = figures(stats::Figures {
            rtt: delays(buckets()),
            egress: delays(buckets()),
            ingress: delays(buckets()),
            rtt_jitter: delays(buckets()),
            egress_jitter: delays(buckets()),
            ingress_jitter: delays(buckets()),
            reflector_processing: delays(None),
            schedule_error: delays(None),
            egress_delay_variation: delays(None),
            ingress_delay_variation: delays(None),
            ..Default::default()
        });
        add_percentiles(&mut message, &[50.0]);
        remove_histograms(&mut message);
        for stats in delays_with_histograms(&mut message) {
            let stats = stats.as_ref().unwrap();
            assert_eq!(stats.percentiles, [proto::Percentile { percent: 50.0, value_ns: 1_000 }]);
            assert_eq!(stats.histogram, None);
        }
        assert_eq!(message.reflector_processing.unwrap().percentiles, []);
    }
}
