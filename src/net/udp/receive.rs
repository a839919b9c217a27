//! Batched reads of received packets with their control messages, and of transmit timestamps.

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

use super::{Drained, PacketHandler, TestSocket, options::ReceiveStamps};
use crate::{
    net::clock,
    time::{NANOS_PER_SECOND, StampSource, UnixTime},
    twamp::PacketMeta,
};

/// Packets read with one system call.
pub(super) const BATCH: usize = 32;
/// Transmit timestamps read with one system call.
const STAMPS: usize = 4;
/// Size of the largest datagram.
const DATAGRAM_BYTES: usize = 65_536;

/// Set of control messages that accompany each packet of a socket. It depends on the IP version, on
/// the local address (a single or the unspecified address), on the timestamps and, after a drop, on
/// the drop counter.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderKind(usize);

impl HeaderKind {
    const DROPS: usize = 12;
    const COUNT: usize = 24;

    pub(super) fn new(ipv6: bool, any_address: bool, stamps: ReceiveStamps) -> Self {
        let stamps = match stamps {
            ReceiveStamps::TimestampNs => 0,
            ReceiveStamps::Timestamping => 1,
            ReceiveStamps::Missing => 2,
        };
        Self(stamps * 4 + usize::from(ipv6) * 2 + usize::from(any_address))
    }

    fn is_ipv6(self) -> bool {
        self.0 & 2 != 0
    }
}

/// A received packet in its buffer.
pub(super) struct Received<'a> {
    pub(super) meta: PacketMeta,
    /// False when the kernel had no room for all control messages.
    pub(super) is_complete: bool,
    pub(super) packet: &'a [u8],
    /// Index of the buffer.
    pub(super) index: usize,
}

/// Buffers of a thread. A batch is read, handled and answered without waiting, so that the
/// thousands of sockets of a thread share one set.
pub(super) struct Scratch {
    /// One set of headers for each kind. The kernel overwrites the size of a control buffer with
    /// the used size, so all packets read with one set must carry the same control messages.
    headers: [Headers; HeaderKind::COUNT],
    /// Headers of transmit timestamps, by IP version.
    stamps: [MultiHeaders<SockaddrStorage>; 2],
    stamp_space: Vec<u8>,
    pub(super) packets: Vec<Vec<u8>>,
    pub(super) replies: Vec<Vec<u8>>,
    pub(super) out: SendHeaders,
}

/// Headers of received batches, by address family: addresses are copied several times, and a
/// `SockaddrStorage` is four times as long as an address of a known family.
enum Headers {
    V4(MultiHeaders<SockaddrIn>),
    V6(MultiHeaders<SockaddrIn6>),
}

/// Headers of sent batches, by address family, with and without an explicit source address.
pub(super) struct SendHeaders {
    pub(super) v4: MultiHeaders<SockaddrIn>,
    pub(super) v6: MultiHeaders<SockaddrIn6>,
    pub(super) from_v4: MultiHeaders<SockaddrIn>,
    pub(super) from_v6: MultiHeaders<SockaddrIn6>,
}

/// Socket address of one family in the kernel's form.
pub(super) trait FamilyAddress: SockaddrLike + Copy {
    fn to_std(self) -> SocketAddr;
    /// Converts an address; `None` for one of the other family.
    fn from_std(address: SocketAddr) -> Option<Self>;
}

impl FamilyAddress for SockaddrIn {
    fn to_std(self) -> SocketAddr {
        SocketAddr::from((self.ip(), self.port()))
    }

    fn from_std(address: SocketAddr) -> Option<Self> {
        if let SocketAddr::V4(v4) = address { Some(v4.into()) } else { None }
    }
}

impl FamilyAddress for SockaddrIn6 {
    fn to_std(self) -> SocketAddr {
        // The flow label does not identify the sender.
        SocketAddrV6::new(self.ip(), self.port(), 0, self.scope_id()).into()
    }

