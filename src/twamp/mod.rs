//! Protocol state machines. They have no I/O, clock or randomness: received data, times and random
//! numbers are arguments.
//!
//! A driver passes events by `handle_*`, carries out everything that `poll_*` returns, and calls
//! `handle_timeout` when `poll_deadline` has passed. Input of a peer may end a machine with an
//! error, never with a panic.

pub(crate) mod connection;
pub mod control_client;
pub mod control_server;
mod message_buffer;
mod packet_meta;
pub mod reflector;
pub mod schedule;
pub mod sender;
#[cfg(test)]
mod simulation;

pub use packet_meta::PacketMeta;
