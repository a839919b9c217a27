//! UDP sockets of test sessions: batches in and out, and with each packet the kernel's receive
//! stamp, TTL, TOS and, on sockets bound to all addresses, the address it came to.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, RawFd},
};

use nix::{
    cmsg_space, libc,
    sys::{
        socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn6,
            SockaddrStorage, recvmmsg, recvmsg, sendmmsg, setsockopt, sockopt,
        },
        time::TimeSpec,
    },
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use crate::time::{NANOS_PER_SECOND, UnixTime};

/// Packets read with one system call.
const BATCH: usize = 32;
/// Room for the largest datagram.
const DATAGRAM_OCTETS: usize = 65_536;
/// Receive buffer asked for: some ten thousand packets; the kernel may give less.
const RECEIVE_BUFFER_OCTETS: usize = 4 << 20;

/// How a socket is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpOptions<'a> {
    /// Network interface.
    pub interface: Option<&'a str>,
    /// TOS or traffic class of what is sent.
    pub tos: u8,
    /// TTL or hop limit of what is sent; 0 for 255.
    pub ttl: u8,
    /// The kernel tells when each packet went out; see [`Answer::transmitted`].
    pub transmit_stamps: bool,
}

/// What the kernel tells of a packet.
#[derive(Clone, Copy, Debug)]
pub struct PacketInfo {
    /// Where it came from.
    pub source: SocketAddr,
    /// When it was received.
    pub received: UnixTime,
    /// `received` is the kernel's stamp.
    pub kernel_stamp: bool,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    /// TOS or traffic class.
    pub tos: Option<u8>,
    /// Address that it came to, on sockets bound to all addresses.
    pub destination: Option<IpAddr>,
    /// It came to a group or to all, not to this host alone.
    pub to_group: bool,
}

/// What became of a batch of a reflector.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reflected {
    /// Packets received.
    pub received: usize,
    /// Replies that the socket did not take.
    pub failed: usize,
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

/// A UDP socket for test packets.
#[derive(Debug)]
pub struct TestSocket {
    io: UdpSocket,
    local: SocketAddr,
    /// Bound to all addresses: replies must say which one they come from.
    any_address: bool,
    tos: std::sync::atomic::AtomicU8,
    /// Which receive headers fit.
    kind: usize,
    transmit_stamps: bool,
}

/// IPv4 or IPv6, bound to one address or to all, with transmit stamps or without.
const KINDS: usize = 8;

/// Buffers of a worker thread. Sockets come by thousands; a batch is read, handled and answered
/// without waiting, so a thread needs one set.
struct Scratch {
    /// One set for each kind of socket: the kernel writes the room that it used over the room that
    /// there is, so that a set serves only packets that all use the same.
    headers: [MultiHeaders<SockaddrStorage>; KINDS],
    packets: Vec<Vec<u8>>,
    replies: Vec<Vec<u8>>,
}

