//! Request-TW-Session and Accept-Session (RFC 5357 §3.5, layout of RFC 4656 §3.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be,
};

/// Request-TW-Session.
///
/// ```text
///  0 Command = 5 | 1 MBZ, IPVN | 2 Conf-Sender | 3 Conf-Receiver | 4 Slots (4) | 8 Packets (4)
/// 12 Sender Port (2) | 14 Receiver Port (2) | 16 Sender Address (16) | 32 Receiver Address (16)
/// 48 SID (16) | 64 Padding Length (4) | 68 Start Time (8) | 76 Timeout (8) | 84 Type-P (4)
/// 88 Octets to reflect (2) | 90 Length to reflect (2) | 92 MBZ (4) | 96 HMAC (16)
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RequestTwSession {
    /// Command number, always 5.
    pub command: u8,
    /// IP version in the low four bits, MBZ in the others.
    pub ip_version: u8,
    /// Must be 0 in TWAMP.
    pub conf_sender: u8,
    /// Must be 0 in TWAMP.
    pub conf_receiver: u8,
    /// Must be 0 in TWAMP.
    pub schedule_slots: be::U32,
    /// Must be 0 in TWAMP.
    pub packets: be::U32,
    /// UDP port of the sender.
    pub sender_port: be::U16,
    /// Requested UDP port of the reflector.
    pub receiver_port: be::U16,
    sender_address: [u8; 16],
    receiver_address: [u8; 16],
    /// Must be 0 in TWAMP: the server assigns the SID.
    pub sid: [u8; 16],
    /// Octets of padding in each probe.
    pub padding_length: be::U32,
    /// NTP timestamp before which no probe is sent.
    pub start_time: be::U64,
    /// Time for which the server reflects after Stop-Sessions, in units of 2^-32 s.
    pub timeout: be::U64,
    /// Type-P Descriptor of probes and replies.
    pub type_p: be::U32,
    /// Octets that Accept-Session repeats (RFC 6038 §4.2); 0 unless negotiated.
    pub reflected_octets: be::U16,
    /// Octets of padding to reflect (RFC 6038 §4.2); 0 unless negotiated.
    pub reflected_length: be::U16,
    mbz: [u8; 4],
    hmac: [u8; 16],
}

impl RequestTwSession {
    /// Creates a request with all fixed fields set.
    pub fn new(sender: IpAddr, receiver: IpAddr) -> Self {
        let mut request = Self::new_zeroed();
        request.command = super::codes::Command::REQUEST_TW_SESSION.0;
        request.ip_version = if receiver.is_ipv4() { 4 } else { 6 };
        request.sender_address = address_to_octets(sender);
        request.receiver_address = address_to_octets(receiver);
        request
    }

    /// Returns the IP version of the session's addresses.
    pub fn ipvn(&self) -> u8 {
        self.ip_version & 0x0f
    }

    /// Returns the sender's address; `None` for zero, which means the client address of the
    /// control connection, and for an IPVN other than 4 or 6.
    pub fn sender_address(&self) -> Option<IpAddr> {
        address_from_octets(self.ipvn(), &self.sender_address)
    }

    /// Returns the reflector's address; `None` for zero, which means the server address of the
    /// control connection, and for an IPVN other than 4 or 6.
    pub fn receiver_address(&self) -> Option<IpAddr> {
        address_from_octets(self.ipvn(), &self.receiver_address)
    }
}

/// Accept-Session.
///
/// ```text
///  0 Accept | 1 MBZ | 2 Port (2) | 4 SID (16) | 20 Reflected octets (2) | 22 Server octets (2)
/// 24 MBZ (8) | 32 HMAC (16)
/// ```
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AcceptSession {
    /// Accept value of the request.
    pub accept: u8,
    mbz: u8,
    /// UDP port of the reflector; 0 if refused.
    pub port: be::U16,
    /// Session identifier; 0 if refused.
    pub sid: [u8; 16],
    /// Copy from the request (RFC 6038 §4.3); 0 unless negotiated.
    pub reflected_octets: be::U16,
    /// Octets with which the padding of each probe begins (RFC 6038 §4.3); 0 for none.
    pub server_octets: be::U16,
    mbz_2: [u8; 8],
    hmac: [u8; 16],
}

impl AcceptSession {
    /// Creates a response; a refusal has port 0 and a zero SID.
    pub fn new(accept: u8, port: u16, sid: [u8; 16]) -> Self {
        let mut message = Self::new_zeroed();
        message.accept = accept;
        message.port = port.into();
        message.sid = sid;
        message
    }
}

fn address_to_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&v4.octets());
            octets
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn address_from_octets(ipvn: u8, octets: &[u8; 16]) -> Option<IpAddr> {
    let address = match ipvn {
        // The other 12 octets are reserved and ignored.
        4 => IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
        6 => IpAddr::V6(Ipv6Addr::from(*octets)),
        _ => return None,
    };
    (!address.is_unspecified()).then_some(address)
}

const _: () = assert!(size_of::<RequestTwSession>() == 112);
const _: () = assert!(size_of::<AcceptSession>() == 48);
