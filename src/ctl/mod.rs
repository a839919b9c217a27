//! The command-line client, which uses only the public API of an agent.

mod commands;
mod configuration;
mod connect;
mod output;
mod pages;
mod probe;
mod tables;
mod words;

pub use commands::{Command, FilterArguments, GetCommand, KindArgument, Scope, ServerCommand, run};
pub use configuration::{ChangeOptions, ConfigurationCommand};
pub use connect::{ConnectError, Connection, Target, TlsFiles};
pub use output::Format;
pub use probe::{ModeArgument, ProbeArguments};
pub use tables::{record_line, statistics_table};

use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Reason for which a command failed.
#[derive(Debug, Error)]
pub enum CtlError {
    /// The agent cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The agent answered with an error status.
    #[error("{}", status_text(.0))]
    Status(Box<Status>),
    /// A file cannot be read; path and error.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
    /// A document cannot be parsed.
    #[error("{0}: {1}")]
    Document(String, crate::document::DocumentError),
    /// A probed server does not work; the result is printed before.
    #[error("the server does not work: see above")]
    ServerFails,
    /// The output cannot be written.
    #[error("output: {0}")]
    Output(#[from] std::io::Error),
    /// A message cannot be converted to JSON or YAML.
    #[error("output: {0}")]
    Show(#[from] crate::document::DocumentError),
}

impl From<Status> for CtlError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl CtlError {
    /// The exit code of the program: 69 where there is no agent, 78 for a configuration that is
    /// not right, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Connect(_) => 69,
            Self::Status(status) if is_gone(status) => 69,
            Self::Status(status) if status.code() == Code::InvalidArgument => 78,
            Self::Document(..) => 78,
            Self::Status(_)
            | Self::File(..)
            | Self::ServerFails
            | Self::Output(_)
            | Self::Show(_) => 1,
        }
    }
}

/// Returns whether the agent was lost before or during its answer.
fn is_gone(status: &Status) -> bool {
    let broken = matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled);
    status.code() == Code::Unavailable || (broken && std::error::Error::source(status).is_some())
}

/// Returns the text of a status, with each violation on its own line.
fn status_text(status: &Status) -> String {
    // An error with a source comes from the transport, not from the agent.
    if is_gone(status) && std::error::Error::source(status).is_some() {
        return format!("the agent went away ({})", status.message());
    }
    let details = status.get_error_details();
    let mut lines = Vec::new();
    if let Some(request) = details.bad_request() {
        for violation in &request.field_violations {
            lines.push((&violation.field, &violation.description));
        }
    }
    if let Some(precondition) = details.precondition_failure() {
        for violation in &precondition.violations {
            lines.push((&violation.subject, &violation.description));
        }
    }
    if lines.is_empty() {
        return format!("{} ({:?})", status.message(), status.code());
    }
    let lines: Vec<String> = lines
        .iter()
        .map(
            |(field, text)| {
                if field.is_empty() { (*text).clone() } else { format!("{field}: {text}") }
            },
        )
        .collect();
    format!("refused ({:?}), nothing has changed\n  {}", status.code(), lines.join("\n  "))
}
