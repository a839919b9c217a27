//! Options of test sockets that a kernel or a sandbox may lack. Without them a socket still works,
//! but its timestamps are taken by the program, and TTL or TOS of received packets are unknown.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use nix::sys::socket::{TimestampingFlag, setsockopt, sockopt};
use socket2::Socket;

use super::TransmitStamps;

/// Options that were reported as missing.
static MISSING: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// Timestamps of received packets that a socket requests from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceiveStamps {
    /// Timestamps of kernel and hardware by `SO_TIMESTAMPING`.
    Timestamping,
    /// Timestamps of received packets only, by `SO_TIMESTAMPNS`.
    TimestampNs,
    /// No timestamps: the program reads the clock.
    Missing,
}

/// Timestamps that a socket requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamps {
    pub(super) received: ReceiveStamps,
    pub(super) sent: TransmitStamps,
}

impl Stamps {
    /// Requests the timestamps that the kernel supports.
    pub(super) fn request(socket: &Socket, sent: TransmitStamps, by_hardware: bool) -> Self {
        if let Some(flags) = stamp_flags(sent, by_hardware) {
            let requested = setsockopt(socket, sockopt::Timestamping, &flags);
            if log_missing("SO_TIMESTAMPING", requested) {
                return Self { received: ReceiveStamps::Timestamping, sent };
            }
        }
        let requested = setsockopt(socket, sockopt::ReceiveTimestampns, &true);
        let received = match log_missing("SO_TIMESTAMPNS", requested) {
            true => ReceiveStamps::TimestampNs,
            false => ReceiveStamps::Missing,
        };
        Self { received, sent: TransmitStamps::None }
    }
}

/// Requests the drop counter, and TTL and TOS of received packets.
pub(super) fn request_packet_info(socket: &Socket, address: SocketAddr) {
    log_missing("SO_RXQ_OVFL", setsockopt(socket, sockopt::RxqOvfl, &1));
    if address.is_ipv4() {
        log_missing("IP_RECVTTL", setsockopt(socket, sockopt::Ipv4RecvTtl, &true));
        log_missing("IP_RECVTOS", setsockopt(socket, sockopt::IpRecvTos, &true));
    } else {
        log_missing("IPV6_RECVHOPLIMIT", setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true));
        log_missing("IPV6_RECVTCLASS", setsockopt(socket, sockopt::Ipv6RecvTClass, &true));
    }
}

/// Logs the first failure to set an option; returns true if it is set.
fn log_missing(option: &'static str, set: nix::Result<()>) -> bool {
    let Err(error) = set else { return true };
    let mut missing = MISSING.lock().unwrap_or_else(PoisonError::into_inner);
    if !missing.contains(&option) {
        missing.push(option);
        tracing::warn!(option, %error, "socket option missing, measuring test packets without it");
    }
    false
}

/// Returns the `SO_TIMESTAMPING` flags; `None` when `SO_TIMESTAMPNS` is enough.
pub(super) fn stamp_flags(stamps: TransmitStamps, by_hardware: bool) -> Option<TimestampingFlag> {
    use TimestampingFlag as Flag;
    let mut received = Flag::SOF_TIMESTAMPING_RX_SOFTWARE | Flag::SOF_TIMESTAMPING_SOFTWARE;
    let mut sent = Flag::SOF_TIMESTAMPING_TX_SOFTWARE;
    if by_hardware {
        received |= Flag::SOF_TIMESTAMPING_RX_HARDWARE | Flag::SOF_TIMESTAMPING_RAW_HARDWARE;
        // The kernel reports no software timestamp of a packet that the interface stamps.
        sent |= Flag::SOF_TIMESTAMPING_TX_HARDWARE;
    }
    match stamps {
        TransmitStamps::None => by_hardware.then_some(received),
        TransmitStamps::WithPacket => Some(received | sent),
        TransmitStamps::Numbered => {
            let numbered = Flag::SOF_TIMESTAMPING_OPT_ID | Flag::SOF_TIMESTAMPING_OPT_TSONLY;
            Some(received | sent | numbered)
        }
    }
}
