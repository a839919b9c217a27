//! Batches in: packets with what the kernel tells of them, and the stamps of those that went out.

use std::{
    cell::RefCell,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
    sync::atomic::Ordering::Relaxed,
};

use nix::{
    cmsg_space, libc,
    sys::{
        socket::{
            ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike,
            SockaddrStorage, Timestamps, recvmmsg, recvmsg,
        },
        time::TimeSpec,
    },
};

use super::{Answer, Drained, TestSocket};
use crate::{
    net::clock,
    time::{NANOS_PER_SECOND, StampSource, UnixTime},
};

/// Packets read with one system call.
pub(super) const BATCH: usize = 32;
/// Stamps read with one system call.
const STAMPS: usize = 4;
/// Room for the largest datagram.
const DATAGRAM_OCTETS: usize = 65_536;

/// What comes with each packet of a socket: IPv4 or IPv6, bound to one address or to all, with
/// transmit stamps or without, and once it had to drop packets how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind(usize);

impl Kind {
    const DROPS: usize = 8;
    const COUNT: usize = 16;

    pub(super) fn of(ipv6: bool, any_address: bool, stamps: bool) -> Self {
        Self(usize::from(stamps) * 4 + usize::from(ipv6) * 2 + usize::from(any_address))
    }

    fn is_ipv6(self) -> bool {
        self.0 & 2 != 0
    }
}

/// What the kernel tells of a packet.
#[derive(Clone, Copy, Debug)]
pub struct PacketInfo {
    /// Where it came from.
    pub source: SocketAddr,
    /// When it was received.
    pub received: UnixTime,
    /// Who noted that.
    pub stamp: StampSource,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    /// TOS or traffic class.
    pub tos: Option<u8>,
    /// Address that it came to, on sockets bound to all addresses.
    pub destination: Option<IpAddr>,
    /// Kernel's number of the interface, where that address says nothing without it; 0 elsewhere.
    pub interface_index: u32,
    /// All that was asked for was told: the kernel had room for it.
    pub is_whole: bool,
    /// It came to a group or to all, not to this host alone.
    pub to_group: bool,
}

/// Buffers of a thread. Sockets come by thousands; a batch is read, handled and answered without
/// waiting, so a thread needs one set.
pub(super) struct Scratch {
    /// One set for each kind of socket: the kernel writes the room that it used over the room that
    /// there is, so that a set serves only packets that all use the same.
    headers: [Headers; Kind::COUNT],
    /// The same for transmit stamps, by IP version.
    stamps: [MultiHeaders<SockaddrStorage>; 2],
    stamp_space: Vec<u8>,
    pub(super) packets: Vec<Vec<u8>>,
    pub(super) replies: Vec<Vec<u8>>,
    pub(super) out: SendHeaders,
}

/// Headers of batches in, by the family of the socket: an address is copied several times on its way,
/// and one that may be of any family is four times as long.
enum Headers {
    V4(MultiHeaders<SockaddrIn>),
    V6(MultiHeaders<SockaddrIn6>),
}

/// Headers of batches out, by family, and by whether each packet says where it comes from.
pub(super) struct SendHeaders {
    pub(super) v4: MultiHeaders<SockaddrIn>,
    pub(super) v6: MultiHeaders<SockaddrIn6>,
    pub(super) from_v4: MultiHeaders<SockaddrIn>,
    pub(super) from_v6: MultiHeaders<SockaddrIn6>,
}

/// An address of one family, as the kernel has it.
pub(super) trait Peer: SockaddrLike + Copy {
    fn to_std(self) -> SocketAddr;
    /// `None` for one of the other family.
    fn of(address: SocketAddr) -> Option<Self>;
}

impl Peer for SockaddrIn {
    fn to_std(self) -> SocketAddr {
        SocketAddr::from((self.ip(), self.port()))
    }

    fn of(address: SocketAddr) -> Option<Self> {
        if let SocketAddr::V4(v4) = address { Some(v4.into()) } else { None }
    }
}

impl Peer for SockaddrIn6 {
    fn to_std(self) -> SocketAddr {
        // What flow a packet was of says nothing of who sent it.
        SocketAddrV6::new(self.ip(), self.port(), 0, self.scope_id()).into()
    }

