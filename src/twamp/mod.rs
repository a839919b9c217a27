//! The protocol as machines without I/O, clock or randomness: those are arguments. A driver feeds
//! a machine with `handle_*`, then takes out what it wants done with `poll_*` until there is
//! nothing left, and calls `handle_timeout` when `poll_deadline` has passed. What a peer sends
//! ends a machine at worst with a reason, never with a panic.

pub mod connection;
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
