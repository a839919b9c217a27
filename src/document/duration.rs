//! Durations as they are written by hand: `20ms`, `1.5s`, `1m30s`.

/// Units in nanoseconds, longest first.
const UNITS: [(&str, u64); 8] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("ns", 1),
];
/// Largest `google.protobuf.Duration`, ten thousand years.
const MAXIMUM_SECONDS: i64 = 315_576_000_000;
/// Digits of a fraction that can matter, down to a nanosecond of a day.
const FRACTION_DIGITS: usize = 18;

/// Form of a duration, for error messages.
pub const DURATION_FORM: &str = "a number with a unit, such as 20ms, 1.5s or 1m30s";

/// Parses a sequence of numbers with units, each unit shorter than the one before; only the last
/// number may have a fraction. `None` if it is malformed or too long for the API.
pub fn parse_duration(text: &str) -> Option<prost_types::Duration> {
    let (sign, mut rest) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let mut total_ns: i128 = 0;
    let mut longest_ns = u64::MAX;
    while longest_ns == u64::MAX || !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = split(after, char::is_alphabetic);
        let (_, unit_ns) = UNITS.iter().find(|(name, _)| *name == unit)?;
        if *unit_ns >= longest_ns || (number.contains('.') && !after.is_empty()) {
            return None;
        }
        total_ns = total_ns.checked_add(length_ns(number, *unit_ns)?)?;
        (longest_ns, rest) = (*unit_ns, after);
    }
    let total_ns = sign * total_ns;
    let seconds = i64::try_from(total_ns / 1_000_000_000).ok()?;
    let nanos = (total_ns % 1_000_000_000) as i32;
    (seconds.abs() <= MAXIMUM_SECONDS).then_some(prost_types::Duration { seconds, nanos })
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

fn length_ns(number: &str, unit_ns: u64) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > FRACTION_DIGITS {
        return None;
    }
    let (whole, digits): (u64, u64) = (whole.parse().ok()?, fraction.parse().ok()?);
    let unit_ns = i128::from(unit_ns);
    let part_ns = i128::from(digits) * unit_ns / 10_i128.pow(fraction.len() as u32);
    Some(i128::from(whole) * unit_ns + part_ns)
}

/// Formats a duration as the JSON mapping of proto3 has it.
pub(super) fn canonical(duration: &prost_types::Duration) -> String {
    let sign = if duration.seconds < 0 || duration.nanos < 0 { "-" } else { "" };
    let (seconds, nanos) = (duration.seconds.unsigned_abs(), duration.nanos.unsigned_abs());
    format!("{sign}{seconds}.{nanos:09}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_the_units_of_people() {
        for (text, expected) in [
            ("1m", "60.000000000s"),
            ("20ms", "0.020000000s"),
            ("1m30s", "90.000000000s"),
            ("1h0m0.5s", "3600.500000000s"),
            ("90d", "7776000.000000000s"),
            ("0.02s", "0.020000000s"),
            ("1.5ms", "0.001500000s"),
            ("250us", "0.000250000s"),
            ("250µs", "0.000250000s"),
            ("7ns", "0.000000007s"),
            ("-1.5s", "-1.500000000s"),
            ("0s", "0.000000000s"),
        ] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(canonical(&duration), expected, "{text}");
            // The form of the API is read back as the same.
            assert_eq!(parse_duration(expected), Some(duration));
        }
    }

    #[test]
    fn malformed_durations_are_refused() {
        for text in [
            "",
            "5",
            "s",
            "-",
            "1 m",
            "1m1m",
            "1s1m",
            "1.5m3s",
            ".5s",
            "1.s",
            "1.1.1s",
            "5 weeks",
            "1e3s",
            "400000000000s",
            "99999999999999999999s",
            "+1s",
            "1µ",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
