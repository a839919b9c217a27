//! Records of the result log, one on each line.

use crate::{
    ctl::words::{count, duration, loss_percent, lost, nanoseconds, range, time, time_of_day},
    proto::{
        Event, EventType, FailureCause, Figures, IntervalResult, ProbeResults, ProbeStatus, Record,
        TestOutcome, TestResult, Threshold, Word, record,
    },
};

/// Returns a record on one line.
pub fn record_line(record: &Record) -> String {
    let who = match (record.connection.as_str(), record.session.as_str()) {
        ("", _) => "agent".to_owned(),
        (connection, "") => connection.to_owned(),
        (connection, session) => format!("{connection}/{session}"),
    };
    let what = match &record.kind {
        Some(record::Kind::TestResult(result)) => test_text(result),
        Some(record::Kind::ProbeResults(batch)) => probes_text(batch),
        Some(record::Kind::Event(event)) => event_text(event, record.time.as_ref()),
        Some(record::Kind::IntervalResult(interval)) => interval_text(interval),
        Some(record::Kind::Gap(gap)) => {
            format!(
                "GAP      cursors {} to {} were removed or lost",
                gap.first_cursor, gap.last_cursor
            )
        }
        None => "unknown kind of record".into(),
    };
    format!("{:>8}  {}  {who:<14}  {what}", record.cursor, time(record.time.as_ref()))
}

fn figures_text(figures: Option<&Figures>) -> String {
    let figures = figures.cloned().unwrap_or_default();
    let mut text = format!("sent {}, lost {}", figures.probes_sent, lost(&figures));
    if figures.rtt.as_deref().is_some_and(|rtt| rtt.samples > 0) {
        text += &format!(", rtt min/avg/max {}", range(figures.rtt.as_deref()));
    } else if figures.probes_sent > 0 && loss_percent(&figures).is_none() {
        text += ", no reply";
    }
    text
}

fn interval_text(interval: &IntervalResult) -> String {
    let scope = interval.scope().word().trim_start_matches("INTERVAL_");
    let incomplete = if interval.suspect { ", incomplete" } else { "" };
    format!(
        "INTERVAL {scope} from {}{incomplete}, {}",
        time(interval.start_time.as_ref()),
        figures_text(interval.figures.as_deref()),
    )
}

fn test_text(result: &TestResult) -> String {
    let outcome = result.outcome().word();
    let mut text = format!("TEST     {} {outcome}", result.test_number);
    if result.cause() != FailureCause::Unspecified {
        text += &format!(", {}", result.cause().word());
    }
    if result.outcome() == TestOutcome::Unreachable {
        let not_sent = result.figures.as_deref().map_or(0, |figures| figures.probes_not_sent);
        let attempts = count(result.attempts, "attempt");
        return text + &format!(", {attempts}, {} not sent", count(not_sent, "probe"));
    }
    text + &format!(", {}", figures_text(result.figures.as_deref()))
}

fn probes_text(batch: &ProbeResults) -> String {
    let rtts = batch.probes.iter().filter_map(|probe| probe.rtt_ns);
    let lost = batch.probes.iter().filter(|probe| probe.status() == ProbeStatus::Lost).count();
    let (least, most) = (rtts.clone().min(), rtts.max());
    let mut text = format!("PROBES   {}", batch.probes.len());
    if let (Some(least), Some(most)) = (least, most) {
        text += &format!(", rtt {} to {}", nanoseconds(least as f64), nanoseconds(most as f64));
    }
    if lost > 0 {
        text += &format!(", {lost} lost");
    }
    text
}

