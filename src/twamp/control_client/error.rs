//! Why a Control-Client gave up.

use thiserror::Error;

use crate::wire::{
    codes::{Accept, Modes},
    crypto::BadMac,
};

/// Why the client gave up.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ClientError {
    /// The greeting offers nothing: the server refuses service.
    #[error("the server offers no mode at all: it refuses service")]
    ServiceRefused,
    /// Nothing in the greeting that is configured.
    #[error("the server offers modes {offered}; wanted: {wanted}")]
    NoCommonMode {
        /// Modes of the greeting.
        offered: Modes,
        /// The mode that the configuration asks for.
        wanted: Modes,
    },
    /// Count of the greeting (RFC 5357 §6).
    #[error("the server asks for {count} rounds of key derivation; allowed: 1 to {maximum}")]
    Count {
        /// Of the greeting.
        count: u32,
        /// Of this client.
        maximum: u32,
    },
    /// Server-Start with a non-zero Accept.
    #[error("the server refused the connection: {0}")]
    ConnectionRejected(Accept),
    /// Server-Start with a non-zero Accept in a mode with keys.
    #[error(
        "the server refused the connection: {0}; in a mode with keys, most likely key_id or secret are not those of the server"
    )]
    KeyRejected(Accept),
    /// A message that the server did not make with the keys.
    #[error("{0}")]
    NotGenuine(#[from] BadMac),
    /// Accept-Session with a non-zero Accept.
    #[error("the server refused the session: {accept}")]
    SessionRejected {
        /// Index of the request.
        index: usize,
        /// Its answer.
        accept: Accept,
    },
    /// Start-Ack or Start-N-Ack with a non-zero Accept.
    #[error("the server refused to start the sessions: {0}")]
    StartRejected(Accept),
    /// Accept-Session with port 0 though accepted.
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
    /// Accept-Session that does not repeat what RFC 6038 §4.3 says.
    #[error(
        "the server accepted session {index} and repeats {received:#06x} instead of {sent:#06x} as octets to be reflected (RFC 6038 section 4.3)"
    )]
    ReflectedOctets {
        /// Index of the request.
        index: usize,
        /// In the request.
        sent: u16,
        /// In the answer.
        received: u16,
    },
    /// Something came when nothing was due.
    #[error("the server sent {0} octets that answer nothing")]
    Unexpected(usize),
    /// An acknowledgement of what was not asked for.
    #[error("the server acknowledged {0} sessions that it was not asked to start or stop")]
    UnknownSessions(usize),
    /// An answer is overdue.
    #[error("the server did not send its {0} in time")]
    ResponseTimeout(&'static str),
}
