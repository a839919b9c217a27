//! Values formatted for human readers.

use jiff::Timestamp;

use crate::proto::{DelayStats, Figures};

fn format_time(time: Option<&prost_types::Timestamp>, format: &str) -> String {
    time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
        .map_or_else(|| "-".into(), |time| time.strftime(format).to_string())
}

/// Returns a time in UTC, to the millisecond; `-` if there is none.
pub(super) fn time(time: Option<&prost_types::Timestamp>) -> String {
    format_time(time, "%Y-%m-%d %H:%M:%S.%3fZ")
}

/// Returns a time in UTC, to the second; `-` if there is none.
pub(super) fn time_in_seconds(time: Option<&prost_types::Timestamp>) -> String {
    format_time(time, "%Y-%m-%d %H:%M:%SZ")
}

/// Returns the time of day in UTC. Adds the date if it differs from the date of `now`.
pub(super) fn time_of_day(
    time: Option<&prost_types::Timestamp>,
    now: Option<&prost_types::Timestamp>,
) -> String {
    let day = |time: Option<&prost_types::Timestamp>| time.map(|time| time.seconds / 86_400);
    if day(time) == day(now) { format_time(time, "%H:%M:%S") } else { time_in_seconds(time) }
}

/// Returns a count with its noun.
pub(super) fn count(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Returns names after a verb: `started: a, b`, or `nothing started`.
pub(super) fn list(verb: &str, names: &[String]) -> String {
    match names {
        [] => format!("nothing {verb}"),
        names => format!("{verb}: {}", names.join(", ")),
    }
}

/// Width of a terminal for which texts are wrapped.
const COLUMNS: usize = 80;
/// Column in which the values of entries begin.
const VALUE_COLUMN: usize = 10;

/// Returns a name and its value, wrapped between words with the later lines indented.
pub(super) fn entry(name: &str, value: &str) -> String {
    let mut text = format!("{name:<VALUE_COLUMN$}");
    let mut column = VALUE_COLUMN;
    for (index, word) in value.split(' ').enumerate() {
        let width = word.chars().count();
        if index > 0 && column + 1 + width > COLUMNS {
            text += &format!("\n{:VALUE_COLUMN$}", "");
            column = VALUE_COLUMN;
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += width;
    }
    text
}

/// Returns a duration in its two largest units.
pub(super) fn duration(duration: Option<&prost_types::Duration>) -> String {
    let Some(duration) = duration else { return "-".into() };
    let seconds = duration.seconds.max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}.{} s", duration.nanos.max(0) / 100_000_000),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Returns the unit for a duration, and its length in nanoseconds.
fn unit(ns: f64) -> (&'static str, f64) {
    match ns.abs() {
        size if size < 1e3 => ("ns", 1.0),
        size if size < 1e6 => ("µs", 1e3),
        size if size < 1e9 => ("ms", 1e6),
        _ => ("s", 1e9),
    }
}

/// Returns a number with about three digits.
fn number(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Returns nanoseconds with about three digits: `85.3 µs`, `12.0 ms`.
pub(super) fn nanoseconds(ns: f64) -> String {
    let (unit, length) = unit(ns);
    format!("{} {unit}", number(ns / length))
}

/// Returns smallest, mean and largest value in one unit: `10.4/46.6/72.6 µs`.
pub(super) fn range(stats: Option<&DelayStats>) -> String {
    values(stats, |stats| vec![stats.min_ns as f64, stats.mean_ns, stats.max_ns as f64])
}

/// Returns smallest, mean and largest value and standard deviation in one unit.
pub(super) fn spread(stats: Option<&DelayStats>) -> String {
    values(stats, |stats| {
        vec![stats.min_ns as f64, stats.mean_ns, stats.max_ns as f64, stats.stddev_ns]
    })
}

fn values(stats: Option<&DelayStats>, values: impl Fn(&DelayStats) -> Vec<f64>) -> String {
    let Some(stats) = stats.filter(|stats| stats.samples > 0) else { return "-".into() };
    let (unit, length) = unit(stats.max_ns as f64);
    let values: Vec<String> = values(stats).iter().map(|ns| number(ns / length)).collect();
    format!("{} {unit}", values.join("/"))
}

/// Returns the percentage of lost probes among those that were received or lost.
pub(super) fn loss_percent(figures: &Figures) -> Option<String> {
    let decided = figures.probes_received + figures.probes_lost;
    let percent = figures.probes_lost as f64 * 100.0 / decided as f64;
    let text = match percent > 0.0 && percent < 0.1 {
        true => "<0.1".into(),
        false => format!("{percent:.1}"),
    };
    (decided > 0).then(|| format!("{} %", text.trim_end_matches(".0")))
}

/// Returns the directions in which probes were lost; `None` if no probe was lost.
pub(super) fn loss_directions(figures: &Figures) -> Option<String> {
    let egress = figures.probes_lost_egress.unwrap_or(0);
    let ingress = figures.probes_lost_ingress.unwrap_or(0);
    let unknown = figures.probes_lost.saturating_sub(egress + ingress);
    if figures.probes_lost == 0 {
        return None;
    }
    if unknown == figures.probes_lost {
        return Some("direction unknown".into());
    }
    let parts = [(egress, "egress"), (ingress, "ingress"), (unknown, "unknown")];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, direction)| format!("{count} {direction}"))
        .collect();
    Some(parts.join(", "))
}

/// Returns the lost probes with their share and direction: `50 (100 %, direction unknown)`.
pub(super) fn lost(figures: &Figures) -> String {
    let parts = [loss_percent(figures), loss_directions(figures)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match figures.probes_lost {
        0 => "0".into(),
        lost => format!("{lost} ({})", parts.join(", ")),
    }
}

/// Returns a number of bytes in the largest unit that fits.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{Duration, Timestamp};

    use super::*;

    #[test]
    fn values_read_well() {
        assert_eq!(nanoseconds(85_300.0), "85.3 µs");
        assert_eq!(nanoseconds(-12_004_000.0), "-12.0 ms");
        assert_eq!(nanoseconds(0.0), "0 ns");
        let of = |seconds, nanos| duration(Some(&Duration { seconds, nanos }));
        assert_eq!(of(19, 120_000_000), "19.1 s");
        assert_eq!(of(123, 0), "2m 3s");
        assert_eq!(of(3_700, 0), "1h 1m");
        assert_eq!(of(90_000, 0), "1d 1h");
        let at = |seconds, nanos| Timestamp { seconds, nanos };
        assert_eq!(time(Some(&at(0, 5_000_000))), "1970-01-01 00:00:00.005Z");
        assert_eq!(time_in_seconds(Some(&at(0, 5_000_000))), "1970-01-01 00:00:00Z");
        assert_eq!(time_of_day(Some(&at(60, 0)), Some(&at(70, 0))), "00:01:00");
        assert_eq!(time_of_day(Some(&at(60, 0)), Some(&at(90_000, 0))), "1970-01-01 00:01:00Z");
        assert_eq!(
            (count(1, "session"), count(0, "session")),
            ("1 session".into(), "0 sessions".into())
        );
        assert_eq!(bytes(1536), "1.5 KiB");
    }

    #[test]
    fn long_entries_are_wrapped() {
        assert_eq!(entry("from", "127.0.0.1:1"), "from      127.0.0.1:1");
        let long = entry("offers", &"word ".repeat(40));
        assert!(long.lines().all(|line| line.trim_end().chars().count() <= 80), "{long}");
        assert!(long.lines().skip(1).all(|line| line.starts_with("          word")), "{long}");
        assert_eq!(long.matches("word").count(), 40);
    }

    #[test]
    fn ranges_have_one_unit() {
        let stats = DelayStats {
            samples: 3,
            min_ns: 10_400,
            mean_ns: 46_600.0,
            max_ns: 72_600,
            stddev_ns: 3_120.0,
            ..DelayStats::default()
        };
        assert_eq!(range(Some(&stats)), "10.4/46.6/72.6 µs");
        assert_eq!(spread(Some(&stats)), "10.4/46.6/72.6/3.12 µs");
        assert_eq!(range(Some(&DelayStats { max_ns: 2_000_000, ..stats })), "0.010/0.047/2.00 ms");
        assert_eq!(range(Some(&DelayStats::default())), "-");
    }

    #[test]
    fn losses_name_their_direction() {
        let figures = |lost, egress, ingress| Figures {
            probes_received: 100 - lost,
            probes_lost: lost,
            probes_lost_egress: egress,
            probes_lost_ingress: ingress,
            ..Figures::default()
        };
        for (figures, expected) in [
            (figures(100, Some(0), Some(0)), "100 (100 %, direction unknown)"),
            (figures(4, Some(3), Some(1)), "4 (4 %, 3 egress, 1 ingress)"),
            (figures(3, Some(2), Some(0)), "3 (3 %, 2 egress, 1 unknown)"),
            (figures(1, None, None), "1 (1 %, direction unknown)"),
            (figures(0, Some(0), Some(0)), "0"),
        ] {
            assert_eq!(lost(&figures), expected);
        }
        assert_eq!(loss_percent(&Figures::default()), None);
    }
}
