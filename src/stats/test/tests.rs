use super::*;
use crate::model::{OneWayValidity, TimestampSource};

fn directions(losses: &[MinuteLosses]) -> Directions<'_> {
    Directions { losses: Some(losses), numbering: ReflectorNumbering::Own }
}

/// `metrics/worked-example` of the reference vectors.
#[test]
fn worked_example() {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/vectors/vectors.json")).unwrap();
    let example = vectors["vectors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|vector| vector["name"] == "metrics/worked-example")
        .unwrap();
    let mut track = Track::default();
    let mut figures = TestFigures::new(8, UnixTime(0));
    let mut seen = Vec::new();
    for record in example["in"]["records"].as_array().unwrap() {
        let field = |name: &str| record[name].as_i64().unwrap();
        let (t1, t2, t3, t4) = (field("T1"), field("T2"), field("T3"), field("T4"));
        if seen.contains(&field("sseq")) {
            figures.duplicate();
            continue;
        }
        seen.push(field("sseq"));
        figures.received(
            &Sample {
                sequence: field("sseq") as u32,
                rtt_ns: (t4 - t1) - (t3 - t2),
                egress_ns: t2 - t1,
                ingress_ns: t4 - t3,
                processing_ns: t3 - t2,
                ..Sample::default()
            },
            &mut track,
        );
    }
    let (got, expected) = (figures.figures(Directions::default()), &example["out"]);
    assert_eq!(got.probes_received, expected["received_unique"].as_u64().unwrap());
    assert_eq!(got.probes_duplicate, expected["duplicates"].as_u64().unwrap());
    assert_eq!(got.probes_reordered, expected["reordered_by_sender_seq"].as_u64().unwrap());
    let rtts: Vec<i64> =
        expected["rtt_ns"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
    let rtt = got.rtt.unwrap();
    assert_eq!(rtt.min_ns, *rtts.iter().min().unwrap());
    assert_eq!(rtt.max_ns, *rtts.iter().max().unwrap());
    let mean = rtts.iter().sum::<i64>() as f64 / rtts.len() as f64;
    assert!((rtt.mean_ns - mean).abs() < 1.0);
}

#[test]
fn validity_is_that_of_the_worst_sample() {
    let mut track = Track::default();
    let mut figures = TestFigures::new(2, UnixTime(0));
    figures.received(&Sample { synchronised: true, ..Sample::default() }, &mut track);
    assert_eq!(figures.figures(Directions::default()).one_way_validity(), OneWayValidity::Valid);
    figures.received(
        &Sample { sequence: 1, egress_ns: -5, rtt_ns: 3, ..Sample::default() },
        &mut track,
    );
    assert_eq!(figures.figures(Directions::default()).one_way_validity(), OneWayValidity::Negative);
}

#[test]
fn stamps_of_different_sources_are_never_mixed() {
    let sample = |sequence, rtt_ns, transmit_timestamp_source| Sample {
        sequence,
        rtt_ns,
        transmit_timestamp_source,
        receive_timestamp_source: StampSource::Kernel,
        ..Sample::default()
    };
    let mut track = Track::default();
    let mut figures = TestFigures::new(5, UnixTime(0));
    figures.received(&sample(0, 90, StampSource::User), &mut track);
    let source = figures.figures(Directions::default()).transmit_timestamp_source();
    assert_eq!(source, TimestampSource::User, "as long as there is nothing better");
    figures.received(&sample(1, 10, StampSource::Kernel), &mut track);
    figures.received(&sample(2, 80, StampSource::User), &mut track);
    figures.received(&sample(3, 20, StampSource::Kernel), &mut track);
    let got = figures.figures(Directions::default());
    let (rtt, jitter) = (got.rtt.as_ref().unwrap(), got.rtt_jitter.as_ref().unwrap());
    assert_eq!((rtt.samples, rtt.min_ns, rtt.max_ns), (2, 10, 20));
    assert_eq!(jitter.samples, 0, "the two are no neighbours");
    assert_eq!((got.samples_other_timestamp_source, got.kernel_transmit_timestamps), (2, 2));
    assert_eq!((got.probes_received, got.kernel_receive_timestamps), (4, 4));
    assert_eq!((got.transmit_timestamp_source(), got.receive_timestamp_source()), {
        (TimestampSource::Kernel, TimestampSource::Kernel)
    });
    figures.received(&sample(4, 5, StampSource::Hardware), &mut track);
    let got = figures.figures(Directions::default());
    assert_eq!((got.rtt.as_ref().unwrap().samples, got.transmit_timestamp_source()), {
        (1, TimestampSource::Hardware)
    });
}

#[test]
fn a_sample_that_cannot_be_is_counted_and_left_out() {
    let mut track = Track::default();
    let mut figures = TestFigures::new(1, UnixTime(0));
    figures.received(&Sample { rtt_ns: -1, ..Sample::default() }, &mut track);
    let got = figures.figures(Directions::default());
    assert_eq!((got.probes_received, got.samples_invalid), (1, 1));
    assert_eq!(got.rtt.unwrap().samples, 0);
}

#[test]
fn a_probe_counts_in_the_minute_in_which_it_was_sent() {
    let at = |seconds: u64| UnixTime(seconds * NANOS_PER_SECOND);
    let sample = |sequence, seconds, rtt_ns| Sample {
        sequence,
        t1: at(seconds),
        rtt_ns,
        egress_ns: rtt_ns - 5,
        ..Sample::default()
    };
    let mut track = Track::default();
    let mut figures = TestFigures::new(4, UnixTime(0));
    for seconds in [58, 59, 60, 61] {
        assert_eq!(figures.sent(at(seconds), 7), seconds == 58 || seconds == 60);
    }
    assert_eq!(figures.only_minute(), None);
    // The first answers of the later minute are here before the last of the earlier.
    figures.received(&sample(2, 60, 30), &mut track);
    figures.received(&sample(1, 59, 20), &mut track);
    figures.lost(at(58));
    figures.received(&sample(3, 61, 50), &mut track);
    let losses = [(0, Attribution { egress: 1, ..Attribution::default() })];
    let so_far = figures.figures(directions(&losses));
    let (minute, first) = figures.close(0, directions(&losses)).unwrap();
    assert_eq!((minute, first.probes_sent, first.probes_received), (0, 2, 1));
    assert_eq!(
        (first.probes_lost, first.probes_lost_egress, first.probes_reordered),
        (1, Some(1), 1)
    );
    assert!(figures.close(0, Directions::default()).is_none(), "the next minute is open");
    let (_, second) = figures.close(1, directions(&losses)).unwrap();
    assert_eq!((second.probes_sent, second.probes_lost_egress), (2, Some(0)));
    let jitter = |figures: &Figures| figures.rtt_jitter.as_ref().unwrap().samples;
    assert_eq!(jitter(&first) + jitter(&second), 2, "also across the boundary");
    assert_eq!(second.egress_delay_variation.as_ref().unwrap().max_ns, 20);
    let whole = figures.figures(directions(&losses));
    assert_eq!(whole.rtt, so_far.rtt);
    assert_eq!((whole.probes_scheduled, whole.probes_sent, whole.probes_lost), (4, 4, 1));
    assert_eq!((whole.rtt.unwrap().samples, whole.probes_lost_egress), (3, Some(1)));
}

#[test]
fn changes_of_the_path_are_counted() {
    let mut track = Track::default();
    let mut figures = TestFigures::new(4, UnixTime(0));
    for (sequence, ttl, tos) in [(0, 60, Some(0)), (1, 60, None), (2, 59, Some(4))] {
        let sample = Sample {
            sequence,
            egress_ttl: ttl,
            ingress_tos: tos,
            egress_tos: tos,
            ..Sample::default()
        };
        figures.received(&sample, &mut track);
    }
    let got = figures.figures(Directions::default());
    assert_eq!((got.egress_ttl_changes, got.ingress_ttl_changes), (1, 0));
    assert_eq!((got.egress_tos_changes, got.ingress_tos_changes), (1, 1));
    let mut next = TestFigures::new(1, UnixTime(0));
    next.received(&Sample { egress_ttl: 60, ..Sample::default() }, &mut track);
    assert_eq!(next.figures(Directions::default()).egress_ttl_changes, 1, "and from test to test");
}
