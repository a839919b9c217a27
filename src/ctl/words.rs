//! Values formatted for human readers.

use jiff::Timestamp;

use crate::proto::DelayStats;

/// Returns a time in UTC, to the millisecond; `-` where there is none.
pub(super) fn time(time: Option<&prost_types::Timestamp>) -> String {
    time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
        .map_or_else(|| "-".into(), |time| time.strftime("%Y-%m-%d %H:%M:%S.%3fZ").to_string())
}

/// Returns a count with its noun.
pub(super) fn count(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Returns a duration in its largest units.
pub(super) fn duration(duration: Option<&prost_types::Duration>) -> String {
    let Some(duration) = duration else { return "-".into() };
    let seconds = duration.seconds.max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}.{:03}s", duration.nanos / 1_000_000),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// Returns nanoseconds with about three digits: `85.3µs`, `12.0ms`.
pub(super) fn nanoseconds(ns: f64) -> String {
    match ns.abs() {
        size if size < 1e3 => format!("{ns:.0}ns"),
        size if size < 1e6 => format!("{:.1}µs", ns / 1e3),
        size if size < 1e9 => format!("{:.2}ms", ns / 1e6),
        _ => format!("{:.2}s", ns / 1e9),
    }
}

/// Returns smallest, mean and largest value.
pub(super) fn range(stats: Option<&DelayStats>) -> String {
    match stats.filter(|stats| stats.samples > 0) {
        None => "-".into(),
        Some(stats) => format!(
            "{} / {} / {}",
            nanoseconds(stats.min_ns as f64),
            nanoseconds(stats.mean_ns),
            nanoseconds(stats.max_ns as f64)
        ),
    }
}

/// Returns a number of bytes in the largest unit that fits.
pub(super) fn octets(octets: u64) -> String {
    match octets {
        0..1024 => format!("{octets} B"),
        1024..1_048_576 => format!("{:.1} KiB", octets as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", octets as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", octets as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_well() {
        assert_eq!(nanoseconds(85_300.0), "85.3µs");
        assert_eq!(nanoseconds(-12_004_000.0), "-12.00ms");
        let of = |seconds, nanos| duration(Some(&prost_types::Duration { seconds, nanos }));
        assert_eq!(of(1, 250_000_000), "1.250s");
        assert_eq!(of(3_700, 0), "1h01m");
        assert_eq!(
            time(Some(&prost_types::Timestamp { seconds: 0, nanos: 5_000_000 })),
            "1970-01-01 00:00:00.005Z"
        );
        assert_eq!(
            (count(1, "session"), count(0, "session")),
            ("1 session".into(), "0 sessions".into())
        );
        assert_eq!(octets(1536), "1.5 KiB");
    }
}
