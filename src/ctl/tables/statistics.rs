//! Statistics: a table for each session, with a row for each scope.

use super::{table, text};
use crate::{
    ctl::words::{count, loss_directions, loss_percent, nanoseconds, spread},
    proto::{DelayStats, Figures, OneWayValidity, Statistics, StatisticsScope, Word},
};

/// Returns the statistics of each session, a row for each scope.
pub fn statistics_table(statistics: &[Statistics]) -> String {
    if statistics.is_empty() {
        return "no statistics yet".into();
    }
    let sessions = statistics
        .chunk_by(|one, next| (&one.connection, &one.session) == (&next.connection, &next.session));
    let tables: Vec<String> = sessions.map(session).collect();
    tables.join("\n")
}

/// Returns the name of a scope, as the option `--scope` has it.
fn scope_name(scope: StatisticsScope) -> &'static str {
    match scope {
        StatisticsScope::Unspecified => "-",
        StatisticsScope::CurrentTest => "current",
        StatisticsScope::LastTest => "last",
        StatisticsScope::AllTests => "all",
        StatisticsScope::MovingAverage => "moving",
        StatisticsScope::Interval1Minute => "minute",
        StatisticsScope::Interval15Minutes => "quarter",
        StatisticsScope::Interval1Hour => "hour",
        StatisticsScope::Interval1Day => "day",
    }
}

fn session(scopes: &[Statistics]) -> String {
    let mut rows =
        table(&["SCOPE", "TESTS", "SENT", "LOST", "RTT MIN/AVG/MAX/SDEV", "EGRESS", "INGRESS"]);
    let mut remarks = String::new();
    for s in scopes {
        let tests = s.tests_complete + s.tests_interrupted + s.tests_unreachable + s.tests_stopped;
        let figures = s.figures.as_deref().cloned().unwrap_or_default();
        rows.add_row([
            scope_name(s.scope()).to_owned(),
            tests.to_string(),
            figures.probes_sent.to_string(),
            match loss_percent(&figures).filter(|_| figures.probes_lost > 0) {
                Some(percent) => format!("{} ({percent})", figures.probes_lost),
                None => figures.probes_lost.to_string(),
            },
            spread(figures.rtt.as_deref()),
            mean(figures.egress.as_deref()),
            mean(figures.ingress.as_deref()),
        ]);
        let found = row_remarks(s, &figures);
        if !found.is_empty() {
            remarks += &format!("  {}: {}\n", scope_name(s.scope()), found.join(", "));
        }
    }
    let name = scopes.first().map(|s| format!("{}/{}", s.connection, s.session));
    let mut out = name.unwrap_or_default() + "\n";
    for line in text(&rows).lines() {
        out += &format!("  {line}\n");
    }
    out + &remarks
}

fn mean(stats: Option<&DelayStats>) -> String {
    let stats = stats.filter(|stats| stats.samples > 0);
    stats.map_or_else(|| "-".into(), |stats| nanoseconds(stats.mean_ns))
}

/// Returns remarks that the columns of a row do not show.
fn row_remarks(s: &Statistics, figures: &Figures) -> Vec<String> {
    let mut remarks = Vec::new();
    for (tests, outcome) in [
        (s.tests_unreachable, "unreachable"),
        (s.tests_interrupted, "interrupted"),
        (s.tests_stopped, "stopped"),
    ] {
        if tests > 0 {
            remarks.push(format!("{} {outcome}", count(tests, "test")));
        }
    }
    if let Some(directions) = loss_directions(figures) {
        remarks.push(format!("loss {directions}"));
    }
    if !matches!(figures.one_way_validity(), OneWayValidity::Unspecified | OneWayValidity::Valid) {
        remarks.push(figures.one_way_validity().word().into());
    }
    if s.suspect {
        remarks.push("interval incomplete".into());
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let delay = DelayStats {
            samples: 50,
            min_ns: 110_400,
            mean_ns: 146_600.0,
            max_ns: 172_600,
            stddev_ns: 31_200.0,
            ..DelayStats::default()
        };
        Figures {
            probes_sent: 123_450,
            probes_received: 123_400,
            probes_lost: 50,
            rtt: Some(Box::new(delay.clone())),
            egress: Some(Box::new(delay.clone())),
            ingress: Some(Box::new(delay)),
            one_way_validity: OneWayValidity::ClockUnsynchronised.into(),
            ..Figures::default()
        }
    }

    #[test]
    fn statistics_fit_into_80_columns() {
        let statistics = |session: &str, scope: StatisticsScope| Statistics {
            connection: "to-far".into(),
            session: session.into(),
            scope: scope.into(),
            tests_complete: 12_345,
            tests_unreachable: 1,
            figures: Some(Box::new(figures())),
            ..Statistics::default()
        };
        let shown = statistics_table(&[
            statistics("voice", StatisticsScope::LastTest),
            statistics("voice", StatisticsScope::Interval15Minutes),
            statistics("bulk", StatisticsScope::AllTests),
        ]);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{shown}");
        assert_eq!((lines[0], lines[7]), ("to-far/voice", "to-far/bulk"), "{shown}");
        assert_eq!(
            lines[4],
            "  last: 1 test unreachable, loss direction unknown, CLOCK_UNSYNCHRONISED"
        );
        assert!(lines[3].starts_with("  quarter  12346  123450  50 (<0.1 %)"), "{shown}");
    }

    #[test]
    fn valid_statistics_have_no_remarks() {
        let figures =
            Figures { probes_lost: 0, one_way_validity: OneWayValidity::Valid.into(), ..figures() };
        assert_eq!(row_remarks(&Statistics::default(), &figures), Vec::<String>::new());
    }
}
