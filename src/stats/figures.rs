//! Figures of several tests together.

use super::{
    DelayStats, Figures, Histogram, MERGED_BUCKETS, Moments, StampFigures, bursts, reordering,
};
use crate::model::TimestampSource;

/// Adds the figures of a later test. Counts are added and delays are merged. Values of the latest
/// packet are taken from the later test, if it has received any.
pub fn merge(into: &mut Figures, later: &Figures) {
    let sum = |into: &mut u64, later: u64| *into += later;
    sum(&mut into.probes_scheduled, later.probes_scheduled);
    sum(&mut into.probes_sent, later.probes_sent);
    sum(&mut into.probes_not_sent, later.probes_not_sent);
    sum(&mut into.probes_received, later.probes_received);
    sum(&mut into.probes_lost, later.probes_lost);
    sum(&mut into.probes_late, later.probes_late);
    sum(&mut into.probes_duplicate, later.probes_duplicate);
    sum(&mut into.probes_reordered, later.probes_reordered);
    sum(&mut into.probes_lost_unattributed, later.probes_lost_unattributed);
    sum(&mut into.packets_ignored, later.packets_ignored);
    sum(&mut into.kernel_receive_timestamps, later.kernel_receive_timestamps);
    sum(&mut into.kernel_transmit_timestamps, later.kernel_transmit_timestamps);
    sum(&mut into.samples_invalid, later.samples_invalid);
    sum(&mut into.samples_other_timestamp_source, later.samples_other_timestamp_source);
    sum(&mut into.packets_dropped, later.packets_dropped);
    sum(&mut into.probes_abandoned, later.probes_abandoned);
    sum(&mut into.packets_integrity_failed, later.packets_integrity_failed);
    sum(&mut into.reflector_timestamps_corrected, later.reflector_timestamps_corrected);
    sum(&mut into.egress_ttl_changes, later.egress_ttl_changes);
    sum(&mut into.ingress_ttl_changes, later.ingress_ttl_changes);
    sum(&mut into.egress_tos_changes, later.egress_tos_changes);
    sum(&mut into.ingress_tos_changes, later.ingress_tos_changes);
    sum(&mut into.replies_without_error_estimate, later.replies_without_error_estimate);
    bursts::merge_bursts(&mut into.loss_bursts, later.loss_bursts.as_ref());
    bursts::merge_availability(&mut into.availability, later.availability.as_ref());
    reordering::merge(&mut into.reordering, later.reordering.as_ref());
    into.clock_error_ns = into.clock_error_ns.max(later.clock_error_ns);
    into.reflector_clock_error_ns =
        into.reflector_clock_error_ns.max(later.reflector_clock_error_ns);
    // A test whose directions are unknown does not change the losses by direction.
    for (into, later) in [
        (&mut into.probes_lost_egress, later.probes_lost_egress),
        (&mut into.probes_lost_ingress, later.probes_lost_ingress),
    ] {
        if let Some(later) = later {
            *into.get_or_insert(0) += later;
        }
    }
    for (into, later) in [
        (&mut into.rtt, &later.rtt),
        (&mut into.egress, &later.egress),
        (&mut into.ingress, &later.ingress),
        (&mut into.rtt_jitter, &later.rtt_jitter),
        (&mut into.egress_jitter, &later.egress_jitter),
        (&mut into.ingress_jitter, &later.ingress_jitter),
        (&mut into.reflector_processing, &later.reflector_processing),
        (&mut into.schedule_error, &later.schedule_error),
        (&mut into.egress_delay_variation, &later.egress_delay_variation),
        (&mut into.ingress_delay_variation, &later.ingress_delay_variation),
    ] {
        merge_stats(into, later.as_deref());
    }
    if later.probes_received > 0 {
        into.interarrival_jitter_ns = later.interarrival_jitter_ns;
        into.egress_ttl = later.egress_ttl;
        into.ingress_ttl = later.ingress_ttl;
        into.ingress_tos = later.ingress_tos;
        into.egress_tos = later.egress_tos;
    }
    if let Some(later) = &later.stamp {
        let merged = merge_stamp(&into.stamp.take().unwrap_or_default(), later);
        into.stamp = Some(Box::new(merged));
    }
    into.transmit_timestamp_source =
        source(into.transmit_timestamp_source(), later.transmit_timestamp_source()).into();
    into.receive_timestamp_source =
        source(into.receive_timestamp_source(), later.receive_timestamp_source()).into();
    into.one_way_validity = into.one_way_validity.max(later.one_way_validity);
    into.reflector_numbering = into.reflector_numbering.max(later.reflector_numbering);
}

fn source(into: TimestampSource, later: TimestampSource) -> TimestampSource {
    match (into, later) {
        (TimestampSource::Unspecified, one) | (one, TimestampSource::Unspecified) => one,
        (one, other) if one == other => one,
        _ => TimestampSource::Mixed,
    }
}

fn merge_stamp(into: &StampFigures, later: &StampFigures) -> StampFigures {
    StampFigures {
        replies_without_ssid: into.replies_without_ssid + later.replies_without_ssid,
        replies_without_tlvs: into.replies_without_tlvs + later.replies_without_tlvs,
        tlvs_unrecognised: into.tlvs_unrecognised + later.tlvs_unrecognised,
        tlvs_malformed: into.tlvs_malformed + later.tlvs_malformed,
        tlvs_integrity_failed: into.tlvs_integrity_failed + later.tlvs_integrity_failed,
        dscp_refused: into.dscp_refused + later.dscp_refused,
        // The other fields describe the latest reply.
        ..later.clone()
    }
}

fn merge_stats(into: &mut Option<Box<DelayStats>>, later: Option<&DelayStats>) {
    let Some(later) = later else { return };
    let Some(stats) = into else {
        *into = Some(Box::new(later.clone()));
        return;
    };
    if later.samples == 0 {
        return;
    }
    let mut moments = Moments::from(&**stats);
    moments.merge(&Moments::from(later));
    let mut histogram = stats.histogram.as_ref().map(Histogram::from);
    if let Some(later) = &later.histogram {
        histogram
            .get_or_insert_with(Histogram::default)
            .merge(&Histogram::from(later), MERGED_BUCKETS);
    }
    **stats = DelayStats { histogram: histogram.as_ref().map(Into::into), ..(&moments).into() };
}

/// Removes the delays and counts their samples as those of another timestamp source.
pub(super) fn clear_delays(figures: &mut Figures) {
    figures.samples_other_timestamp_source += figures.rtt.as_ref().map_or(0, |rtt| rtt.samples);
    for stats in all_delays(figures) {
        *stats = None;
    }
}

/// Coarsens each histogram to at most `most` buckets.
pub fn coarsen(figures: &mut Figures, most: usize) {
    for stats in all_delays(figures).into_iter().flatten() {
        if let Some(buckets) = &mut stats.histogram
            && buckets.counts.len() > most
        {
            let mut histogram = Histogram::from(&*buckets);
            histogram.limit_buckets(most);
            *buckets = (&histogram).into();
        }
    }
}

/// Returns all delay statistics that are made from samples.
fn all_delays(figures: &mut Figures) -> [&mut Option<Box<DelayStats>>; 9] {
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
