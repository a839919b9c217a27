//! Reasons for which a Server closes a control connection.

use thiserror::Error;

use crate::wire::{codes::Modes, crypto::BadMac};

/// Reason for which the server closes a connection.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ServerError {
    /// Mode 0 in Set-Up-Response.
    #[error("the client chose no mode")]
    ClientGaveUp,
    /// A mode that was not offered, or not exactly one security mode.
    #[error("the client chose mode {chosen}; expected one of {offered}")]
    ModeNotOffered {
        /// Mode that Set-Up-Response chose.
        chosen: Modes,
        /// Modes of the greeting.
        offered: Modes,
    },
    /// Unknown KeyID or wrong secret. The two are not distinguished, so that the client learns no
    /// valid KeyID.
    #[error("the client's token was not made with a key of this server")]
    BadKey,
    /// No capacity to derive the key.
    #[error("too many clients are waiting for key derivation")]
    Busy,
    /// A message with a wrong HMAC.
    #[error("{0}")]
    NotGenuine(#[from] BadMac),
    /// More sessions in a message than the connection has (RFC 5938 §3).
    #[error("the client named {received} sessions; expected at most {expected}")]
    TooManySessions {
        /// Number in the message.
        received: u32,
        /// Sessions accepted and not yet stopped.
        expected: u32,
    },
    /// A command that is unknown, forbidden or not allowed in this state.
    #[error("command {0} is not allowed in this state")]
    Command(u8),
    /// Wrong Number of Sessions in Stop-Sessions.
    #[error("the client stopped {received} sessions; expected {expected}")]
    WrongSessionCount {
        /// Number in the message.
        received: u32,
        /// Sessions accepted and not yet stopped.
        expected: u32,
    },
    /// The Stop-Sessions message is incomplete.
    #[error("the client sent an incomplete Stop-Sessions")]
    BrokenStop,
    /// The client closed the connection.
    #[error("the client closed the connection")]
    Ended,
    /// No data for SERVWAIT.
    #[error("inactivity timeout expired")]
    Inactive,
    /// An incomplete message, or no response to the greeting.
    #[error("the client did not complete a message in time")]
    Incomplete,
}
