//! What goes into a Control-Client, and what comes out of it.

use std::net::IpAddr;

use super::ClientError;
use crate::wire::{
    codes::{Accept, Modes, Sid},
    crypto::{BLOCK_OCTETS, SessionKeys},
    format::PacketFormat,
};

/// A test session to be asked for.
#[derive(Clone, Copy, Debug)]
pub struct SessionRequest {
    /// Address of the sender; unspecified stands for that of the control connection.
    pub sender_address: IpAddr,
    /// UDP port of the sender.
    pub sender_port: u16,
    /// Address of the reflector; unspecified stands for that of the control connection.
    pub receiver_address: IpAddr,
    /// UDP port wanted at the reflector.
    pub receiver_port: u16,
    /// Octets of UDP payload in each probe.
    pub data_size: u16,
    /// Octets of padding to come back as they are, where RFC 6038 is in force.
    pub reflected_length: u16,
    /// DSCP of probes and replies.
    pub dscp: u8,
    /// How long the reflector is to answer after Stop-Sessions, nanoseconds.
    pub timeout_ns: u64,
}

/// What the client wants, and the random octets that it needs.
#[derive(Debug)]
pub struct ClientOptions {
    /// The mode: one of the security bits.
    pub security: Modes,
    /// Extensions, each of which is chosen where it is offered.
    pub extensions: Modes,
    /// Name of the key.
    pub key_id: String,
    /// Rounds of key derivation that a server may ask for.
    pub maximum_count: u32,
    /// Each answer is due within this.
    pub response_timeout_ns: u64,
    /// But for Server-Start in a mode with keys, for which the server derives a key.
    pub key_timeout_ns: u64,
    /// Random keys of the connection, for modes with keys.
    pub keys: SessionKeys,
    /// Random.
    pub client_iv: [u8; BLOCK_OCTETS],
    /// Random, for RFC 6038.
    pub reflected_octets: u16,
}

/// What the driver is to do.
#[derive(Debug)]
pub enum ClientAction {
    /// Write these octets.
    Send(Vec<u8>),
    /// Derive the key of the secret, which takes its time, and give it to
    /// [`ControlClient::key_derived`].
    DeriveKey {
        /// Of the greeting.
        salt: [u8; 16],
        /// Of the greeting.
        count: u32,
    },
    /// The request of this index was accepted.
    Accepted(AcceptedSession),
    /// The request of this index was refused, which leaves the other sessions alone: those that run,
    /// and those that are asked for with it.
    Refused(usize, Accept),
    /// All sessions are started: probes may be sent.
    Started,
    /// All sessions are stopped, and the server said so.
    Stopped,
    /// Close the connection.
    Failed(ClientError),
}

/// A session that the server accepted.
#[derive(Clone, Debug)]
pub struct AcceptedSession {
    /// Index of the request.
    pub index: usize,
    /// UDP port of the reflector, which may differ from the one asked for.
    pub port: u16,
    /// Session identifier.
    pub sid: Sid,
    /// What its packets look like.
    pub format: PacketFormat,
    /// What the padding of each probe begins with, where the server asks for it (RFC 6038 §4.3).
    pub server_octets: Option<[u8; 2]>,
}
