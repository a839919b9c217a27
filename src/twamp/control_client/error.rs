//! Failures of a Control-Client.

use thiserror::Error;

use crate::wire::{
    codes::{Accept, Modes},
    crypto::BadMac,
};

/// Reason for which a client ends a connection.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ClientError {
    /// Modes of the greeting are 0: the server refuses service.
    #[error("the server offers no mode: it refuses service")]
    ServiceRefused,
    /// The server speaks another protocol.
    #[error("this is no TWAMP server: it looks like {0}")]
    OtherProtocol(String),
    /// The greeting has bits that no mode has.
    #[error("this is no TWAMP server: modes {0:#010x} of its greeting do not exist")]
    NoGreeting(u32),
    /// The configured mode is not offered.
    #[error("the server offers modes {offered}; expected {wanted}")]
    NoCommonMode {
        /// Modes offered by the greeting.
        offered: Modes,
        /// Mode required by the configuration.
        wanted: Modes,
    },
    /// Iteration count outside the allowed range (RFC 5357 §6).
    #[error("the server asks for {count} rounds of key derivation; expected 1 to {maximum}")]
    Count {
        /// Count of the greeting.
        count: u32,
        /// Largest count that this client accepts.
        maximum: u32,
    },
    /// Server-Start with a non-zero Accept.
    #[error("the server refused the connection: {0}")]
    ConnectionRejected(Accept),
    /// Server-Start with a non-zero Accept in a mode with keys.
    #[error("the server refused the connection: {0}; check key_id and secret")]
    KeyRejected(Accept),
    /// A message with a wrong HMAC.
    #[error("{0}")]
    NotGenuine(#[from] BadMac),
    /// Accept-Session with a non-zero Accept.
    #[error("the server refused the session: {accept}")]
    SessionRejected {
        /// Index of the request.
        index: usize,
        /// Accept value of the response.
        accept: Accept,
    },
    /// Start-Ack or Start-N-Ack with a non-zero Accept.
    #[error("the server refused to start the sessions: {0}")]
    StartRejected(Accept),
    /// Accept-Session that accepts with port 0.
    #[error("the server accepted session {index} on port 0")]
    NoPort {
        /// Index of the request.
        index: usize,
    },
    /// Accept-Session with the SID of another session of this connection (RFC 4656 §3.5).
    #[error("the server accepted session {index} with the SID of another session")]
    RepeatedSid {
        /// Index of the request.
        index: usize,
    },
    /// Accept-Session that does not repeat the octets of the request (RFC 6038 §4.3).
    #[error(
        "the server accepted session {index} but repeated {received:#06x} instead of {sent:#06x} as octets to be reflected (RFC 6038 section 4.3)"
    )]
    ReflectedOctets {
        /// Index of the request.
        index: usize,
        /// Octets sent in the request.
        sent: u16,
        /// Octets received in the response.
        received: u16,
    },
    /// Data received when no message was expected.
    #[error("the server sent {0} unexpected octets")]
    Unexpected(usize),
    /// An acknowledgement of sessions that were not named.
    #[error("the server acknowledged {0} sessions that it was not asked to start or stop")]
    UnknownSessions(usize),
    /// A response was not received in time.
    #[error("the server did not send its {0} in time")]
    ResponseTimeout(&'static str),
}