    fn of(address: SocketAddr) -> Option<Self> {
        if let SocketAddr::V6(v6) = address { Some(v6.into()) } else { None }
    }
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

impl Scratch {
    fn new() -> Self {
        Self {
            headers: std::array::from_fn(|kind| Headers::of(Kind(kind))),
            stamps: std::array::from_fn(|_| stamp_headers()),
            stamp_space: stamp_space(),
            packets: (0..BATCH).map(|_| vec![0; DATAGRAM_OCTETS]).collect(),
            replies: (0..BATCH).map(|_| vec![0; DATAGRAM_OCTETS]).collect(),
            out: SendHeaders {
                v4: MultiHeaders::preallocate(BATCH, None),
                v6: MultiHeaders::preallocate(BATCH, None),
                from_v4: MultiHeaders::preallocate(BATCH, Some(cmsg_space!(libc::in_pktinfo))),
                from_v6: MultiHeaders::preallocate(BATCH, Some(cmsg_space!(libc::in6_pktinfo))),
            },
        }
    }
}

impl Headers {
    fn of(kind: Kind) -> Self {
        let space =
            cmsg_space!(TimeSpec, [TimeSpec; 3], u32, libc::c_int, libc::c_int, libc::in6_pktinfo);
        if kind.is_ipv6() {
            Self::V6(MultiHeaders::preallocate(BATCH, Some(space)))
        } else {
            Self::V4(MultiHeaders::preallocate(BATCH, Some(space)))
        }
    }
}

fn stamp_headers() -> MultiHeaders<SockaddrStorage> {
    MultiHeaders::preallocate(STAMPS, Some(stamp_space()))
}

/// Room for what comes with the stamp of a packet that went out; over IPv6 that is also what the
/// socket asked for of packets that come in.
fn stamp_space() -> Vec<u8> {
    cmsg_space!(
        [TimeSpec; 3],
        libc::sock_extended_err,
        libc::sockaddr_in6,
        libc::in6_pktinfo,
        libc::c_int,
        libc::c_int
    )
}

/// Where so many packets go.
fn slices<const COUNT: usize>(buffers: &mut [Vec<u8>]) -> [[IoSliceMut<'_>; 1]; COUNT] {
    let mut buffers = buffers.iter_mut();
    std::array::from_fn(|_| {
        [IoSliceMut::new(buffers.next().map_or(&mut [][..], Vec::as_mut_slice))]
    })
}

/// Reads up to so many packets and gives each to `handle` with its buffer's index and a reply
/// buffer; how many there were.
pub(super) fn receive_batch<const COUNT: usize>(
    socket: &TestSocket,
    scratch: &mut Scratch,
    handle: impl FnMut(&PacketInfo, &[u8], usize, &mut [u8]),
) -> io::Result<usize> {
    let Scratch { headers, packets, replies, .. } = scratch;
    let drops = socket.drops.load(Relaxed);
    let kind = Kind(socket.kind.0 + if drops { Kind::DROPS } else { 0 });
    let headers = &mut headers[kind.0];
    let buffers = (&mut packets[..], &mut replies[..]);
    let (count, truncated) = match headers {
        Headers::V4(headers) => read::<COUNT, _>(socket, headers, buffers, handle)?,
        Headers::V6(headers) => read::<COUNT, _>(socket, headers, buffers, handle)?,
    };
    // A packet with less than its kind has, as after a change of options, left too little room;
    // and from the first drop on each packet tells of drops.
    if truncated {
        *headers = Headers::of(kind);
        socket.drops.store(true, Relaxed);
    }
    Ok(count)
}

/// How many packets there were, and whether there was too little room for what the kernel tells.
fn read<const COUNT: usize, S: Peer>(
    socket: &TestSocket,
    headers: &mut MultiHeaders<S>,
    (packets, replies): (&mut [Vec<u8>], &mut [Vec<u8>]),
    mut handle: impl FnMut(&PacketInfo, &[u8], usize, &mut [u8]),
) -> io::Result<(usize, bool)> {
    let mut truncated = false;
    let mut count = 0;
    {
        let mut slices = slices::<COUNT>(packets);
        let flags = MsgFlags::MSG_DONTWAIT;
        let messages = match recvmmsg(socket.io.as_raw_fd(), headers, &mut slices, flags, None) {
            Ok(messages) => messages,
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok((0, false)),
            Err(error) => return Err(error.into()),
        };
        for (index, message) in messages.enumerate() {
            count += 1;
            let packet = message.iovs().next().unwrap_or(&[]);
            let Some(source) = message.address else { continue };
            let mut info = PacketInfo {
                source: source.to_std(),
                received: UnixTime(0),
                stamp: StampSource::User,
                ttl: None,
                tos: None,
                destination: None,
                interface_index: 0,
                is_whole: true,
                to_group: false,
            };
            match message.cmsgs() {
                Ok(cmsgs) => cmsgs.for_each(|cmsg| info.take(&cmsg, socket)),
                Err(_) => (truncated, info.is_whole) = (true, false),
            }
            if info.stamp == StampSource::User {
                info.received = clock::unix();
            }
            handle(&info, packet, index, &mut replies[index]);
        }
    }
    Ok((count, truncated))
}

/// Reads the numbers of packets that went out, and when they did.
pub(super) fn receive_numbers(
    socket: &TestSocket,
    scratch: &mut Scratch,
    mut handle: impl FnMut(u32, UnixTime, StampSource),
) -> Drained {
    let Scratch { stamps, packets, .. } = scratch;
    let headers = &mut stamps[usize::from(socket.local.is_ipv6())];
    let (mut count, mut truncated) = (0, false);
    {
        let mut slices = slices::<STAMPS>(packets);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let Ok(messages) = recvmmsg(socket.io.as_raw_fd(), headers, &mut slices, flags, None)
        else {
            return Drained::Yes;
        };
        for message in messages {
            count += 1;
            let Ok(cmsgs) = message.cmsgs() else {
                truncated = true;
                continue;
            };
            let (mut at, mut number) = (None, None);
            for cmsg in cmsgs {
                if let ControlMessageOwned::ScmTimestampsns(stamps) = cmsg {
                    at = socket.best_of(&stamps);
                } else if let ControlMessageOwned::Ipv4RecvErr(error, _)
                | ControlMessageOwned::Ipv6RecvErr(error, _) = cmsg
                {
                    number = Some(error.ee_data);
                }
            }
            if let (Some(number), Some((at, source))) = (number, at) {
                handle(number, at, source);
            }
        }
    }
    if truncated {
        *headers = stamp_headers();
    }
    if count < STAMPS { Drained::Yes } else { Drained::No }
}

/// Reads what the kernel tells of packets that went out. Errors that come this way (a port that is
/// closed at the other end) are taken out as well, and are of no interest here.
pub(super) fn receive_stamps(
    socket: &TestSocket,
    scratch: &mut Scratch,
    answers: &mut impl Answer,
) {
    let Scratch { stamp_space, packets, .. } = scratch;
    let buffer = packets[0].as_mut_slice();
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    for _ in 0..BATCH {
        let mut slices = [IoSliceMut::new(buffer)];
        let fd = socket.io.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut *stamp_space), flags);
        let Ok(message) = message else { return };
        let octets = message.bytes;
        let stamp = message.cmsgs().ok().and_then(|mut cmsgs| {
            cmsgs.find_map(|cmsg| {
                let ControlMessageOwned::ScmTimestampsns(stamps) = cmsg else { return None };
                socket.best_of(&stamps)
            })
        });
        if let Some((at, _)) = stamp {
            answers.transmitted(&buffer[..octets], at);
        }
    }
}

