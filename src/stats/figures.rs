//! Figures of several tests together.

use super::Moments;
use crate::proto::{
    DelayStats, Figures, StampFigures, Statistics, TestOutcome, TestResult, TimestampSource,
};

/// Adds the figures of a later test. Counts add up, delays merge; what describes the latest packet
/// is taken from the later test where it has one.
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
    sum(&mut into.lost_unattributed, later.lost_unattributed);
    sum(&mut into.packets_ignored, later.packets_ignored);
    sum(&mut into.kernel_receive_stamps, later.kernel_receive_stamps);
    sum(&mut into.kernel_transmit_stamps, later.kernel_transmit_stamps);
    sum(&mut into.samples_invalid, later.samples_invalid);
    sum(&mut into.samples_other_stamps, later.samples_other_stamps);
    sum(&mut into.packets_dropped, later.packets_dropped);
    sum(&mut into.probes_abandoned, later.probes_abandoned);
    sum(&mut into.packets_not_genuine, later.packets_not_genuine);
    sum(&mut into.reflector_stamps_corrected, later.reflector_stamps_corrected);
    // A direction that one test cannot tell leaves that of the others as they were.
    for (into, later) in
        [(&mut into.lost_egress, later.lost_egress), (&mut into.lost_ingress, later.lost_ingress)]
    {
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
    ] {
        merge_stats(into, later.as_ref());
    }
    if later.probes_received > 0 {
        into.interarrival_jitter_ns = later.interarrival_jitter_ns;
        into.egress_ttl = later.egress_ttl;
        into.ingress_ttl = later.ingress_ttl;
        into.ingress_tos = later.ingress_tos;
        into.egress_tos = later.egress_tos;
    }
    if let Some(later) = &later.stamp {
        into.stamp = Some(merge_stamp(&into.stamp.take().unwrap_or_default(), later));
    }
    into.transmit_stamp = source(into.transmit_stamp(), later.transmit_stamp()).into();
    into.receive_stamp = source(into.receive_stamp(), later.receive_stamp()).into();
    into.one_way_validity = into.one_way_validity.max(later.one_way_validity);
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
        tlvs_not_genuine: into.tlvs_not_genuine + later.tlvs_not_genuine,
        dscp_refused: into.dscp_refused + later.dscp_refused,
        // The rest describes the latest reply.
        ..later.clone()
    }
}

fn merge_stats(into: &mut Option<DelayStats>, later: Option<&DelayStats>) {
    let Some(later) = later else { return };
    let mut moments = into.as_ref().map_or_else(Moments::default, Moments::from);
    moments.merge(&Moments::from(later));
    *into = Some((&moments).into());
}

/// Adds the result of a later test to statistics.
pub fn add_result(statistics: &mut Statistics, result: &TestResult) {
    if statistics.since.is_none() {
        statistics.since = result.start;
    }
    statistics.until = result.end;
    match result.outcome() {
        TestOutcome::Complete => statistics.tests_complete += 1,
        TestOutcome::Interrupted => statistics.tests_interrupted += 1,
        TestOutcome::Unreachable => statistics.tests_unreachable += 1,
        TestOutcome::Stopped => statistics.tests_stopped += 1,
        TestOutcome::Unspecified => {}
    }
    if let Some(figures) = &result.figures {
        merge(statistics.figures.get_or_insert_with(Figures::default), figures);
    }
}
