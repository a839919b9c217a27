//! Metric families of sessions; all others are in [`agent`].

mod agent;

use std::{collections::BTreeMap, fmt, iter, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{
    super::limits::{limits_ns, limits_seconds},
    Sources,
};
use crate::{
    proto::{DelayStats, Figures, Statistics, StatisticsScope, TimestampSource, Word},
    results::{StatisticsQuery, convert},
    store::Subject,
};

/// Label names of the agent, which labels of the configuration must not use.
const RESERVED: [&str; 12] = [
    "connection",
    "session",
    "le",
    "quantile",
    "outcome",
    "direction",
    "state",
    "validity",
    "timestamp",
    "source",
    "job",
    "instance",
];

/// Renders the page of metrics.
pub(super) fn page(sources: &Sources) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("twamp");
    let query = StatisticsQuery {
        scopes: [StatisticsScope::AllTests, StatisticsScope::LastTest].into(),
        ..StatisticsQuery::default()
    };
    let sessions = sources.results.session_statistics(&query);
    registry.register_collector(Box::new(Sessions::new(sessions)));
    registry.register_collector(Box::new(agent::Agent::new(sources)));
    let mut page = String::new();
    encode(&mut page, &registry)?;
    Ok(page)
}

type Labels = Vec<(String, String)>;
/// Additional label of a counter, and the function that returns its count.
type Count<'a> = (Option<(&'a str, &'a str)>, fn(&Figures) -> u64);

/// Collector of the statistics of all sessions.
#[derive(Debug)]
struct Sessions {
    sessions: Vec<(Labels, Option<Statistics>, Option<Statistics>)>,
}

impl Sessions {
    fn new(sessions: Vec<(Arc<Subject>, Vec<Statistics>)>) -> Self {
        let of = |(subject, statistics): (Arc<Subject>, Vec<Statistics>)| {
            let (mut all, mut last) = (None, None);
            for one in statistics {
                if one.scope() == StatisticsScope::AllTests {
                    all = Some(one);
                } else {
                    last = Some(one);
                }
            }
            (labels(&subject), all, last)
        };
        Self { sessions: sessions.into_iter().map(of).collect() }
    }

