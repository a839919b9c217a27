//! Why a connection was lost or did not come about.

use std::{io, net::SocketAddr};

use super::peer::Blame;
use crate::{proto::FailureCause, twamp::control_client::ClientError, wire::codes::Accept};

/// A loss with its cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) cause: FailureCause,
    pub(super) accept_code: u8,
    pub(super) detail: String,
    /// Whether the server may have stumbled over extensions that it was asked for.
    pub(super) blame: Blame,
}

impl Failure {
    pub(super) fn new(cause: FailureCause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into(), ..Self::default() }
    }

    /// A TCP connect that failed.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    pub(super) fn connecting(error: &io::Error, to: &str) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::ConnectionRefused => FailureCause::Refused,
            io::ErrorKind::TimedOut => FailureCause::ConnectTimeout,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => FailureCause::NoRoute,
            io::ErrorKind::ConnectionReset => FailureCause::Reset,
            _ => FailureCause::LocalError,
        };
        Self::new(cause, format!("TCP connect to {to}: {error}"))
    }

    /// What this host does not send.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    pub(super) fn sending(error: &io::Error, to: SocketAddr) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => FailureCause::NoRoute,
            _ => FailureCause::LocalError,
        };
        Self::new(cause, format!("UDP to {to}: {error}"))
    }

    /// A socket of this host that did not come about.
    pub(super) fn local(what: &str, error: &io::Error) -> Self {
        Self::new(FailureCause::LocalError, format!("{what}: {error}"))
    }

    /// Of one of several sessions.
    pub(super) fn of_session(self, name: &str) -> Self {
        Self { detail: format!("session {name}: {}", self.detail), ..self }
    }

    /// An open connection that broke.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    pub(super) fn broken(error: &io::Error) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => FailureCause::Reset,
            // What keepalive and the user timeout end a connection with; a router's message may
            // stand in for the timeout.
            io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => FailureCause::KeepaliveTimeout,
            _ => FailureCause::LocalError,
        };
        Self::new(cause, format!("control connection: {error}"))
    }

    /// Of a negotiation in which extensions had been chosen. `derives` tells that the server had to
    /// derive a key, for which it may take its time: that is no answer to anything.
    pub(super) fn with_extensions(self, derives: bool) -> Self {
        let unsaid = [Accept::FAILURE, Accept::NOT_SUPPORTED].contains(&Accept(self.accept_code));
        let blame = match self.cause {
            FailureCause::Rejected if unsaid => Blame::Likely,
            // A server that refuses the mode may say the same as one that refuses the key.
            FailureCause::BadKey if self.accept_code == Accept::FAILURE.0 => Blame::Possible,
            FailureCause::ResponseTimeout if derives => Blame::None,
            // It may also have been started again just then.
            FailureCause::Reset
            | FailureCause::ClosedByServer
            | FailureCause::ProtocolError
            | FailureCause::ResponseTimeout => Blame::Possible,
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
            | FailureCause::LocalError => Blame::None,
        };
        Self { blame, ..self }
    }

    /// The server ended the connection, in whatever way.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.cause, FailureCause::ClosedByServer | FailureCause::Reset)
    }

    pub(super) fn closed_by_server() -> Self {
        Self::new(FailureCause::ClosedByServer, "the server closed the control connection")
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
            ClientError::NoPort { .. }
            | ClientError::ReflectedOctets { .. }
            | ClientError::Unexpected(_)
            | ClientError::RepeatedSid { .. }
            | ClientError::UnknownSessions(_) => (FailureCause::ProtocolError, 0),
            ClientError::ResponseTimeout(_) => (FailureCause::ResponseTimeout, 0),
        };
        Self { accept_code: accept, ..Self::new(cause, error.to_string()) }
    }
}
