//! UDP sockets of test sessions.
//!
//! Packets are read and sent in batches that share the buffers of the thread. Each received packet
//! comes with its receive timestamp, TTL, TOS and destination address.

mod numbers;
mod options;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use arrayvec::ArrayVec;
use nix::{
    errno::Errno,
    sys::socket::{TimestampingFlag, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    hardware::{HardwareClock, clock_of},
    host::check_file_limit,
};
use crate::{
    time::{StampSource, UnixTime},
    twamp::PacketMeta,
};
use options::{ReceiveStamps, Stamps, request_packet_info, stamp_flags};
use receive::{BATCH, HeaderKind, SCRATCH, receive_batch, receive_numbers, receive_stamps};
use send::Reply;

pub use numbers::StampNumbers;

/// Size requested for each socket buffer, about ten thousand packets. The kernel may grant less.
const BUFFER_BYTES: usize = 4 << 20;

/// Reporting of transmit timestamps by the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransmitStamps {
    /// Transmit timestamps are not reported.
    #[default]
    None,
    /// Reported with a copy of the packet; see [`PacketHandler::transmitted`].
    WithPacket,
    /// Reported with the packet's number; see [`TestSocket::transmitted`].
    Numbered,
}

/// Identifier of the next socket of this process.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Options of a new socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpOptions<'a> {
    /// Network interface to bind to.
    pub interface: Option<&'a str>,
    /// TOS or traffic class of sent packets.
    pub tos: u8,
    /// TTL or hop limit of sent packets; 0 means 255.
    pub ttl: u8,
    /// Transmit timestamps of sent packets.
    pub transmit_stamps: TransmitStamps,
}

/// Packets that a sender reads with one system call. It has few packets in flight.
const SENDER_BATCH: usize = 4;
/// Batches read from one socket before the other sockets of the thread are served.
const BATCHES_PER_TURN: usize = 8;
/// Batch size from which on another read follows at once. More packets have then probably arrived
/// while the batch was handled, and a read costs less than a wake-up.
const FULL_BATCH: usize = BATCH / 4;

/// Failures of one [`TestSocket::reflect`] and the state of the socket after it.
#[derive(Clone, Copy, Debug)]
pub struct Reflected {
    /// Replies that the kernel did not accept.
    pub failed: usize,
    /// State of the socket after the read.
    pub drained: Drained,
}

/// A reply in its buffer, complete except for its transmit timestamp.
#[derive(Clone, Copy, Debug)]
pub struct PreparedReply<T> {
    /// Length of the UDP payload.
    pub len: usize,
    /// TOS or traffic class.
    pub tos: u8,
    /// State passed to [`PacketHandler::finish`].
    pub token: T,
}

/// Handler of the packets of a reflector socket.
pub trait PacketHandler {
    /// State of a reply between [`Self::reply`] and [`Self::finish`].
    type ReplyToken: Copy;

    /// Writes the reply to a packet; `None` when the packet is not answered.
    fn reply(
        &mut self,
        meta: &PacketMeta,
        packet: &[u8],
        reply: &mut [u8],
    ) -> Option<PreparedReply<Self::ReplyToken>>;

    /// Completes a reply immediately before it is sent.
    fn finish(&mut self, to: SocketAddr, token: Self::ReplyToken, reply: &mut [u8]);

    /// Accepts the transmit time of a sent packet; see [`TransmitStamps::WithPacket`]. `packet` ends
    /// with the UDP payload and may begin with headers.
    fn transmitted(&mut self, packet: &[u8], at: UnixTime);
}

/// A non-blocking UDP socket for test packets.
#[derive(Debug)]
pub struct TestSocket {
    id: u64,
    io: Socket,
    local: SocketAddr,
    /// True if the socket is bound to the unspecified address, so that each reply must name its
    /// source address.
    any_address: bool,
    tos: AtomicU8,
    header_kind: HeaderKind,
    transmit_stamps: TransmitStamps,
    /// Clock of an interface that stamps packets.
    hardware: Option<Arc<HardwareClock>>,
    /// Drop counter of the kernel, as the latest packet reported it.
    dropped: AtomicU32,
    /// Drops already returned by [`TestSocket::newly_dropped`].
    dropped_reported: AtomicU32,
    /// Packets dropped by this program, because the buffer had no room for all of their control
    /// messages.
    dropped_incomplete: AtomicU32,
    /// True after the first drop. From then on each packet reports the drop counter.
    reports_drops: AtomicBool,
}

