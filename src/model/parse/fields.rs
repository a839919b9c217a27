//! Checks single fields, each with its range and default.

use std::collections::BTreeMap;

use super::{
    super::{
        Dscp, Keepalive,
        limits::{self, Limit},
    },
    Check, Violation, check_entry_name, check_name,
};
use crate::time::NANOS_PER_SECOND;

/// Checks a duration and converts it to nanoseconds.
pub fn parse_duration(
    field: &str,
    value: prost_types::Duration,
    limit: &Limit,
) -> Result<u64, Violation> {
    let seconds = u64::try_from(value.seconds).ok();
    let nanos = u64::try_from(value.nanos).ok().filter(|nanos| *nanos < NANOS_PER_SECOND);
    let total = seconds
        .and_then(|seconds| seconds.checked_mul(NANOS_PER_SECOND))
        .zip(nanos)
        .and_then(|(seconds, nanos)| seconds.checked_add(nanos));
    total.filter(|total| limit.range.contains(total)).ok_or_else(|| Violation {
        field: field.into(),
        description: format!(
            "{}.{:09} s is out of range; allowed: {}",
            value.seconds,
            value.nanos.unsigned_abs(),
            limit.words
        ),
    })
}

impl Check {
    pub(super) fn keepalive(
        &mut self,
        idle: Option<prost_types::Duration>,
        interval: Option<prost_types::Duration>,
        count: Option<u32>,
    ) -> Keepalive {
        for (field, given) in [("tcp_keepidle", idle), ("tcp_keepintvl", interval)] {
            if given.is_some_and(|duration| duration.nanos != 0) {
                self.report(field, "not whole seconds: the kernel counts keepalive in seconds");
            }
        }
        Keepalive {
            idle_ns: self.duration("tcp_keepidle", idle, &limits::TCP_KEEPIDLE),
            interval_ns: self.duration("tcp_keepintvl", interval, &limits::TCP_KEEPINTVL),
            count: self.number("tcp_keepcnt", count, &limits::TCP_KEEPCNT) as u32,
        }
    }

    pub(super) fn name(&mut self, name: &str) {
        if let Err(description) = check_name(name) {
            self.report("name", description);
        }
    }

    pub(super) fn entry_name(&mut self, name: &str) {
        if let Err(description) = check_entry_name(name) {
            self.report("name", description);
        }
    }

    pub(super) fn duplicate(&mut self, name: &str) {
        self.report("name", format!("{name:?} is used twice; names must be unique here"));
    }

    pub(super) fn text(&mut self, field: &str, text: &str) {
        if text.len() > limits::MAXIMUM_TEXT_OCTETS {
            self.report(
                field,
                format!("{} octets: expected at most {}", text.len(), limits::MAXIMUM_TEXT_OCTETS),
            );
        }
    }

    pub(super) fn labels(&mut self, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        if labels.len() > limits::MAXIMUM_LABELS {
            self.report(
                "labels",
                format!("{} labels: expected at most {}", labels.len(), limits::MAXIMUM_LABELS),
            );
        }
        if labels.contains_key("") {
            self.report("labels", "a label has an empty key: expected at least one octet");
        }
        let texts = labels.iter().flat_map(|(key, value)| [key, value]);
        if let Some(text) = texts.into_iter().find(|text| text.contains(char::is_control)) {
            let shown: String = text.chars().take(80).collect();
            self.report("labels", format!("{shown:?} has control characters: expected none"));
        }
        self.label_octets(labels);
        labels.clone()
    }

    /// Checks the length of labels, which every record carries.
    pub(super) fn label_octets(&mut self, labels: &BTreeMap<String, String>) {
        let octets: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if octets > limits::MAXIMUM_LABEL_OCTETS {
            self.report(
                "labels",
                format!(
                    "{octets} octets of keys and values, those of the connection and a session \
                     together; at most {}",
                    limits::MAXIMUM_LABEL_OCTETS
                ),
            );
        }
    }

    /// Returns the value of an enumeration; unknown numbers are a violation.
    pub(super) fn enumeration<E: TryFrom<i32> + Default>(&mut self, field: &str, value: i32) -> E {
        E::try_from(value).unwrap_or_else(|_| {
            self.report(field, format!("{value} is not a value of this enumeration"));
            E::default()
        })
    }

    pub(super) fn number<N: Into<u64>>(
        &mut self,
        field: &str,
        value: Option<N>,
        limit: &Limit,
    ) -> u64 {
        let Some(value) = value.map(Into::into) else { return limit.default };
        if limit.range.contains(&value) {
            return value;
        }
        self.report(field, format!("{value} is out of range; allowed: {}", limit.words));
        limit.default
    }

    pub(super) fn optional_port(&mut self, field: &str, port: Option<u32>) -> Option<u16> {
        port.map(|port| self.number(field, Some(port), &limits::PORT) as u16)
    }

    pub(super) fn duration(
        &mut self,
        field: &str,
        value: Option<prost_types::Duration>,
        limit: &Limit,
    ) -> u64 {
        let Some(value) = value else { return limit.default };
        parse_duration(field, value, limit).unwrap_or_else(|violation| {
            self.report(field, violation.description);
            limit.default
        })
    }

    pub(super) fn dscp(&mut self, field: &str, text: &str) -> Dscp {
        text.parse().unwrap_or_else(|()| {
            self.report(
                field,
                format!(
                    "{text:?} is not a DSCP: an alias such as ef, af11 or cs6, six bits such as \
                     101110, or a number from 0 to 63"
                ),
            );
            Dscp::default()
        })
    }
}
