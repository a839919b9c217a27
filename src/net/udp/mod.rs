//! UDP sockets of test sessions: batches in and out, and with each packet the kernel's receive
//! stamp, TTL, TOS and, on sockets bound to all addresses, the address it came to.

mod numbers;
mod receive;
mod send;

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
    host::spare_files,
};
use crate::time::{StampSource, UnixTime};
use receive::{BATCH, Kind, SCRATCH, receive_batch, receive_numbers, receive_stamps};
use send::Reply;

pub use numbers::StampNumbers;
pub use receive::PacketInfo;

/// Buffers asked for, in and out: some ten thousand packets; the kernel may give less.
const BUFFER_OCTETS: usize = 4 << 20;

/// Whether the kernel tells when each packet went out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransmitStamps {
    /// It does not.
    #[default]
    None,
    /// With the packet itself; see [`Answer::transmitted`].
    WithPacket,
    /// With the number of the packet; see [`TestSocket::transmitted`].
    Numbered,
}

/// Numbers sockets.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// How a socket is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpOptions<'a> {
    /// Network interface.
    pub interface: Option<&'a str>,
    /// TOS or traffic class of what is sent.
    pub tos: u8,
    /// TTL or hop limit of what is sent; 0 for 255.
    pub ttl: u8,
    /// Of what is sent.
    pub transmit_stamps: TransmitStamps,
}

/// Packets that a sender reads with one system call: it has few under way.
const FEW: usize = 4;
/// Batches read before others have their turn.
const ROUNDS: usize = 8;
/// Behind so many packets more have come by the time that they are answered: to look is cheaper than to
/// be woken. Where none have, what comes is told.
const MANY: usize = BATCH / 4;

/// What became of the packets of a reflector.
#[derive(Clone, Copy, Debug)]
pub struct Reflected {
    /// Replies that the socket did not take.
    pub failed: usize,
    /// Whether there are more packets.
    pub drained: Drained,
}

/// An answer that is written.
#[derive(Clone, Copy, Debug)]
pub struct Answered<T> {
    /// Its octets.
    pub octets: usize,
    /// Its TOS or traffic class.
    pub tos: u8,
    /// What [`Answer::finish`] needs to know of it.
    pub ticket: T,
}

/// Answers the packets of a socket.
pub trait Answer {
    /// What is remembered of an answer until it is finished.
    type Ticket: Copy;

    /// Writes the answer to a packet, or `None` for none.
    fn answer(
        &mut self,
        info: &PacketInfo,
        packet: &[u8],
        reply: &mut [u8],
    ) -> Option<Answered<Self::Ticket>>;

    /// Finishes an answer just before it is sent.
    fn finish(&mut self, to: SocketAddr, ticket: Self::Ticket, reply: &mut [u8]);

    /// With [`UdpOptions::transmit_stamps`]: when a packet went out. `packet` ends with its payload.
    fn transmitted(&mut self, packet: &[u8], at: UnixTime);
}

/// A UDP socket for test packets. Never waits.
#[derive(Debug)]
pub struct TestSocket {
    id: u64,
    io: Socket,
    local: SocketAddr,
    /// Bound to all addresses: replies must say which one they come from.
    any_address: bool,
    tos: AtomicU8,
    /// Which receive headers fit.
    kind: Kind,
    transmit_stamps: TransmitStamps,
    /// What the interface stamps with, where it does.
    hardware: Option<Arc<HardwareClock>>,
    dropped: AtomicU32,
    dropped_told: AtomicU32,
    /// Packets that were left out because the kernel had no room for what it tells of them.
    dropped_untold: AtomicU32,
    /// Packets tell of drops: from the first one on all do.
    drops: AtomicBool,
}

/// Whether all was read that there was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing is left, and what comes is told.
    Yes,
    /// There may be more: come again.
    No,
}

impl TestSocket {
    /// Opens a socket on a local address; port 0 is any free one.
    pub fn bind(address: SocketAddr, options: &UdpOptions<'_>) -> io::Result<Self> {
        Self::open(address, options, false)
    }

    /// Opens so many sockets on one address, among which the kernel divides those who send to it.
    pub fn bind_group(
        address: SocketAddr,
        options: &UdpOptions<'_>,
        count: usize,
    ) -> io::Result<Vec<Self>> {
        if count > 1 {
            // Another group, of another program, would be joined without a word.
            drop(bound(address, options.interface, false)?);
        }
        (0..count).map(|_| Self::open(address, options, count > 1)).collect()
    }