/// State of a socket after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Empty: the poller reports the next packet.
    Yes,
    /// Possibly not empty: read again without waiting for the poller.
    No,
}

impl TestSocket {
    /// Opens a socket on a local address; port 0 selects a free port.
    pub fn bind(address: SocketAddr, options: &UdpOptions<'_>) -> io::Result<Self> {
        Self::open(address, options, false)
    }

    /// Opens `count` sockets on one address. The kernel distributes senders among them.
    pub fn bind_group(
        address: SocketAddr,
        options: &UdpOptions<'_>,
        count: usize,
    ) -> io::Result<Vec<Self>> {
        if count > 1 {
            // SO_REUSEPORT would silently join the group of another program.
            drop(bind(address, options.interface, false)?);
        }
        (0..count).map(|_| Self::open(address, options, count > 1)).collect()
    }

    fn open(address: SocketAddr, options: &UdpOptions<'_>, shared: bool) -> io::Result<Self> {
        let socket = bind(address, options.interface, shared)?;
        check_file_limit(&socket)?;
        let ttl = if options.ttl == 0 { 255 } else { options.ttl };
        let hardware = clock_of(address, options.interface);
        let stamps = Stamps::request(&socket, options.transmit_stamps, hardware.is_some());
        let hardware = hardware.filter(|_| stamps.received == ReceiveStamps::Timestamping);
        request_packet_info(&socket, address);
        let any_address = address.ip().is_unspecified();
        if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &any_address)?;
            socket.set_ttl_v4(ttl.into())?;
            socket.set_tos_v4(options.tos.into())?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &any_address)?;
            socket.set_unicast_hops_v6(ttl.into())?;
            socket.set_tclass_v6(options.tos.into())?;
        }
        // Without CAP_NET_ADMIN the kernel silently limits the sizes to net.core.rmem_max and
        // wmem_max.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            socket.set_recv_buffer_size(BUFFER_BYTES)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
            socket.set_send_buffer_size(BUFFER_BYTES)?;
        }
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        let header_kind = HeaderKind::new(address.is_ipv6(), any_address, stamps.received);
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            io: socket,
            local,
            any_address,
            tos: options.tos.into(),
            header_kind,
            transmit_stamps: stamps.sent,
            hardware,
            dropped: AtomicU32::new(0),
            dropped_reported: AtomicU32::new(0),
            dropped_incomplete: AtomicU32::new(0),
            reports_drops: AtomicBool::new(false),
        })
    }

    /// Returns an identifier that is unique in this process and never reused.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the local address and port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sets `SO_BUSY_POLL`: a waiting thread polls the interface for this long; 0 disables it.
    pub fn set_busy_poll(&self, microseconds: u32) -> io::Result<()> {
        self.io.set_busy_poll(microseconds)
    }

    /// Returns the number of packets dropped since the previous call, as far as later packets have
    /// reported them.
    pub fn newly_dropped(&self) -> u64 {
        let dropped =
            self.dropped.load(Relaxed).wrapping_add(self.dropped_incomplete.load(Relaxed));
        dropped.wrapping_sub(self.dropped_reported.swap(dropped, Relaxed)).into()
    }

    /// Sets the TTL or hop limit of sent packets.
    pub fn set_ttl(&self, ttl: u8) -> io::Result<()> {
        if self.local.is_ipv4() {
            self.io.set_ttl_v4(ttl.into())
        } else {
            self.io.set_unicast_hops_v6(ttl.into())
        }
    }

    /// Sends one packet. The kernel numbers packets from 0 for their timestamps; after an error the
    /// caller must restart the numbers with [`Self::restart_numbers`].
    pub fn send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        self.io.send_to(packet, &to.into()).map(drop)
    }

    /// Returns true for temporary send errors: a full buffer or lack of memory.
    pub fn is_transient(error: &io::Error) -> bool {
        let busy = [Errno::EAGAIN, Errno::ENOBUFS, Errno::ENOMEM];
        error.raw_os_error().is_some_and(|number| busy.contains(&Errno::from_raw(number)))
    }

    /// Restarts the kernel's packet numbers at 0. This is necessary after a packet failed, because
    /// it is unknown if the kernel has counted it. Pending timestamps are passed to `handle` as by
    /// [`Self::transmitted`].
    pub fn restart_numbers(
        &self,
        handle: impl FnMut(u32, UnixTime, StampSource),
    ) -> io::Result<()> {
        let by_hardware = self.hardware.is_some();
        let Some(flags) = stamp_flags(self.transmit_stamps, by_hardware) else { return Ok(()) };
        let without = flags - TimestampingFlag::SOF_TIMESTAMPING_OPT_ID;
        setsockopt(&self.io, sockopt::Timestamping, &without)?;
        self.transmitted(handle);
        Ok(setsockopt(&self.io, sockopt::Timestamping, &flags)?)
    }

    /// Passes the number, transmit time and timestamp source of each sent packet to `handle`. Needs
    /// [`TransmitStamps::Numbered`]; [`StampNumbers`] maps the numbers to packets.
    pub fn transmitted(&self, mut handle: impl FnMut(u32, UnixTime, StampSource)) {
        SCRATCH.with_borrow_mut(|scratch| {
            for _ in 0..BATCHES_PER_TURN {
                if receive_numbers(self, scratch, &mut handle) == Drained::Yes {
                    return;
                }
            }
        });
    }

    /// Passes queued packets to `handle`, at most [`BATCHES_PER_TURN`] batches of them. A pending
    /// socket error does not end the read, because packets may be queued after it.
    pub fn receive(&self, mut handle: impl FnMut(&PacketMeta, &[u8])) -> io::Result<Drained> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut drained = Ok(Drained::No);
            for _ in 0..BATCHES_PER_TURN {
                let count = receive_batch::<SENDER_BATCH>(self, scratch, |received, _| {
                    handle(&received.meta, received.packet);
                });
                match count {
                    Ok(SENDER_BATCH) => drained = Ok(Drained::No),
                    Ok(_) => return Ok(Drained::Yes),
                    Err(error) => drained = Err(error),
                }
            }
            drained
        })
    }

    /// Waits for packets and passes each to `handle`. Cancel-safe.
    pub async fn receive_async(
        &self,
        mut handle: impl FnMut(&PacketMeta, &[u8]),
    ) -> io::Result<()> {
        let watched = tokio::net::UdpSocket::from_std(self.io.try_clone()?.into())?;
        watched.readable().await?;
        self.receive(&mut handle).map(drop)
    }

    /// Passes queued packets to `handler` and sends its replies, at most [`BATCHES_PER_TURN`] batches.
    pub fn reflect(&self, handler: &mut impl PacketHandler) -> io::Result<Reflected> {
        SCRATCH.with_borrow_mut(|scratch| {
            let (mut failed, mut last_error) = (0, None);
            for _ in 0..BATCHES_PER_TURN {
                if self.transmit_stamps == TransmitStamps::WithPacket {
                    receive_stamps(self, scratch, handler);
                }
                let mut queue = ArrayVec::<_, BATCH>::new();
                let count = receive_batch::<BATCH>(self, scratch, |received, reply| {
                    let meta = &received.meta;
                    // A reply without the destination address or the TTL would be wrong.
                    if !received.is_complete {
                        self.dropped_incomplete.fetch_add(1, Relaxed);
                    } else if let Some(prepared) = handler.reply(meta, received.packet, reply) {
                        queue.push(Reply {
                            buffer: received.index,
                            prepared,
                            to: meta.source,
                            from: meta.destination.ip(),
                            interface_index: meta.interface_index,
                        });
                    }
                });
                let count = match count {
                    Ok(count) => count,
                    Err(error) => {
                        last_error = Some(error);
                        continue;
                    }
                };
                last_error = None;
                failed += self.send_replies(&queue, scratch, handler);
                if count < FULL_BATCH {
                    return Ok(Reflected { failed, drained: Drained::Yes });
                }
            }
            last_error.map_or(Ok(Reflected { failed, drained: Drained::No }), Err)
        })
    }
}

impl AsFd for TestSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

/// Binds a UDP socket without the options of test sockets.
pub(super) fn bind(
    address: SocketAddr,
    interface: Option<&str>,
    shared: bool,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind_device(interface.map(str::as_bytes))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
