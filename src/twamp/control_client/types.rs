//! Inputs and actions of a Control-Client.

use std::net::IpAddr;

use super::ClientError;
use crate::wire::{
    codes::{Accept, Modes, Sid},
    crypto::{BLOCK_OCTETS, SessionKeys},
    format::PacketFormat,
};

/// A test session to request.
#[derive(Clone, Copy, Debug)]
pub struct SessionRequest {
    /// Address of the sender; unspecified means that of the control connection.
    pub sender_address: IpAddr,
    /// UDP port of the sender.
    pub sender_port: u16,
    /// Address of the reflector; unspecified means that of the control connection.
    pub receiver_address: IpAddr,
    /// Requested UDP port of the reflector.
    pub receiver_port: u16,
    /// UDP payload of each probe in octets.
    pub data_size: u16,
    /// Octets of padding to reflect unchanged, if RFC 6038 is in force.
    pub reflected_length: u16,
    /// DSCP of probes and replies.
    pub dscp: u8,
    /// Time for which the server reflects after Stop-Sessions, nanoseconds.
    pub timeout_ns: u64,
}

/// Configuration of a client and its random octets.
#[derive(Debug)]
pub struct ClientOptions {
    /// Required mode: one of the security bits.
    pub security: Modes,
    /// Extensions to use if offered.
    pub extensions: Modes,
    /// KeyID of the shared secret.
    pub key_id: String,
    /// Largest iteration count accepted from a server.
    pub maximum_count: u32,
    /// Time limit of each response, except Server-Start in a mode with keys.
    pub response_timeout_ns: u64,
    /// Time limit of Server-Start in a mode with keys, for which the server derives a key.
    pub key_timeout_ns: u64,
    /// Random session keys, for modes with keys.
    pub keys: SessionKeys,
    /// Random initialisation vector, for modes with keys.
    pub client_iv: [u8; BLOCK_OCTETS],
    /// Random octets to be reflected (RFC 6038).
    pub reflected_octets: u16,
}

/// An action for the driver.
#[derive(Debug)]
pub enum ClientAction {
    /// Write octets to the connection.
    Send(Vec<u8>),
    /// Derive the key of the secret, which is slow, and pass it to [`ControlClient::key_derived`].
    DeriveKey {
        /// Salt of the greeting.
        salt: [u8; 16],
        /// Iteration count of the greeting.
        count: u32,
    },
    /// A request was accepted.
    Accepted(AcceptedSession),
    /// The request with this index was refused; other sessions are not affected.
    Refused(usize, Accept),
    /// All sessions are started; probes may be sent.
    Started,
    /// All sessions are stopped; acknowledged with individual control.
    Stopped,
    /// Close the connection after a failure.
    Failed(ClientError),
}

/// A session that the server accepted.
#[derive(Clone, Debug)]
pub struct AcceptedSession {
    /// Index of the request.
    pub index: usize,
    /// UDP port of the reflector; may differ from the requested one.
    pub port: u16,
    /// Session identifier from the server.
    pub sid: Sid,
    /// Format of its test packets.
    pub format: PacketFormat,
    /// Octets with which the padding of each probe begins (RFC 6038 §4.3); `None` unless requested
    /// by the server.
    pub server_octets: Option<[u8; 2]>,
}
