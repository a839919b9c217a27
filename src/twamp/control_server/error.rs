//! Why a Server closes a control connection.

use thiserror::Error;

use crate::wire::{codes::Modes, crypto::BadMac};

/// Why the server closes a connection.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ServerError {
    /// Mode 0: the client gave up.
    #[error("the client chose no mode")]
    ClientGaveUp,
    /// A mode that was not offered, or not exactly one.
    #[error("the client chose mode {chosen}; offered: {offered}")]
    ModeNotOffered {
        /// In Set-Up-Response.
        chosen: Modes,
        /// In the greeting.
        offered: Modes,
    },
    /// Unknown key or wrong secret: the client is not told which, and neither is this server.
    #[error("the client's token was not made with a key of this server")]
    BadKey,
    /// No key could be derived now.
    #[error("too many clients wait for their key to be derived")]
    Busy,
    /// A message that the client did not make with the keys.
    #[error("{0}")]
    NotGenuine(#[from] BadMac),
    /// More sessions in a message than the connection has (RFC 5938 §3).
    #[error("the client named {received} sessions; there are {expected}")]
    TooManySessions {
        /// In the message.
        received: u32,
        /// Accepted and not yet stopped.
        expected: u32,
    },
    /// A command that is unknown, forbidden, or not allowed now.
    #[error("command {0} is not allowed here")]
    Command(u8),
    /// Number of Sessions in Stop-Sessions.
    #[error("the client stopped {received} sessions; there are {expected}")]
    WrongSessionCount {
        /// In the message.
        received: u32,
        /// Accepted and not yet stopped.
        expected: u32,
    },
    /// Half a Stop-Sessions, and no more.
    #[error("the client sent only a part of Stop-Sessions")]
    BrokenStop,
    /// The client closed the connection.
    #[error("the client closed it")]
    Ended,
    /// Nothing came for SERVWAIT.
    #[error("nothing came for the inactivity timeout")]
    Inactive,
    /// Half a message, or no answer to the greeting.
    #[error("a message was not completed in time")]
    Incomplete,
}