    fn from_std(address: SocketAddr) -> Option<Self> {
        if let SocketAddr::V6(v6) = address { Some(v6.into()) } else { None }
    }
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

impl Scratch {
    fn new() -> Self {
        Self {
            headers: std::array::from_fn(|kind| Headers::new(HeaderKind(kind))),
            stamps: std::array::from_fn(|_| stamp_headers()),
            stamp_space: stamp_space(),
            packets: (0..BATCH).map(|_| vec![0; DATAGRAM_BYTES]).collect(),
            replies: (0..BATCH).map(|_| vec![0; DATAGRAM_BYTES]).collect(),
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
    fn new(kind: HeaderKind) -> Self {
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

/// Returns space for the control messages of a transmit timestamp. Over IPv6 these include the ones
/// requested for received packets.
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

/// Returns the first `COUNT` buffers as slices to read into.
fn slices<const COUNT: usize>(buffers: &mut [Vec<u8>]) -> [[IoSliceMut<'_>; 1]; COUNT] {
    let mut buffers = buffers.iter_mut();
    std::array::from_fn(|_| {
        [IoSliceMut::new(buffers.next().map_or(&mut [][..], Vec::as_mut_slice))]
    })
}

/// Reads up to `COUNT` packets, passes each to `handle` with a reply buffer and returns their number.
pub(super) fn receive_batch<const COUNT: usize>(
    socket: &TestSocket,
    scratch: &mut Scratch,
    handle: impl FnMut(Received<'_>, &mut [u8]),
) -> io::Result<usize> {
    let Scratch { headers, packets, replies, .. } = scratch;
    let reports_drops = socket.reports_drops.load(Relaxed);
    let kind = HeaderKind(socket.header_kind.0 + if reports_drops { HeaderKind::DROPS } else { 0 });
    let headers = &mut headers[kind.0];
    let buffers = (&mut packets[..], &mut replies[..]);
    let (count, truncated) = match headers {
        Headers::V4(headers) => read::<COUNT, _>(socket, headers, buffers, handle)?,
        Headers::V6(headers) => read::<COUNT, _>(socket, headers, buffers, handle)?,
    };
    // Either an earlier packet with fewer control messages shrank the buffer, or the first drop
    // added the drop counter to each packet.
    if truncated {
        *headers = Headers::new(kind);
        socket.reports_drops.store(true, Relaxed);
    }
    Ok(count)
}

/// Returns the number of packets, and true if control messages of any packet were truncated.
fn read<const COUNT: usize, S: FamilyAddress>(
    socket: &TestSocket,
    headers: &mut MultiHeaders<S>,
    (packets, replies): (&mut [Vec<u8>], &mut [Vec<u8>]),
    mut handle: impl FnMut(Received<'_>, &mut [u8]),
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
            let mut meta = PacketMeta {
                source: source.to_std(),
                destination: socket.local,
                ..PacketMeta::default()
            };
            let mut is_complete = true;
            match message.cmsgs() {
                Ok(cmsgs) => cmsgs.for_each(|cmsg| apply_control_message(&mut meta, &cmsg, socket)),
                Err(_) => (truncated, is_complete) = (true, false),
            }
            if meta.stamp == StampSource::User {
                meta.received = clock::unix();
            }
            handle(Received { meta, is_complete, packet, index }, &mut replies[index]);
        }
    }
    Ok((count, truncated))
}

/// Reads the numbers and transmit times of sent packets.
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
                    at = socket.best_stamp(&stamps);
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

/// Reads sent packets with their transmit times. ICMP errors arrive in the same queue (a closed port
/// at the peer, for example) and are discarded.
pub(super) fn receive_stamps(
    socket: &TestSocket,
    scratch: &mut Scratch,
    handler: &mut impl PacketHandler,
) {
    let Scratch { stamp_space, packets, .. } = scratch;
    let buffer = packets[0].as_mut_slice();
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    for _ in 0..BATCH {
        let mut slices = [IoSliceMut::new(buffer)];
        let fd = socket.io.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut *stamp_space), flags);
        let Ok(message) = message else { return };
        let len = message.bytes;
        let stamp = message.cmsgs().ok().and_then(|mut cmsgs| {
            cmsgs.find_map(|cmsg| {
                let ControlMessageOwned::ScmTimestampsns(stamps) = cmsg else { return None };
                socket.best_stamp(&stamps)
            })
        });
        if let Some((at, _)) = stamp {
            handler.transmitted(&buffer[..len], at);
        }
    }
}

fn to_time(stamp: &TimeSpec) -> UnixTime {
    let seconds = (stamp.tv_sec() as u64).wrapping_mul(NANOS_PER_SECOND);
    UnixTime(seconds.wrapping_add(stamp.tv_nsec() as u64))
}

impl TestSocket {
    /// Returns the timestamp taken nearest to the wire.
    fn best_stamp(&self, stamps: &Timestamps) -> Option<(UnixTime, StampSource)> {
        let kernel = Some(to_time(&stamps.system)).filter(|at| at.0 != 0);
        let by_hardware = self.hardware.as_ref().and_then(|clock| {
            let near = kernel.unwrap_or_else(clock::unix);
            clock.to_host_time(to_time(&stamps.hw_raw).0, near)
        });
        let by_hardware = by_hardware.map(|at| (at, StampSource::Hardware));
        by_hardware.or_else(|| kernel.map(|at| (at, StampSource::Kernel)))
    }
}

/// Copies a control message into the meta data of its packet.
#[expect(clippy::wildcard_enum_match_arm, reason = "other control messages are not requested")]
fn apply_control_message(meta: &mut PacketMeta, cmsg: &ControlMessageOwned, socket: &TestSocket) {
    match cmsg {
        ControlMessageOwned::ScmTimestampns(stamp) => {
            (meta.received, meta.stamp) = (to_time(stamp), StampSource::Kernel);
        }
        ControlMessageOwned::ScmTimestampsns(stamps) => {
            if let Some(best) = socket.best_stamp(stamps) {
                (meta.received, meta.stamp) = best;
            }
        }
        ControlMessageOwned::RxqOvfl(dropped) => socket.dropped.store(*dropped, Relaxed),
        ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
            meta.ttl = u8::try_from(*ttl).ok();
        }
        ControlMessageOwned::Ipv4Tos(tos) => meta.tos = Some(*tos),
        ControlMessageOwned::Ipv6TClass(class) => meta.tos = u8::try_from(*class).ok(),
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let destination = IpAddr::from(u32::from_be(info.ipi_spec_dst.s_addr).to_be_bytes());
            meta.destination.set_ip(destination);
            // The destination of a broadcast or multicast packet differs from the local address.
            meta.to_group = info.ipi_spec_dst.s_addr != info.ipi_addr.s_addr;
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let destination = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            meta.destination.set_ip(destination.into());
            if destination.is_unicast_link_local() {
                meta.interface_index = info.ipi6_ifindex;
            }
            meta.to_group = destination.is_multicast();
        }
        _ => {}
    }
}
