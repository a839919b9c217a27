//! Conversion of socket errors to failures.

use std::{io, net::SocketAddr};

use crate::{proto::FailureCause, twamp::connection::Failure};

impl Failure {
    /// Returns the failure of a TCP connect.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    pub(super) fn from_connect_error(error: &io::Error, to: SocketAddr) -> Self {
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

    /// Returns the failure of a packet that the kernel of this host does not send.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    pub(super) fn from_send_error(error: &io::Error, to: SocketAddr) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => FailureCause::NoRoute,
            _ => FailureCause::LocalError,
        };
        Self::new(cause, format!("UDP to {to}: {error}"))
    }

    /// Returns the failure of a socket that could not be opened, or whose address is gone.
    pub(super) fn from_local_error(what: &str, error: &io::Error) -> Self {
        Self::new(FailureCause::LocalError, format!("{what}: {error}"))
    }

    /// Returns the failure of an open control connection.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    pub(super) fn from_connection_error(error: &io::Error) -> Self {
        let cause = match error.kind() {
            // After a reset the socket has no peer any more.
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => FailureCause::Reset,
            // Errors with which TCP keepalive and the user timeout end a connection. If an ICMP
            // error arrived before, the kernel reports it instead of the timeout.
            io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => FailureCause::KeepaliveTimeout,
            _ => FailureCause::LocalError,
        };
        Self::new(cause, format!("control connection: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The peer may have reset the connection before the agent reads its address.
    #[test]
    fn a_reset_connection_has_no_peer_address() {
        for kind in
            [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::NotConnected]
        {
            assert_eq!(Failure::from_connection_error(&kind.into()).cause, FailureCause::Reset);
        }
    }
}
