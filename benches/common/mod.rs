//! Parts shared by the benches: a closed-loop generator, a bare echo, and CPU accounting.

#![allow(clippy::expect_used, clippy::disallowed_methods, dead_code)]

use std::{
    fs,
    io::{IoSlice, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    sched::{CpuSet, sched_setaffinity},
    sys::{
        socket::{
            ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg,
            setsockopt, sockopt,
        },
        time::TimeSpec,
    },
    unistd::Pid,
};

/// Packets read or sent with one system call.
pub(crate) const BATCH: usize = 32;

/// Pins the calling thread to one CPU.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU");
    // A machine with one CPU has no other.
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

/// Returns the CPU time of this process's threads of a given name.
pub(crate) fn cpu_of(name: &str) -> Duration {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir("/proc/self/task").expect("tasks").flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim_end() == name {
            let first = read("schedstat").split(' ').next().and_then(|n| n.parse().ok());
            sum += Duration::from_nanos(first.unwrap_or(0));
        }
    }
    sum
}

/// Closed-loop load of a generator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Number of sending sockets.
    pub(crate) flows: usize,
    /// Packets of each socket in flight.
    pub(crate) outstanding: usize,
    /// Duration of the load.
    pub(crate) length: Duration,
}

/// Outcome of a load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Number of replies received.
    pub(crate) answers: u64,
    /// Replies received per second.
    pub(crate) per_second: f64,
    /// Median response time in nanoseconds, with one packet in flight.
    pub(crate) median_rtt_ns: u64,
}

/// Connects a socket to `target`.
pub(crate) fn flow(target: SocketAddr, local: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(local).expect("a socket");
    socket.connect(target).expect("a route");
    socket.set_nonblocking(true).expect("non-blocking");
    socket
}

/// Sends the packet of each socket to its connected peer.
pub(crate) fn load(flows: &[(UdpSocket, Vec<u8>)], load: Load) -> Seen {
    if let [(socket, packet)] = flows
        && load.outstanding == 1
    {
        return one_by_one(socket, packet, load.length);
    }
    let slices: Vec<_> = flows.iter().map(|(_, packet)| a_batch_of(packet)).collect();
    let none = [None; BATCH];
    let mut out = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut buffers = vec![[0u8; 2048]; BATCH];
    let mut under_way = vec![0usize; flows.len()];
    let mut last = vec![Instant::now(); flows.len()];
    let mut answers = 0;
    let begun = Instant::now();
    while begun.elapsed() < load.length {
        for (index, (socket, _)) in flows.iter().enumerate() {
            let room = load.outstanding - under_way[index];
            if room > 0 {
                let flags = MsgFlags::MSG_DONTWAIT;
                let few = &slices[index][..room.min(BATCH)];
                let sent =
                    sendmmsg(socket.as_raw_fd(), &mut out, few, &none[..few.len()], [], flags);
                under_way[index] += sent.map_or(0, Iterator::count);
            }
            let mut views: Vec<[IoSliceMut<'_>; 1]> =
                buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let flags = MsgFlags::MSG_DONTWAIT;
            match recvmmsg(socket.as_raw_fd(), &mut headers, &mut views, flags, None) {
                Ok(results) => {
                    let received = results.count();
                    answers += received as u64;
                    under_way[index] = under_way[index].saturating_sub(received);
                    last[index] = Instant::now();
                }
                // Lost packets must be replaced to keep the loop full.
                Err(_) if last[index].elapsed() > Duration::from_millis(50) => under_way[index] = 0,
                Err(_) => {}
            }
        }
    }
    let per_second = answers as f64 / begun.elapsed().as_secs_f64();
    Seen { answers, per_second, median_rtt_ns: 0 }
}

fn a_batch_of(packet: &[u8]) -> Vec<[IoSlice<'_>; 1]> {
    (0..BATCH).map(|_| [IoSlice::new(packet)]).collect()
}

fn one_by_one(socket: &UdpSocket, packet: &[u8], length: Duration) -> Seen {
    let mut buffer = [0; 2048];
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < length {
        let sent = Instant::now();
        socket.send(packet).expect("sent");
        while socket.recv(&mut buffer).is_err() {
            if sent.elapsed() > Duration::from_millis(50) {
                break;
            }
        }
        times.push(sent.elapsed().as_nanos() as u64);
    }
    let answers = times.len() as u64;
    Seen {
        answers,
        per_second: answers as f64 / begun.elapsed().as_secs_f64(),
        median_rtt_ns: median(&mut times),
    }
}

/// Returns the median; 0 without values.
pub(crate) fn median<T: Copy + PartialOrd + Default>(values: &mut [T]) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("ordered"));
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A bare echo on a thread named `echo`: requests the same facts from the kernel as a reflector,
/// reads a batch and returns it.
pub(crate) struct Echo {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Address of the echo.
    pub(crate) address: SocketAddr,
    /// Number of returned packets.
    pub(crate) handled: Arc<AtomicU64>,
}

impl Echo {
    /// Starts the echo on a CPU.
    pub(crate) fn start(cpu: usize) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("stamps");
        setsockopt(&socket, sockopt::Ipv4RecvTtl, &true).expect("TTL");
        setsockopt(&socket, sockopt::IpRecvTos, &true).expect("TOS");
        let address = socket.local_addr().expect("an address");
        let (end, handled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, counted) = (end.clone(), handled.clone());
        let body = move || {
            pin(cpu);
            echo(&socket, &ended, &counted);
        };
        let thread = thread::Builder::new().name("echo".into()).spawn(body).expect("a thread");
        Self { end, thread: Some(thread), address, handled }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn echo(socket: &UdpSocket, end: &AtomicBool, handled: &AtomicU64) {
    let mut buffers = vec![[0u8; 2048]; BATCH];
    let space = cmsg_space!(TimeSpec, i32, i32);
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, Some(space));
    let mut out = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut stamps = 0u64;
    while !end.load(Relaxed) {
        let mut to = [None::<SockaddrIn>; BATCH];
        let mut octets = [0; BATCH];
        let mut count = 0;
        {
            let mut views: Vec<[IoSliceMut<'_>; 1]> =
                buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let flags = MsgFlags::MSG_WAITFORONE;
            let received = recvmmsg(socket.as_raw_fd(), &mut headers, &mut views, flags, None);
            let Ok(received) = received else { continue };
            for message in received {
                (to[count], octets[count]) = (message.address, message.bytes);
                count += 1;
                for cmsg in message.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmTimestampns(stamp) = cmsg {
                        stamps = stamps.wrapping_add(stamp.tv_nsec() as u64);
                    }
                }
            }
        }
        let slices: Vec<[IoSlice<'_>; 1]> =
            (0..count).map(|index| [IoSlice::new(&buffers[index][..octets[index]])]).collect();
        let flags = MsgFlags::empty();
        let sent = sendmmsg(socket.as_raw_fd(), &mut out, &slices, &to[..count], [], flags);
        handled.fetch_add(sent.map_or(0, Iterator::count) as u64, Relaxed);
    }
    std::hint::black_box(stamps);
}
