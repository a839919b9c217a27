//! Logs on standard error, as text or JSON.

use std::io::IsTerminal;

use serde::Deserialize;
use thiserror::Error;
use tracing_subscriber::{EnvFilter, fmt};

/// Log settings of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// Filter in the syntax of `tracing`, such as `info` or `twamp_agent=debug`.
    pub filter: String,
    /// Format of each line.
    pub format: LogFormat,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text lines for human readers.
    #[default]
    Text,
    /// One JSON object for each line.
    Json,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

/// The log filter cannot be parsed.
#[derive(Debug, Error)]
#[error(
    "invalid log filter {filter:?}: {source}; expected \"info\" or \"twamp_agent=debug\", for example"
)]
pub struct LogError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Starts logging to standard error. Further calls have no effect.
pub fn init(settings: &LogSettings) -> Result<(), LogError> {
    let filter = EnvFilter::builder()
        .parse(&settings.filter)
        .map_err(|source| LogError { filter: settings.filter.clone(), source })?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An error means that logging is already set up, as in tests.
    let _ = match settings.format {
        LogFormat::Text => {
            builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
