//! Why a connection was lost or did not come about.

use std::{io, net::SocketAddr};

use super::peer::Blame;
use crate::{proto::LossCause, twamp::control_client::ClientError, wire::codes::Accept};

/// A loss with its cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) cause: LossCause,
    pub(super) accept_code: u8,
    pub(super) detail: String,
    /// Whether the server may have stumbled over extensions that it was asked for.
    pub(super) blame: Blame,
}

impl Failure {
    pub(super) fn new(cause: LossCause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into(), ..Self::default() }
    }

    /// A TCP connect that failed.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    pub(super) fn connecting(error: &io::Error, to: &str) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::ConnectionRefused => LossCause::Refused,
            io::ErrorKind::TimedOut => LossCause::ConnectTimeout,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => LossCause::NoRoute,
            io::ErrorKind::ConnectionReset => LossCause::Reset,
            _ => LossCause::Local,
        };
        Self::new(cause, format!("TCP connect to {to}: {error}"))
    }

    /// What this host does not send.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    pub(super) fn sending(error: &io::Error, to: SocketAddr) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => LossCause::NoRoute,
            _ => LossCause::Local,
        };
        Self::new(cause, format!("UDP to {to}: {error}"))
    }

    /// A socket of this host that did not come about.
    pub(super) fn local(what: &str, error: &io::Error) -> Self {
        Self::new(LossCause::Local, format!("{what}: {error}"))
    }

    /// Of one of several sessions.
    pub(super) fn of_session(self, name: &str) -> Self {
        Self { detail: format!("session {name}: {}", self.detail), ..self }
    }

    /// An open connection that broke.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    pub(super) fn broken(error: &io::Error) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => LossCause::Reset,
            // What keepalive and the user timeout end a connection with; a router's message may
            // stand in for the timeout.
            io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => LossCause::KeepaliveTimeout,
            _ => LossCause::Local,
        };
        Self::new(cause, format!("control connection: {error}"))
    }

    /// Of a negotiation in which extensions had been chosen. `derives` tells that the server had to
    /// derive a key, for which it may take its time: that is no answer to anything.
    pub(super) fn with_extensions(self, derives: bool) -> Self {
        let unsaid = [Accept::FAILURE, Accept::NOT_SUPPORTED].contains(&Accept(self.accept_code));
        let blame = match self.cause {
            LossCause::Rejected if unsaid => Blame::Likely,
            // A server that refuses the mode may say the same as one that refuses the key.
            LossCause::BadKey if self.accept_code == Accept::FAILURE.0 => Blame::Possible,
            LossCause::ResponseTimeout if derives => Blame::None,
            // It may also have been started again just then.
            LossCause::Reset
            | LossCause::ClosedByServer
            | LossCause::ProtocolError
            | LossCause::ResponseTimeout => Blame::Possible,
            LossCause::Unspecified
            | LossCause::Refused
            | LossCause::ConnectTimeout
            | LossCause::NoRoute
            | LossCause::Dns
            | LossCause::KeepaliveTimeout
            | LossCause::NoCommonMode
            | LossCause::BadKey
            | LossCause::Rejected
            | LossCause::Limit
            | LossCause::Panic
            | LossCause::Local => Blame::None,
        };
        Self { blame, ..self }
    }

    /// The server ended the connection, in whatever way.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.cause, LossCause::ClosedByServer | LossCause::Reset)
    }

    pub(super) fn closed_by_server() -> Self {
        Self::new(LossCause::ClosedByServer, "the server closed the control connection")
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let (cause, accept) = match &error {
            ClientError::ServiceRefused => (LossCause::Rejected, 0),
            ClientError::NoCommonMode { .. } => (LossCause::NoCommonMode, 0),
            ClientError::Count { .. } => (LossCause::Limit, 0),
            ClientError::KeyRejected(accept) => (LossCause::BadKey, accept.0),
            ClientError::NotGenuine(_) => (LossCause::BadKey, 0),
            ClientError::ConnectionRejected(accept)
            | ClientError::SessionRejected { accept, .. }
            | ClientError::StartRejected(accept) => (LossCause::Rejected, accept.0),
            ClientError::NoPort { .. }
            | ClientError::ReflectedOctets { .. }
            | ClientError::Unexpected(_)
            | ClientError::RepeatedSid { .. }
            | ClientError::UnknownSessions(_) => (LossCause::ProtocolError, 0),
            ClientError::ResponseTimeout(_) => (LossCause::ResponseTimeout, 0),
        };
        Self { accept_code: accept, ..Self::new(cause, error.to_string()) }
    }
}