    fn open(address: SocketAddr, options: &UdpOptions<'_>, shared: bool) -> io::Result<Self> {
        let socket = bound(address, options.interface, shared)?;
        spare_files(&socket)?;
        let ttl = if options.ttl == 0 { 255 } else { options.ttl };
        let stamps = options.transmit_stamps;
        let hardware = clock_of(address, options.interface);
        let flags = stamp_flags(stamps, hardware.is_some());
        match flags {
            None => setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?,
            Some(flags) => setsockopt(&socket, sockopt::Timestamping, &flags)?,
        }
        setsockopt(&socket, sockopt::RxqOvfl, &1)?;
        let any_address = address.ip().is_unspecified();
        if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
            setsockopt(&socket, sockopt::IpRecvTos, &true)?;
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &any_address)?;
            socket.set_ttl_v4(ttl.into())?;
            socket.set_tos_v4(options.tos.into())?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
            setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &any_address)?;
            socket.set_unicast_hops_v6(ttl.into())?;
            socket.set_tclass_v6(options.tos.into())?;
        }
        // The kernel caps them by net.core.rmem_max and wmem_max without an error, but not for root.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_OCTETS).is_err() {
            socket.set_recv_buffer_size(BUFFER_OCTETS)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER_OCTETS).is_err() {
            socket.set_send_buffer_size(BUFFER_OCTETS)?;
        }
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        let kind = Kind::of(address.is_ipv6(), any_address, flags.is_some());
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            io: socket,
            local,
            any_address,
            tos: options.tos.into(),
            kind,
            transmit_stamps: stamps,
            hardware,
            dropped: AtomicU32::new(0),
            dropped_told: AtomicU32::new(0),
            dropped_untold: AtomicU32::new(0),
            drops: AtomicBool::new(false),
        })
    }

    /// Tells it from every other socket of this process, before and after it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The local address and port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// For so many microseconds a thread that waits asks the interface for packets; 0 for none.
    pub fn set_busy_poll(&self, microseconds: u32) -> io::Result<()> {
        self.io.set_busy_poll(microseconds)
    }

    /// Packets that found no room in the receive buffer since this was asked last, as far as later
    /// ones told.
    pub fn newly_dropped(&self) -> u64 {
        let dropped = self.dropped.load(Relaxed).wrapping_add(self.dropped_untold.load(Relaxed));
        dropped.wrapping_sub(self.dropped_told.swap(dropped, Relaxed)).into()
    }

    /// Sets the TTL or hop limit of what is sent.
    pub fn set_ttl(&self, ttl: u8) -> io::Result<()> {
        if self.local.is_ipv4() {
            self.io.set_ttl_v4(ttl.into())
        } else {
            self.io.set_unicast_hops_v6(ttl.into())
        }
    }

    /// Sends one packet. The kernel counts them from 0. After an error whoever wants stamps calls
    /// [`Self::number_anew`].
    pub fn send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        self.io.send_to(packet, &to.into()).map(drop)
    }

    /// Whether a packet that was not sent would have been at another moment.
    pub fn was_busy(error: &io::Error) -> bool {
        let busy = [Errno::EAGAIN, Errno::ENOBUFS, Errno::ENOMEM];
        error.raw_os_error().is_some_and(|number| busy.contains(&Errno::from_raw(number)))
    }

    /// Whether the kernel counted a packet that it did not send depends on how far it came: makes it
    /// count from 0 again. Stamps that are there go to `handle`, as in [`Self::transmitted`].
    pub fn number_anew(&self, handle: impl FnMut(u32, UnixTime, StampSource)) -> io::Result<()> {
        let by_hardware = self.hardware.is_some();
        let Some(flags) = stamp_flags(self.transmit_stamps, by_hardware) else { return Ok(()) };
        let without = flags - TimestampingFlag::SOF_TIMESTAMPING_OPT_ID;
        setsockopt(&self.io, sockopt::Timestamping, &without)?;
        self.transmitted(handle);
        Ok(setsockopt(&self.io, sockopt::Timestamping, &flags)?)
    }

    /// With [`TransmitStamps::Numbered`]: gives the kernel's numbers of packets that went out to
    /// `handle`, when they did, and who tells; see [`StampNumbers`].
    pub fn transmitted(&self, mut handle: impl FnMut(u32, UnixTime, StampSource)) {
        SCRATCH.with_borrow_mut(|scratch| {
            for _ in 0..ROUNDS {
                if receive_numbers(self, scratch, &mut handle) == Drained::Yes {
                    return;
                }
            }
        });
    }

    /// Gives each packet that is there to `handle`, up to a number at which others are to have
    /// their turn. An error of the socket stands before the packets behind it.
    pub fn receive(&self, mut handle: impl FnMut(&PacketInfo, &[u8])) -> io::Result<Drained> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut drained = Ok(Drained::No);
            for _ in 0..ROUNDS {
                let count = receive_batch::<FEW>(self, scratch, |info, packet, _, _| {
                    handle(info, packet);
                });
                match count {
                    Ok(FEW) => drained = Ok(Drained::No),
                    Ok(_) => return Ok(Drained::Yes),
                    Err(error) => drained = Err(error),
                }
            }
            drained
        })
    }

    /// Waits for packets in a task and gives each to `handle`. Nothing is lost when the future is
    /// dropped.
    pub async fn receive_async(
        &self,
        mut handle: impl FnMut(&PacketInfo, &[u8]),
    ) -> io::Result<()> {
        let watched = tokio::net::UdpSocket::from_std(self.io.try_clone()?.into())?;
        watched.readable().await?;
        self.receive(&mut handle).map(drop)
    }

    /// Has each packet that is there answered and sends the answers, up to a number at which
    /// others are to have their turn.
    pub fn reflect(&self, answers: &mut impl Answer) -> io::Result<Reflected> {
        SCRATCH.with_borrow_mut(|scratch| {
            let (mut failed, mut broken) = (0, None);
            for _ in 0..ROUNDS {
                if self.transmit_stamps == TransmitStamps::WithPacket {
                    receive_stamps(self, scratch, answers);
                }
                let mut queue = ArrayVec::<_, BATCH>::new();
                let count = receive_batch::<BATCH>(self, scratch, |info, packet, buffer, reply| {
                    // Without what the kernel tells an answer would be a wrong one.
                    if !info.is_whole {
                        self.dropped_untold.fetch_add(1, Relaxed);
                    } else if let Some(answered) = answers.answer(info, packet, reply) {
                        let (to, from) = (info.source, info.destination);
                        let interface_index = info.interface_index;
                        queue.push(Reply { buffer, answered, to, from, interface_index });
                    }
                });
                let count = match count {
                    Ok(count) => count,
                    Err(error) => {
                        broken = Some(error);
                        continue;
                    }
                };
                broken = None;
                failed += self.send_replies(&queue, scratch, answers);
                if count < MANY {
                    return Ok(Reflected { failed, drained: Drained::Yes });
                }
            }
            broken.map_or(Ok(Reflected { failed, drained: Drained::No }), Err)
        })
    }
}

