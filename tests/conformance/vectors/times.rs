//! Vectors of timestamps and Error Estimates.

use serde_json::Value;
use twamp_agent::time::{ErrorEstimate, NtpTimestamp, UnixTime};

use super::number;

pub(super) fn check(name: &str, input: &Value, output: &Value) {
    match name.split_once('/').unwrap() {
        ("ntp", ns) => {
            let time = UnixTime(ns.parse().unwrap());
            let expected = number(&output["ntp"]);
            let made = NtpTimestamp::from_unix(time);
            // The reference rounds to the nearest 2^-32 s, we round down.
            assert!(expected.wrapping_sub(made.0) <= 1, "{ns}: {:x} for {expected:x}", made.0);
            assert_eq!(NtpTimestamp(expected).to_unix(time), time);
        }
        ("ntp-diff", _) => {
            let [earlier, later] =
                ["earlier", "later"].map(|end| NtpTimestamp(number(&input[end])));
            let expected = output["later_minus_earlier_ns"].as_i64().unwrap();
            assert!((later.since_ns(earlier) - expected).abs() <= 1, "{name}");
            assert!((earlier.since_ns(later) + expected).abs() <= 1, "{name}");
        }
        ("error-estimate", _) => {
            let estimate = ErrorEstimate(number(&output["field"]) as u16);
            assert_eq!(estimate.is_synchronised(), input["S"] == 1, "{name}");
            // The largest value is 17,000 years; nanoseconds end at 584.
            let seconds = output["seconds"].as_f64().unwrap().min(u64::MAX as f64 / 1e9);
            let apart = (estimate.error_ns() as f64 / 1e9 - seconds).abs();
            assert!(apart <= 1e-9 + seconds * 1e-9, "{name}: {apart}");
        }
        (_, seconds) => {
            let ns = (seconds.parse::<f64>().unwrap() * 1e9).round() as u64;
            let made = ErrorEstimate::new(input["S"] == 1, ns);
            assert_eq!(u64::from(made.0), number(&output["field"]), "{name}");
        }
    }
}
