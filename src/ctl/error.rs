//! Errors of the command-line client. Their texts name commands instead of methods of the API.

use std::error::Error;

use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::connect::{ConnectError, Target, innermost};
use crate::document::DocumentError;

/// Methods and fields that messages of the API refer to, and the commands and options for them.
const COMMANDS: [(&str, &str); 7] = [
    ("ListServerConnections", "`twampctl server status`"),
    ("ListRevisions", "`twampctl revisions`"),
    ("ListConnections", "`twampctl status`"),
    ("StartConnections", "`twampctl start`"),
    ("GetConfig", "`twampctl get config`"),
    ("StreamRecords: earliest", "`twampctl stream --earliest`"),
    ("ListRecords: after_cursor 0", "`twampctl records --after 0`"),
];

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
    /// A document cannot be parsed; path and error.
    #[error("{0}: {1}")]
    Document(String, DocumentError),
    /// A removal was not confirmed.
    #[error("declined, nothing has changed")]
    Declined,
    /// A probed server does not work; the verdict was printed before.
    #[error("probe-server failed: see the verdict above")]
    ServerFails,
    /// The output cannot be written.
    #[error("failed to write the output: {0}")]
    Output(#[from] std::io::Error),
    /// A message cannot be converted to JSON or YAML.
    #[error("failed to format the output: {0}")]
    Show(#[from] DocumentError),
}

impl From<Status> for CtlError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl CtlError {
    /// Returns the exit code of the program: 69 without an agent, 78 for an invalid configuration,
    /// 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Connect(_) => 69,
            Self::Status(status) if is_gone(status) => 69,
            Self::Status(status) if status.code() == Code::InvalidArgument => 78,
            Self::Document(..) => 78,
            Self::Status(_)
            | Self::File(..)
            | Self::Declined
            | Self::ServerFails
            | Self::Output(_)
            | Self::Show(_) => 1,
        }
    }

    /// Names the likely reason of a connection over TLS that closed before its first request: an
    /// agent refuses a client without a certificate only after that client's handshake (RFC 8446
    /// §4.4.2), and HTTP/2 loses the alert unless a request is in flight.
    #[must_use]
    pub fn over(self, target: &Target) -> Self {
        match (&self, target.tls_host()) {
            (Self::Status(status), Some(host)) if is_unsent(status) => {
                let alert = "connection closed".into();
                ConnectError::HandshakeRefused { target: host.to_owned(), alert }.into()
            }
            _ => self,
        }
    }
}

/// Returns whether the connection closed before the request was sent.
fn is_unsent(status: &Status) -> bool {
    is_gone(status) && status.message().contains("operation was canceled")
}

/// Returns whether the agent was lost before or during its answer.
fn is_gone(status: &Status) -> bool {
    let broken = matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled);
    status.code() == Code::Unavailable || (broken && status.source().is_some())
}

/// Returns the text of a status, with each violation on its own line.
fn status_text(status: &Status) -> String {
    // An error with a source comes from the transport, not from the agent.
    if let Some(source) = status.source().filter(|_| is_gone(status)) {
        return transport_text(status.message(), source);
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
        return format!("{} ({:?})", with_commands(status.message()), status.code());
    }
    let lines: Vec<String> = lines
        .iter()
        .map(|(field, text)| match field.as_str() {
            "" => with_commands(text),
            field => format!("{field}: {}", with_commands(text)),
        })
        .collect();
    format!("refused ({:?})\n  {}", status.code(), lines.join("\n  "))
}

fn transport_text(message: &str, source: &(dyn Error + 'static)) -> String {
    let detail = innermost(source).to_string();
    // HTTP/2 keeps only the text of the TLS library.
    if let Some((_, alert)) = detail.split_once("received fatal alert: ") {
        return format!(
            "the agent refused the TLS handshake ({alert}): it may require --cert and --key \
             with a certificate of its client CA"
        );
    }
    match message.contains(&detail) {
        true => format!("the connection to the agent was lost ({message})"),
        false => format!("the connection to the agent was lost ({message}: {detail})"),
    }
}

/// Replaces the names of methods by the commands that call them.
fn with_commands(text: &str) -> String {
    COMMANDS.iter().fold(text.to_owned(), |text, (method, command)| text.replace(method, command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_commands() {
        let text = "revision 7 was never made or is no longer kept: see ListRevisions";
        let error = CtlError::from(Status::not_found(text));
        assert_eq!(
            error.to_string(),
            "revision 7 was never made or is no longer kept: see `twampctl revisions` (NotFound)"
        );
        let error = CtlError::from(Status::not_found("see ListServerConnections"));
        assert!(error.to_string().starts_with("see `twampctl server status`"));
    }

    #[test]
    fn connection_that_closes_at_once_over_tls_may_require_a_certificate() {
        let closed = || {
            let error = std::io::Error::other("operation was canceled: connection closed");
            CtlError::from(Status::from_error(Box::new(error)))
        };
        let target: Target = "https://agent.example:50051".parse().unwrap();
        let error = closed().over(&target);
        assert_eq!(
            error.to_string(),
            "the agent at agent.example:50051 refused the TLS handshake (connection closed): it \
             may require --cert and --key with a certificate of its client CA"
        );
        assert_eq!(error.exit_code(), 69);
        let plain: Target = "agent.example:50051".parse().unwrap();
        assert!(
            closed().over(&plain).to_string().starts_with("the connection to the agent was lost")
        );
        let refused = CtlError::from(Status::not_found("no such connection")).over(&target);
        assert_eq!(refused.to_string(), "no such connection (NotFound)");
    }
}