    fn counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        of: &[Count<'_>],
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, all, _) in &self.sessions {
            let figures = all.as_ref().and_then(|all| all.figures.as_deref());
            for (label, value) in of {
                let Some(figures) = figures else { continue };
                let labels = with(labels, *label);
                counter(&mut family, &labels, value(figures))?;
            }
        }
        Ok(())
    }

    fn histogram(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        of: fn(&Figures) -> Option<&DelayStats>,
    ) -> fmt::Result {
        let seconds = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor(name, help, seconds, MetricType::Histogram)?;
        let (limits_ns, mut limits) = (limits_ns(), limits_seconds());
        limits.push(f64::INFINITY);
        for (labels, all, _) in &self.sessions {
            let figures = all.as_ref().and_then(|all| all.figures.as_deref());
            // Delays are negative if the clocks differ. They are left out, because a sum that
            // decreases would look like a restart.
            let Some(stats) = figures.and_then(of).filter(|stats| stats.min_ns >= 0) else {
                continue;
            };
            let Some(histogram) = stats.histogram.as_ref().map(convert::histogram) else {
                continue;
            };
            // The encoder expects the count of each bucket alone, not cumulative counts.
            let mut below = 0;
            let each = histogram.cumulative(&limits_ns).into_iter().chain([histogram.count()]);
            let each = each.map(|count| count - std::mem::replace(&mut below, count));
            let buckets: Vec<(f64, u64)> = limits.iter().copied().zip(each).collect();
            let sum = stats.mean_ns * stats.samples as f64 / 1e9;
            family.encode_family(labels)?.encode_histogram::<NoLabelSet>(
                sum,
                histogram.count(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn last(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, unit): (&str, &str, Option<&Unit>),
        of: fn(&Figures) -> Option<f64>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, _, last) in &self.sessions {
            let figures = last.as_ref().and_then(|last| last.figures.as_deref());
            if let Some(value) = figures.and_then(of) {
                family.encode_family(labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// Encodes 1 with the validity of the one-way delays as a label.
    fn validity(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 for the validity of the one-way delays of the last test";
        let name = "last_test_one_way_validity";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, _, last) in &self.sessions {
            let figures = last.as_ref().and_then(|last| last.figures.as_deref());
            let Some(figures) = figures.filter(|figures| figures.egress.is_some()) else {
                continue;
            };
            let word = figures.one_way_validity().word().to_ascii_lowercase();
            let labels = with(labels, Some(("validity", &word)));
            family.encode_family(&labels)?.encode_gauge(&1i64)?;
        }
        Ok(())
    }

    /// Encodes 1 with the timestamp source as a label, for T1 and T4.
    fn stamps(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 for the source of the timestamps T1 and T4 in the delays: user (the program), \
                    kernel, hardware (the network interface) or mixed";
        let mut family =
            encoder.encode_descriptor("delay_timestamp_source", help, None, MetricType::Gauge)?;
        for (labels, all, _) in &self.sessions {
            let Some(figures) = all.as_ref().and_then(|all| all.figures.as_deref()) else {
                continue;
            };
            for (stamp, source) in [
                ("transmit", figures.transmit_timestamp_source()),
                ("receive", figures.receive_timestamp_source()),
            ] {
                if source != TimestampSource::Unspecified {
                    let word = source.word();
                    let word = word.to_ascii_lowercase();
                    let labels =
                        with(&with(labels, Some(("timestamp", stamp))), Some(("source", &word)));
                    family.encode_family(&labels)?.encode_gauge(&1i64)?;
                }
            }
        }
        Ok(())
    }

    fn tests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Tests that ended";
        let mut family = encoder.encode_descriptor("tests", help, None, MetricType::Counter)?;
        for (labels, all, _) in &self.sessions {
            let Some(all) = all else { continue };
            for (outcome, count) in [
                ("complete", all.tests_complete),
                ("interrupted", all.tests_interrupted),
                ("unreachable", all.tests_unreachable),
                ("stopped", all.tests_stopped),
            ] {
                counter(&mut family, &with(labels, Some(("outcome", outcome))), count)?;
            }
        }
        Ok(())
    }
}

impl Sessions {
    fn counts(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.tests(e)?;
        self.counter(e, "probes_sent", "Probes sent", &[(None, |f| f.probes_sent)])?;
        let not_sent = "Probes that were due and not sent";
        self.counter(e, "probes_not_sent", not_sent, &[(None, |f| f.probes_not_sent)])?;
        let received = "Probes whose reply arrived in time";
        self.counter(e, "probes_received", received, &[(None, |f| f.probes_received)])?;
        self.counter(
            e,
            "probes_lost",
            "Probes without a reply in time, by direction of the loss",
            &[
                (Some(("direction", "egress")), |f| f.probes_lost_egress.unwrap_or(0)),
                (Some(("direction", "ingress")), |f| f.probes_lost_ingress.unwrap_or(0)),
                (Some(("direction", "unknown")), |f| f.probes_lost_unattributed),
            ],
        )?;
        let late = "Replies that arrived after the loss timeout";
        self.counter(e, "probes_late", late, &[(None, |f| f.probes_late)])?;
        let duplicate = "Further replies to answered probes";
        self.counter(e, "probes_duplicate", duplicate, &[(None, |f| f.probes_duplicate)])?;
        let reordered = "Replies that arrived after the reply to a later probe";
        self.counter(e, "probes_reordered", reordered, &[(None, |f| f.probes_reordered)])?;
        self.counter(
            e,
            "loss_bursts",
            "Runs of consecutive lost probes",
            &[(None, |f| f.loss_bursts.as_ref().map_or(0, |bursts| bursts.bursts))],
        )?;
        self.counter(
            e,
            "availability_intervals",
            "Intervals by availability of the path",
            &[
                (Some(("state", "available")), |f| {
                    f.availability.as_ref().map_or(0, |a| a.available_intervals)
                }),
                (Some(("state", "unavailable")), |f| {
                    f.availability.as_ref().map_or(0, |a| a.unavailable_intervals)
                }),
            ],
        )?;
        let dropped = "Packets dropped because the receive buffer of a session was full";
        self.counter(e, "packets_dropped", dropped, &[(None, |f| f.packets_dropped)])
    }

    fn delays(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rtt = ("rtt", "Round-trip time without the time in the reflector");
        self.histogram(e, rtt, |f| f.rtt.as_deref())?;
        let egress = ("egress_delay", "Delay to the reflector; needs synchronised clocks");
        self.histogram(e, egress, |f| f.egress.as_deref())?;
        let ingress = ("ingress_delay", "Delay from the reflector; needs synchronised clocks");
        self.histogram(e, ingress, |f| f.ingress.as_deref())?;
        self.validity(e)?;
        self.stamps(e)?;
        let other =
            "Replies left out of the delays because their timestamps come from a less exact source";
        self.counter(
            e,
            "samples_other_timestamp_source",
            other,
            &[(None, |f| f.samples_other_timestamp_source)],
        )
    }

    fn last_test(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let seconds = Some(&Unit::Seconds);
        let mean = ("last_test_rtt_mean", "Mean round-trip time of the last test", seconds);
        self.last(e, mean, |f| answered(f.rtt.as_deref()).map(|rtt| rtt.mean_ns / 1e9))?;
        let jitter = (
            "last_test_rtt_peak_to_peak",
            "Largest minus smallest round-trip time of the last test",
            seconds,
        );
        self.last(e, jitter, |f| {
            answered(f.rtt.as_deref()).map(|rtt| rtt.peak_to_peak_ns as f64 / 1e9)
        })?;
        let late = (
            "last_test_schedule_error_max",
            "Largest delay of a probe of the last test against its schedule",
            seconds,
        );
        self.last(e, late, |f| {
            answered(f.schedule_error.as_deref()).map(|error| error.max_ns as f64 / 1e9)
        })?;
        let loss = (
            "last_test_loss_ratio",
            "Share of lost probes among the received and lost ones of the last test",
            None,
        );
        self.last(e, loss, |f| {
            let decided = f.probes_received + f.probes_lost;
            (decided > 0).then(|| f.probes_lost as f64 / decided as f64)
        })?;
        let mos = ("last_test_mos", "Estimated quality of a voice call (G.107)", None);
        self.last(e, mos, |f| f.voice_quality.map(|voice| voice.mos_cq))
    }
}

impl Collector for Sessions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.counts(&mut encoder)?;
        self.delays(&mut encoder)?;
        self.last_test(&mut encoder)
    }
}

fn counter(family: &mut MetricEncoder<'_>, labels: &Labels, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn answered(stats: Option<&DelayStats>) -> Option<&DelayStats> {
    stats.filter(|stats| stats.samples > 0)
}

fn with(labels: &Labels, more: Option<(&str, &str)>) -> Labels {
    let more = more.map(|(key, value)| (key.to_owned(), value.to_owned()));
    labels.iter().cloned().chain(more).collect()
}

/// Returns the labels of a session.
fn labels(subject: &Subject) -> Labels {
    let names = [("connection", &subject.connection), ("session", &subject.session)];
    add_configured_labels(&names, &subject.labels)
}

/// Returns the labels of a connection or a session. Labels of the configuration get names that
/// Prometheus accepts, the same in all families. A label whose name is acceptable keeps it, even if
/// the name of another label is converted to the same name.
fn add_configured_labels(names: &[(&str, &String)], given: &BTreeMap<String, String>) -> Labels {
    let mut labels: Labels =
        names.iter().map(|(key, name)| ((*key).to_owned(), (*name).clone())).collect();
    let is_free = |name: &str| {
        !name.starts_with(|c: char| c.is_ascii_digit() || c == '_') && !RESERVED.contains(&name)
    };
    let converted = |key: &str| -> String {
        key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    };
    let (kept, renamed): (Vec<_>, Vec<_>) =
        given.iter().partition(|(key, _)| is_free(key) && converted(key) == **key);
    for (key, value) in kept.into_iter().chain(renamed) {
        let name = converted(key);
        let taken = |name: &str| labels.iter().any(|(known, _)| known == name);
        let name = if is_free(&name) && !taken(&name) {
            name
        } else {
            // Several labels may get the same name; a number keeps all of them.
            let numbered = (2..).map(|number| format!("label_{name}_{number}"));
            let mut free = iter::once(format!("label_{name}")).chain(numbered);
            free.find(|name| !taken(name)).unwrap_or(name)
        };
        labels.push((name, value.clone()));
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_get_names_that_prometheus_accepts() {
        let given = ["site", "site-name", "1st", "le", "quantile", "__x", "a b", "a_b", "a.b"];
        let subject = Subject {
            connection: "c".into(),
            session: "s".into(),
            labels: given.iter().map(|key| ((*key).to_owned(), (*key).to_owned())).collect(),
        };
        let names = labels(&subject);
        let names: Vec<(&str, &str)> =
            names.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let expected = [
            ("connection", "c"),
            ("session", "s"),
            ("a_b", "a_b"),
            ("site", "site"),
            ("label_1st", "1st"),
            ("label___x", "__x"),
            ("label_a_b", "a b"),
            ("label_a_b_2", "a.b"),
            ("label_le", "le"),
            ("label_quantile", "quantile"),
            ("site_name", "site-name"),
        ];
        assert_eq!(names, expected);
    }
}