fn event_text(event: &Event, now: Option<&prost_types::Timestamp>) -> String {
    let mut parts = Vec::new();
    let has_cause = event.cause() != FailureCause::Unspecified;
    let is_end_of_outage = event.attempts > 0;
    if has_cause && !is_end_of_outage {
        parts.push(event.cause().word().to_owned());
    }
    if event.revision > 0 {
        parts.push(format!("revision {}", event.revision));
    }
    if is_end_of_outage {
        let length = duration(event.duration.as_ref());
        let start = time_of_day(event.start_time.as_ref(), now);
        let cause = if has_cause { format!(": {}", event.cause().word()) } else { String::new() };
        let attempts = count(event.attempts, "attempt");
        parts.push(format!("after {length}, {attempts} (down since {start}{cause})"));
    }
    if event.threshold() != Threshold::Unspecified {
        let value = |value| threshold_value(event.threshold(), value);
        let threshold = event.threshold().word();
        parts.push(format!("{threshold} {} (limit {})", value(event.value), value(event.limit)));
    }
    if event.r#type() == EventType::ClockStepped {
        parts.push(format!("by {}", nanoseconds(event.value as f64)));
    } else if event.r#type() == EventType::StatisticsCleared {
        parts.push(format!("epoch {}", event.value));
    }
    if event.test_number > 0 {
        parts.push(format!("test {}", event.test_number));
    }
    let mut text = format!("EVENT    {} {}", event.r#type().word(), parts.join(", "));
    text.truncate(text.trim_end().len());
    if !event.detail.is_empty() {
        text += &format!(": {}", event.detail);
    }
    text
}

/// Returns the value of a threshold in its unit: probes, or time.
fn threshold_value(threshold: Threshold, value: i64) -> String {
    if matches!(threshold, Threshold::SuccessiveLoss | Threshold::TotalLoss) {
        value.to_string()
    } else {
        nanoseconds(value as f64)
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{Duration, Timestamp};

    use super::*;
    use crate::proto::DelayStats;

    const NOW: Timestamp = Timestamp { seconds: 1_800_000_060, nanos: 0 };

    #[test]
    fn a_restored_connection_tells_of_its_outage() {
        let event = Event {
            r#type: EventType::ConnectionRestored.into(),
            cause: FailureCause::NoRoute.into(),
            attempts: 19,
            duration: Some(Duration { seconds: 19, nanos: 100_000_000 }),
            start_time: Some(Timestamp { seconds: 1_800_000_040, nanos: 900_000_000 }),
            ..Event::default()
        };
        assert_eq!(
            event_text(&event, Some(&NOW)),
            "EVENT    CONNECTION_RESTORED after 19.1 s, 19 attempts (down since 08:00:40: NO_ROUTE)"
        );
        let once = event_text(&Event { attempts: 1, ..event }, Some(&NOW));
        assert!(once.contains("19.1 s, 1 attempt ("), "{once}");
    }

    #[test]
    fn events_show_all_that_they_have() {
        let text = |event| event_text(&event, Some(&NOW));
        let raised = Event {
            r#type: EventType::ThresholdRaised.into(),
            threshold: Threshold::SuccessiveLoss.into(),
            value: 5,
            limit: 3,
            test_number: 12,
            ..Event::default()
        };
        assert_eq!(text(raised), "EVENT    THRESHOLD_RAISED SUCCESSIVE_LOSS 5 (limit 3), test 12");
        let kind = EventType::StatisticsCleared.into();
        let cleared = Event { r#type: kind, value: 3, ..Event::default() };
        assert_eq!(text(cleared), "EVENT    STATISTICS_CLEARED epoch 3");
        let committed = Event {
            r#type: EventType::ConfigurationCommitted.into(),
            revision: 2,
            detail: "1 change by unix uid 0: first light".into(),
            ..Event::default()
        };
        let expected =
            "EVENT    CONFIGURATION_COMMITTED revision 2: 1 change by unix uid 0: first light";
        assert_eq!(text(committed), expected);
    }

    #[test]
    fn a_test_shows_its_delays_with_their_names() {
        let rtt = DelayStats {
            samples: 50,
            min_ns: 10_400,
            mean_ns: 46_600.0,
            max_ns: 72_600,
            ..DelayStats::default()
        };
        let figures = Figures {
            probes_sent: 50,
            probes_received: 50,
            rtt: Some(Box::new(rtt)),
            ..Figures::default()
        };
        let result = |figures| TestResult {
            test_number: 3,
            outcome: TestOutcome::Complete.into(),
            figures: Some(Box::new(figures)),
            ..TestResult::default()
        };
        assert_eq!(
            test_text(&result(figures.clone())),
            "TEST     3 COMPLETE, sent 50, lost 0, rtt min/avg/max 10.4/46.6/72.6 µs"
        );
        let lost = Figures { probes_received: 0, probes_lost: 50, rtt: None, ..figures };
        assert_eq!(
            test_text(&result(lost)),
            "TEST     3 COMPLETE, sent 50, lost 50 (100 %, direction unknown)"
        );
    }
}
