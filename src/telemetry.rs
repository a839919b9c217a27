//! Logs: text for people, JSON for machines, on standard error.

use std::io::IsTerminal;

use serde::Deserialize;
use thiserror::Error;
use tracing_subscriber::{EnvFilter, fmt};

/// How the agent logs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// What is logged, in the words of `tracing`: `info`, `twamp_agent=debug`.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
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

/// The filter is none.
#[derive(Debug, Error)]
#[error("log filter {filter:?}: {source}; right would be \"info\" or \"twamp_agent=debug\"")]
pub struct LogError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Logs to standard error from now on. A second call changes nothing.
pub fn init(settings: &LogSettings) -> Result<(), LogError> {
    let filter = EnvFilter::builder()
        .parse(&settings.filter)
        .map_err(|source| LogError { filter: settings.filter.clone(), source })?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An error means that something logs already, as in tests.
    let _ = match settings.format {
        LogFormat::Text => {
            builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