fn to_time(stamp: &TimeSpec) -> UnixTime {
    let seconds = (stamp.tv_sec() as u64).wrapping_mul(NANOS_PER_SECOND);
    UnixTime(seconds.wrapping_add(stamp.tv_nsec() as u64))
}

impl TestSocket {
    /// The stamp that is nearest to the wire.
    fn best_of(&self, stamps: &Timestamps) -> Option<(UnixTime, StampSource)> {
        let kernel = Some(to_time(&stamps.system)).filter(|at| at.0 != 0);
        let by_hardware = self.hardware.as_ref().and_then(|clock| {
            let about = kernel.unwrap_or_else(clock::unix);
            clock.in_host_time(to_time(&stamps.hw_raw).0, about)
        });
        let by_hardware = by_hardware.map(|at| (at, StampSource::Hardware));
        by_hardware.or_else(|| kernel.map(|at| (at, StampSource::Kernel)))
    }
}

impl PacketInfo {
    #[expect(clippy::wildcard_enum_match_arm, reason = "what was not asked for is of no use")]
    fn take(&mut self, cmsg: &ControlMessageOwned, socket: &TestSocket) {
        match cmsg {
            ControlMessageOwned::ScmTimestampns(stamp) => {
                (self.received, self.stamp) = (to_time(stamp), StampSource::Kernel);
            }
            ControlMessageOwned::ScmTimestampsns(stamps) => {
                if let Some(best) = socket.best_of(stamps) {
                    (self.received, self.stamp) = best;
                }
            }
            ControlMessageOwned::RxqOvfl(dropped) => socket.dropped.store(*dropped, Relaxed),
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
                let destination = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                self.destination = Some(destination.into());
                if destination.is_unicast_link_local() {
                    self.interface_index = info.ipi6_ifindex;
                }
                self.to_group = destination.is_multicast();
            }
            _ => {}
        }
    }
}