#[derive(Clone, Copy)]
struct Reply<T> {
    buffer: usize,
    answered: Answered<T>,
    to: SocketAddr,
    from: Option<IpAddr>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

impl Scratch {
    fn new() -> Self {
        Self {
            headers: std::array::from_fn(|_| receive_headers()),
            packets: (0..BATCH).map(|_| vec![0; DATAGRAM_OCTETS]).collect(),
            replies: (0..BATCH).map(|_| vec![0; DATAGRAM_OCTETS]).collect(),
        }
    }
}

fn receive_headers() -> MultiHeaders<SockaddrStorage> {
    MultiHeaders::preallocate(
        BATCH,
        Some(cmsg_space!(TimeSpec, [TimeSpec; 3], libc::c_int, libc::c_int, libc::in6_pktinfo)),
    )
}

impl TestSocket {
    /// Opens a socket on a local address; port 0 is any free one.
    pub fn bind(address: SocketAddr, options: &UdpOptions<'_>) -> io::Result<Self> {
        let socket = bound(address, options.interface)?;
        let ttl = if options.ttl == 0 { 255 } else { options.ttl };
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        if options.transmit_stamps {
            use nix::sys::socket::TimestampingFlag as Flag;
            let flags = Flag::SOF_TIMESTAMPING_TX_SOFTWARE | Flag::SOF_TIMESTAMPING_SOFTWARE;
            setsockopt(&socket, sockopt::Timestamping, &flags)?;
        }
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
        // The kernel caps it by net.core.rmem_max without an error.
        socket.set_recv_buffer_size(RECEIVE_BUFFER_OCTETS)?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            io: UdpSocket::from_std(socket.into())?,
            local,
            any_address,
            tos: options.tos.into(),
            kind: usize::from(options.transmit_stamps) * 4
                + usize::from(address.is_ipv6()) * 2
                + usize::from(any_address),
            transmit_stamps: options.transmit_stamps,
        })
    }

    /// The local address and port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends one packet.
    pub fn send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        SockRef::from(&self.io).send_to(packet, &to.into()).map(drop)
    }

    /// Waits for packets and gives each to `handle`. Nothing is lost when the future is dropped.
    pub async fn receive(&self, mut handle: impl FnMut(&PacketInfo, &[u8])) -> io::Result<usize> {
        loop {
            self.io.readable().await?;
            let done = self.io.try_io(Interest::READABLE, || {
                SCRATCH.with_borrow_mut(|scratch| {
                    receive_batch(self.io.as_raw_fd(), self.kind, scratch, |info, packet, _, _| {
                        handle(info, packet);
                    })
                })
            });
            if !matches!(&done, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return done;
            }
        }
    }

    /// Waits for packets, has each answered and sends the answers. Nothing is lost when the future
    /// is dropped.
    pub async fn reflect(&self, answers: &mut impl Answer) -> io::Result<Reflected> {
        loop {
            self.io.readable().await?;
            let done = self.io.try_io(Interest::READABLE, || {
                SCRATCH.with_borrow_mut(|scratch| {
                    if self.transmit_stamps {
                        receive_stamps(self.io.as_raw_fd(), &mut scratch.packets[0], answers);
                    }
                    let mut queue = Vec::with_capacity(BATCH);
                    let received = receive_batch(
                        self.io.as_raw_fd(),
                        self.kind,
                        scratch,
                        |info, packet, buffer, reply| {
                            if let Some(answered) = answers.answer(info, packet, reply) {
                                let (to, from) = (info.source, info.destination);
                                queue.push(Reply { buffer, answered, to, from });
                            }
                        },
                    );
                    let failed = self.send_replies(&queue, &mut scratch.replies, answers);
                    Ok(Reflected { received: received?, failed })
                })
            });
            if !matches!(&done, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return done;
            }
        }
    }

    /// Sends replies in runs that share TOS and source address; returns how many were not taken.
    fn send_replies<A: Answer>(
        &self,
        queue: &[Reply<A::Ticket>],
        buffers: &mut [Vec<u8>],
        answers: &mut A,
    ) -> usize {
        let mut failed = 0;
        for run in queue.chunk_by(|a, b| (a.answered.tos, a.from) == (b.answered.tos, b.from)) {
            if let Err(error) = self.set_tos(run[0].answered.tos) {
                tracing::debug!(%error, "cannot set the TOS of replies");
            }
            for Reply { buffer, answered, to, .. } in run {
                let reply = &mut buffers[*buffer][..answered.octets];
                answers.finish(*to, answered.ticket, reply);
            }
            let mut rest = run;
            while !rest.is_empty() {
                match self.send_run(rest, buffers) {
                    Ok(sent) => rest = &rest[sent.clamp(1, rest.len())..],
                    // The first packet is the one that was refused.
                    Err(_) => {
                        failed += 1;
                        rest = &rest[1..];
                    }
                }
            }
        }
        failed
    }

    fn set_tos(&self, tos: u8) -> io::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.tos.load(Relaxed) == tos {
            return Ok(());
        }
        let socket = SockRef::from(&self.io);
        if self.local.is_ipv4() {
            socket.set_tos_v4(tos.into())?;
        } else {
            socket.set_tclass_v6(tos.into())?;
        }
        self.tos.store(tos, Relaxed);
        Ok(())
    }

    fn send_run<T>(&self, run: &[Reply<T>], buffers: &[Vec<u8>]) -> io::Result<usize> {
        let slices: Vec<[IoSlice<'_>; 1]> =
            run.iter().map(|r| [IoSlice::new(&buffers[r.buffer][..r.answered.octets])]).collect();
        let addresses: Vec<Option<SockaddrStorage>> =
            run.iter().map(|reply| Some(reply.to.into())).collect();
        let send = |space: Option<Vec<u8>>, cmsgs: &[ControlMessage<'_>]| {
            let mut headers = MultiHeaders::preallocate(run.len(), space);
            let flags = MsgFlags::MSG_DONTWAIT;
            let fd = self.io.as_raw_fd();
            sendmmsg(fd, &mut headers, &slices, &addresses, cmsgs, flags).map(Iterator::count)
        };
        let sent = match run[0].from.filter(|_| self.any_address) {
            None => send(None, &[]),
            Some(IpAddr::V4(from)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                send(Some(cmsg_space!(libc::in_pktinfo)), &[ControlMessage::Ipv4PacketInfo(&info)])
            }
            Some(IpAddr::V6(from)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
                    ipi6_ifindex: 0,
                };
                send(Some(cmsg_space!(libc::in6_pktinfo)), &[ControlMessage::Ipv6PacketInfo(&info)])
            }
        };
        Ok(sent?)
    }
}

