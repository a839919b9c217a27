//! Reasons for which a control connection was lost or could not be established.

use crate::{model::FailureCause, twamp::control_client::ClientError, wire::codes::Accept};

/// Loss of a connection or failure of an attempt, with its cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Category of the cause, as in results and events.
    pub(crate) cause: FailureCause,
    /// Accept code of the server; 0 if it sent none.
    pub(crate) accept_code: u8,
    /// Description for operators: the operation that failed, with the value that caused it.
    pub(crate) detail: String,
    /// Part of the request that the server may have failed on.
    pub(crate) suspect: Suspect,
}

/// Part of a negotiation that may explain its failure, so that the next attempt leaves it out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Suspect {
    /// Nothing that was requested.
    #[default]
    None,
    /// Extensions: the server did not answer, closed, or broke the protocol.
    ExtensionsPossibly,
    /// Extensions: the server refused.
    ExtensionsLikely,
    /// Zero addresses, or addresses: the server did not answer the first request for a session, or
    /// ended the connection.
    Addresses,
    /// One of several sessions: the server did not answer its request, or ended the connection.
    Session {
        name: String,
        /// Number of sessions that the server had accepted before.
        accepted: usize,
    },
}

impl Failure {
    /// Returns a failure without accept code and suspect.
    pub(crate) fn new(cause: FailureCause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into(), ..Self::default() }
    }

    /// Returns the failure of a connection that the server closed.
    pub(crate) fn closed_by_server() -> Self {
        Self::new(FailureCause::ClosedByServer, "the server closed the control connection")
    }

    /// Adds the name of the session that failed to the detail.
    #[must_use]
    pub(crate) fn for_session(self, name: &str) -> Self {
        Self { detail: format!("session {name}: {}", self.detail), ..self }
    }

    /// Adds the suspicion against extensions after a negotiation that used some. `derives_key`
    /// is true if the server had to derive a key and may be slow for that reason.
    #[must_use]
    pub(crate) fn suspecting_extensions(self, derives_key: bool) -> Self {
        let unspecific =
            [Accept::FAILURE, Accept::NOT_SUPPORTED].contains(&Accept(self.accept_code));
        let suspect = match self.cause {
            FailureCause::Rejected if unspecific => Suspect::ExtensionsLikely,
            // A server that refuses the mode may answer as one that refuses the key.
            FailureCause::BadKey if self.accept_code == Accept::FAILURE.0 => {
                Suspect::ExtensionsPossibly
            }
            FailureCause::ResponseTimeout if derives_key => Suspect::None,
            // The server may also have been restarted at that moment.
            FailureCause::Reset
            | FailureCause::ClosedByServer
            | FailureCause::ProtocolError
            | FailureCause::ResponseTimeout => Suspect::ExtensionsPossibly,
            FailureCause::Unspecified
            | FailureCause::Refused
            | FailureCause::ConnectTimeout
            | FailureCause::NoRoute
            | FailureCause::Dns
            | FailureCause::KeepaliveTimeout
            | FailureCause::NoCommonMode
            | FailureCause::BadKey
            | FailureCause::Rejected
            | FailureCause::Limit
            | FailureCause::Panic
            | FailureCause::LocalError
            | FailureCause::SessionExpired => Suspect::None,
        };
        Self { suspect, ..self }
    }

    /// Returns true if the server ended the connection, with FIN or RST.
    pub(crate) fn is_end_by_server(&self) -> bool {
        matches!(self.cause, FailureCause::ClosedByServer | FailureCause::Reset)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let (cause, accept) = match &error {
            ClientError::ServiceRefused => (FailureCause::Rejected, 0),
            ClientError::NoCommonMode { .. } => (FailureCause::NoCommonMode, 0),
            ClientError::Count { .. } => (FailureCause::Limit, 0),
            ClientError::KeyRejected(accept) => (FailureCause::BadKey, accept.0),
            ClientError::NotGenuine(_) => (FailureCause::BadKey, 0),
            ClientError::ConnectionRejected(accept)
            | ClientError::SessionRejected { accept, .. }
            | ClientError::StartRejected(accept) => (FailureCause::Rejected, accept.0),
            ClientError::OtherProtocol(_)
            | ClientError::NoGreeting(_)
            | ClientError::NoPort { .. }
            | ClientError::ReflectedOctets { .. }
            | ClientError::Unexpected(_)
            | ClientError::RepeatedSid { .. }
            | ClientError::UnknownSessions(_) => (FailureCause::ProtocolError, 0),
            ClientError::ResponseTimeout(_) => (FailureCause::ResponseTimeout, 0),
        };
        Self { accept_code: accept, ..Self::new(cause, error.to_string()) }
    }
}