impl AsFd for TestSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

/// What the kernel is asked for to stamp what is sent, and then what is received as well.
fn stamp_flags(stamps: TransmitStamps, by_hardware: bool) -> Option<TimestampingFlag> {
    use TimestampingFlag as Flag;
    let mut received = Flag::SOF_TIMESTAMPING_RX_SOFTWARE | Flag::SOF_TIMESTAMPING_SOFTWARE;
    let mut sent = Flag::SOF_TIMESTAMPING_TX_SOFTWARE;
    if by_hardware {
        received |= Flag::SOF_TIMESTAMPING_RX_HARDWARE | Flag::SOF_TIMESTAMPING_RAW_HARDWARE;
        // Of a packet that the interface stamps, the kernel's stamp does not come.
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

/// A bound UDP socket; also used to see whether that would work.
pub(super) fn bound(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{clock, hardware};

    fn pair(address: &str) -> (TestSocket, TestSocket) {
        let bind = || TestSocket::bind(address.parse().unwrap(), &UdpOptions::default()).unwrap();
        (bind(), bind())
    }

    /// Sockets of all kinds share the buffers of a thread, and none may spoil them for another.
    #[tokio::test]
    async fn every_packet_carries_what_the_kernel_knows() {
        let (a4, b4) = pair("127.0.0.1:0");
        let (a6, b6) = pair("[::1]:0");
        let any4 = TestSocket::bind("0.0.0.0:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let any6 = TestSocket::bind("[::]:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        for length in [1, 14, 41, 1400, 60_000] {
            for (a, b) in [(&a4, &b4), (&a6, &b6), (&a4, &any4), (&a6, &any6)] {
                let to = SocketAddr::new(a.local().ip(), b.local().port());
                a.send(&vec![7; length], to).unwrap();
                let mut seen = Vec::new();
                b.receive_async(|info, packet| seen.push((*info, packet.len()))).await.unwrap();
                let [(info, octets)] = seen[..] else { panic!("{} packets", seen.len()) };
                assert_eq!((octets, info.source), (length, a.local()));
                assert_eq!(info.stamp, StampSource::Kernel, "{to}, {length} octets");
                assert_eq!((info.ttl, info.tos), (Some(255), Some(0)));
                assert_eq!(info.destination, b.any_address.then_some(to.ip()));
            }
        }
    }

    /// A stamp of the interface is asked for, and where a packet has none the kernel's is taken.
    #[tokio::test]
    async fn without_a_stamp_of_the_interface_there_is_that_of_the_kernel() {
        hardware::pretend("lo");
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let bind = |transmit_stamps| {
                let options = UdpOptions { transmit_stamps, ..UdpOptions::default() };
                TestSocket::bind(address.parse().unwrap(), &options).unwrap()
            };
            let (from, to) = (bind(TransmitStamps::Numbered), bind(TransmitStamps::None));
            assert!(from.hardware.is_some() && to.hardware.is_some());
            let begun = clock::unix();
            from.send(&[7; 41], to.local()).unwrap();
            let mut came = None;
            to.receive_async(|info, _| came = Some((info.received, info.stamp))).await.unwrap();
            let mut went = None;
            while went.is_none() {
                from.transmitted(|number, at, source| went = Some((number, at, source)));
            }
            let ((came, by), (number, went, told_by)) = (came.unwrap(), went.unwrap());
            assert_eq!((by, number, told_by), (StampSource::Kernel, 0, StampSource::Kernel));
            assert!(begun <= went && went <= came, "{begun:?} {went:?} {came:?}");
        }
    }
}
