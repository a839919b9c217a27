//! Conversion of results to messages of the API. A field that exists on one side only is a compile
//! error.

use crate::{
    proto, stats,
    stats::{Histogram, HistogramBuckets, voice_quality},
    time::UnixTime,
};

/// Converts a value of [`stats`] to the message of the same name: fields that are equal in both,
/// then fields with their own conversion, then fields that only the message has.
macro_rules! message {
    ($name:ident of $value:expr; $($same:ident),*; $($field:ident: $convert:expr),*; $($added:ident = $new:expr),*) => {{
        let stats::$name { $($same,)* $($field,)* } = $value;
        proto::$name { $($same,)* $($field: $convert($field),)* $($added: $new,)* }
    }};
}

/// Converts the result of a test.
pub(super) fn test_result(result: stats::TestResult) -> proto::TestResult {
    let (start, end) = (UnixTime(result.start_unix_ns), UnixTime(result.end_unix_ns));
    let stats::TestResult { test_number, outcome, cause, attempts, figures, .. } = result;
    proto::TestResult {
        test_number,
        outcome,
        start_time: Some(start.to_proto()),
        end_time: Some(end.to_proto()),
        cause,
        attempts,
        figures: figures.map(|figures| Box::new(self::figures(*figures))),
    }
}

/// Converts counts and delays, and estimates the voice quality. Percentiles are left out.
pub fn figures(figures: stats::Figures) -> proto::Figures {
    let voice_quality = voice_quality(&figures)
        .map(|quality| message!(VoiceQuality of quality; r_factor, mos_cq; ;));
    message!(Figures of figures;
        probes_scheduled,
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
        rtt: delay_stats,
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
        voice_quality = voice_quality
    )
}

fn delay_stats(stats: Option<Box<stats::DelayStats>>) -> Option<Box<proto::DelayStats>> {
    let stats = *stats?;
    let peak_to_peak_ns = stats.max_ns.abs_diff(stats.min_ns);
    Some(Box::new(message!(DelayStats of stats;
        samples, min_ns, max_ns, mean_ns, stddev_ns;
        histogram: histogram_message;
        peak_to_peak_ns = peak_to_peak_ns, percentiles = Vec::new()
    )))
}

fn histogram_message(histogram: Option<HistogramBuckets>) -> Option<proto::Histogram> {
    let HistogramBuckets { precision, bucket_deltas, counts } = histogram?;
    Some(proto::Histogram { precision, bucket_deltas, counts })
}

/// Converts a histogram back; an invalid one becomes empty.
pub fn histogram(histogram: &proto::Histogram) -> Histogram {
    let proto::Histogram { precision, bucket_deltas, counts } = histogram.clone();
    Histogram::from(&HistogramBuckets { precision, bucket_deltas, counts })
}

fn loss_burst_counts(bursts: Option<stats::LossBursts>) -> Option<proto::LossBursts> {
    Some(message!(LossBursts of bursts?; bursts, max_length, counts_by_length; ;))
}

fn reordering_extent(reordering: Option<stats::Reordering>) -> Option<proto::Reordering> {
    Some(message!(Reordering of reordering?; max_extent, total_extent; ;))
}

fn availability_intervals(
    availability: Option<stats::Availability>,
) -> Option<proto::Availability> {
    Some(message!(Availability of availability?;
        available_intervals,
        unavailable_intervals,
        high_loss_intervals,
        consecutive_high_loss_intervals;
        ;
    ))
}

fn stamp_figures(figures: Option<Box<stats::StampFigures>>) -> Option<Box<proto::StampFigures>> {
    Some(Box::new(message!(StampFigures of *figures?;
        replies_without_ssid,
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
        access_report_acknowledged;
        ;
    )))
}

/// Converts the outcome of a probe.
pub fn probe_result(result: stats::ProbeResult) -> proto::ProbeResult {
    message!(ProbeResult of result;
        test_number,
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
        reflector_timestamp_corrected;
        ;
    )
}

/// Adds the percentiles of all delays that have histograms.
pub fn add_percentiles(figures: &mut proto::Figures, percentiles: &[f64]) {
    for stats in all_delays(figures).into_iter().flatten() {
        let Some(histogram) = stats.histogram.as_ref().map(histogram) else { continue };
        let value = |percent: &f64| {
            let value_ns = histogram.percentile(*percent)?.clamp(stats.min_ns, stats.max_ns);
            Some(proto::Percentile { percent: *percent, value_ns })
        };
        stats.percentiles = percentiles.iter().filter_map(value).collect();
    }
}

/// Removes the histograms of all delays.
pub fn remove_histograms(figures: &mut proto::Figures) {
    all_delays(figures).into_iter().flatten().for_each(|stats| stats.histogram = None);
}

fn all_delays(figures: &mut proto::Figures) -> [&mut Option<Box<proto::DelayStats>>; 9] {
    [
        &mut figures.rtt,
        &mut figures.egress,
        &mut figures.ingress,
        &mut figures.rtt_jitter,
        &mut figures.egress_jitter,
        &mut figures.ingress_jitter,
        &mut figures.reflector_processing,
        &mut figures.egress_delay_variation,
        &mut figures.ingress_delay_variation,
    ]
}
