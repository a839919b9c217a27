//! Format of the page: OpenMetrics 1.0 for clients that ask for it, the older text format 0.0.4
//! for all others.

use hyper::header::HeaderValue;

/// Format in which metrics are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Text format 0.0.4, for clients without a preference.
    Text,
    /// OpenMetrics 1.0.0, for clients that accept it.
    OpenMetrics,
}

impl Format {
    /// Selects the format by the values of `Accept` (RFC 9110 §12.5.1). OpenMetrics has to be named.
    pub(super) fn accepted<'a>(accept: impl Iterator<Item = &'a HeaderValue>) -> Self {
        let (mut text, mut open_metrics) = (0.0f32, 0.0f32);
        let values = accept.filter_map(|value| value.to_str().ok());
        for range in values.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
            let quality: f32 = quality.unwrap_or(1.0);
            match media_type.as_str() {
                "application/openmetrics-text" => open_metrics = open_metrics.max(quality),
                "text/plain" | "text/*" | "*/*" => text = text.max(quality),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// Returns the value of `Content-Type`.
    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        })
    }

    /// Renders a page of OpenMetrics in this format.
    pub(super) fn render(self, open_metrics: String) -> String {
        match self {
            Self::Text => text(&open_metrics),
            Self::OpenMetrics => open_metrics,
        }
    }
}

/// Converts OpenMetrics to text 0.0.4, in which families have the names of their samples, and which has
/// neither units nor an end mark.
fn text(open_metrics: &str) -> String {
    let mut page = String::with_capacity(open_metrics.len());
    // The help precedes the type, whose suffix it needs.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                page.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            page.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            page.extend([line, "\n"]);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_has_to_be_asked_for() {
        for (accept, expected) in [
            (&[][..], Format::Text),
            (&["*/*"], Format::Text),
            (&["text/plain"], Format::Text),
            (&["text/html, */*;q=0.8"], Format::Text),
            (&["application/openmetrics-text"], Format::OpenMetrics),
            (&["application/openmetrics-text; version=1.0.0; q=0"], Format::Text),
            (&["text/plain;q=0.9", "Application/OpenMetrics-Text;q=0.5"], Format::Text),
            // Header as sent by Prometheus 2.
            (
                &["application/openmetrics-text;version=1.0.0,\
                   application/openmetrics-text;version=0.0.1;q=0.75,\
                   text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
                Format::OpenMetrics,
            ),
            (&["\u{1}, ;q=x,,"], Format::Text),
        ] {
            let values: Vec<HeaderValue> = accept
                .iter()
                .filter_map(|value| HeaderValue::from_bytes(value.as_bytes()).ok())
                .collect();
            assert_eq!(Format::accepted(values.iter()), expected, "{accept:?}");
        }
    }

    #[test]
    fn the_text_format_names_families_as_their_samples() {
        let open_metrics = "\
# HELP twamp_tests Tests that ended.
# TYPE twamp_tests counter
twamp_tests_total{outcome=\"complete\"} 3
# HELP twamp_rtt_seconds Round-trip time.
# TYPE twamp_rtt_seconds histogram
# UNIT twamp_rtt_seconds seconds
twamp_rtt_seconds_sum 1.5
# HELP twamp_agent Version.
# TYPE twamp_agent info
twamp_agent_info{version=\"1\"} 1
# EOF
";
        let text = "\
# HELP twamp_tests_total Tests that ended.
# TYPE twamp_tests_total counter
twamp_tests_total{outcome=\"complete\"} 3
# HELP twamp_rtt_seconds Round-trip time.
# TYPE twamp_rtt_seconds histogram
twamp_rtt_seconds_sum 1.5
# HELP twamp_agent_info Version.
# TYPE twamp_agent_info gauge
twamp_agent_info{version=\"1\"} 1
";
        assert_eq!(Format::Text.render(open_metrics.to_owned()), text);
        assert_eq!(Format::OpenMetrics.render(open_metrics.to_owned()), open_metrics);
    }
}