/// A bound UDP socket; also used to see whether that would work.
pub(super) fn bound(address: SocketAddr, interface: Option<&str>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(interface.map(str::as_bytes))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Reads a batch and gives each packet to `handle` with its buffer's index and a reply buffer.
fn receive_batch(
    fd: RawFd,
    kind: usize,
    scratch: &mut Scratch,
    mut handle: impl FnMut(&PacketInfo, &[u8], usize, &mut [u8]),
) -> io::Result<usize> {
    let Scratch { headers, packets, replies, .. } = scratch;
    let headers = &mut headers[kind];
    let mut truncated = false;
    let mut count = 0;
    {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            packets.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let messages = recvmmsg(fd, headers, &mut slices, MsgFlags::MSG_DONTWAIT, None)?;
        for (index, message) in messages.enumerate() {
            count += 1;
            let packet = message.iovs().next().unwrap_or(&[]);
            let Some(source) = message.address.as_ref().and_then(to_std) else { continue };
            let mut info = PacketInfo {
                source,
                received: UnixTime(0),
                kernel_stamp: false,
                ttl: None,
                tos: None,
                destination: None,
                to_group: false,
            };
            match message.cmsgs() {
                Ok(cmsgs) => cmsgs.for_each(|cmsg| info.take(&cmsg)),
                Err(_) => truncated = true,
            }
            if !info.kernel_stamp {
                info.received = super::clock::unix();
            }
            handle(&info, packet, index, &mut replies[index]);
        }
    }
    // A packet with less than its kind has, as after a change of options, left too little room.
    if truncated {
        *headers = receive_headers();
    }
    Ok(count)
}

/// Reads what the kernel tells of packets that went out. Errors that come this way (a port that is
/// closed at the other end) are taken out as well, and are of no interest here.
fn receive_stamps(fd: RawFd, buffer: &mut [u8], answers: &mut impl Answer) {
    let mut space = cmsg_space!([TimeSpec; 3], libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    for _ in 0..BATCH {
        let mut slices = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut space), flags);
        let Ok(message) = message else { return };
        let octets = message.bytes;
        let stamp = message.cmsgs().ok().and_then(|mut cmsgs| {
            cmsgs.find_map(|cmsg| {
                let ControlMessageOwned::ScmTimestampsns(stamps) = cmsg else { return None };
                Some(stamps.system)
            })
        });
        if let Some(stamp) = stamp {
            answers.transmitted(&buffer[..octets], to_time(&stamp));
        }
    }
}

fn to_time(stamp: &TimeSpec) -> UnixTime {
    let seconds = (stamp.tv_sec() as u64).wrapping_mul(NANOS_PER_SECOND);
    UnixTime(seconds.wrapping_add(stamp.tv_nsec() as u64))
}

impl PacketInfo {
    #[expect(clippy::wildcard_enum_match_arm, reason = "what was not asked for is of no use")]
    fn take(&mut self, cmsg: &ControlMessageOwned) {
        match cmsg {
            ControlMessageOwned::ScmTimestampns(stamp) => {
                self.received = to_time(stamp);
                self.kernel_stamp = true;
            }
            ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                self.ttl = u8::try_from(*ttl).ok();
            }
            ControlMessageOwned::Ipv4Tos(tos) => self.tos = Some(*tos),
            ControlMessageOwned::Ipv6TClass(class) => self.tos = u8::try_from(*class).ok(),
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                self.destination =
                    Some(IpAddr::from(u32::from_be(info.ipi_spec_dst.s_addr).to_be_bytes()));
                // For a broadcast or multicast, the local address is not what the packet names.
                self.to_group = info.ipi_spec_dst.s_addr != info.ipi_addr.s_addr;
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let destination = IpAddr::from(info.ipi6_addr.s6_addr);
                self.destination = Some(destination);
                self.to_group = destination.is_multicast();
            }
            _ => {}
        }
    }
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::from((v4.ip(), v4.port())));
    }
    let v6: &SockaddrIn6 = address.as_sockaddr_in6()?;
    Some(std::net::SocketAddrV6::new(v6.ip(), v6.port(), 0, v6.scope_id()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

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
                b.receive(|info, packet| seen.push((*info, packet.len()))).await.unwrap();
                let [(info, octets)] = seen[..] else { panic!("{} packets", seen.len()) };
                assert_eq!((octets, info.source), (length, a.local()));
                assert!(info.kernel_stamp, "{to}, {length} octets");
                assert_eq!((info.ttl, info.tos), (Some(255), Some(0)));
                assert_eq!(info.destination, b.any_address.then_some(to.ip()));
            }
        }
    }
}
