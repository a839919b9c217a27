//! UDP sockets of test sessions: batches in and out, and with each packet the kernel's receive
//! stamp, TTL, TOS and, on sockets bound to all addresses, the address it came to.

mod receive;

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, setsockopt, sockopt,
    },
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use crate::time::UnixTime;
use receive::{BATCH, SCRATCH, receive_batch, receive_stamps};

pub use receive::PacketInfo;

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

#[derive(Clone, Copy)]
struct Reply<T> {
    buffer: usize,
    answered: Answered<T>,
    to: SocketAddr,
    from: Option<IpAddr>,
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

    /// Sets the TTL or hop limit of what is sent.
    pub fn set_ttl(&self, ttl: u8) -> io::Result<()> {
        let socket = SockRef::from(&self.io);
        if self.local.is_ipv4() {
            socket.set_ttl_v4(ttl.into())
        } else {
            socket.set_unicast_hops_v6(ttl.into())
        }
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
