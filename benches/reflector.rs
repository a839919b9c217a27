//! Packets per second and CPU for each packet: the reflector of the server role, beside a bare
//! `recvmmsg`/`sendmmsg` echo on the same machine in the same run. What counts is the ratio.
//!
//! `cargo bench --bench reflector [-- SECONDS]`

#![allow(clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::{
    io::{IoSlice, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg},
    time::{ClockId, clock_gettime},
};
use tokio::sync::watch;
use twamp_agent::{
    model::parse,
    net::free_port,
    proto,
    session::{
        PlaneSettings,
        server::{Reflectors, Registry, ServerRole},
    },
    supervise::{Pulse, Tasks},
};

const BATCH: usize = 32;
const OCTETS: usize = 60;
const ROUNDS: usize = 5;
/// Packets that the generator keeps under way; more would only fill the receive buffer.
const UNDER_WAY: u64 = 512;

#[derive(Clone, Copy, Default)]
struct Figures {
    per_second: f64,
    cpu_ns: f64,
}

fn main() {
    // `cargo bench` passes options of its own.
    let seconds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(2);
    let length = Duration::from_secs(seconds);
    let mut rounds: Vec<(Figures, Figures)> = Vec::new();
    for round in 1..=ROUNDS {
        let (echo, ours) = (bare_echo(length), reflector(length));
        println!(
            "round {round}: echo {:.0} packets/s, {:.0} ns CPU each; \
             reflector {:.0} packets/s, {:.0} ns CPU each",
            echo.per_second, echo.cpu_ns, ours.per_second, ours.cpu_ns
        );
        rounds.push((echo, ours));
    }
    let median = |ratio: fn(&(Figures, Figures)) -> f64| {
        let mut ratios: Vec<f64> = rounds.iter().map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    };
    println!(
        "reflector beside bare echo, medians of {ROUNDS} rounds: {:.2} times the packets/s, \
         {:.2} times the CPU for each packet",
        median(|(echo, ours)| ours.per_second / echo.per_second),
        median(|(echo, ours)| ours.cpu_ns / echo.cpu_ns),
    );
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
    Duration::new(time.tv_sec() as u64, time.tv_nsec() as u32)
}

/// Loads `target` for so long and returns the answers that came.
fn load(target: SocketAddr, length: Duration) -> u64 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(target).expect("a route");
    socket.set_nonblocking(true).expect("non-blocking");
    let mut probe = [0; OCTETS];
    probe[4] = 0xe8;
    probe[13] = 1;
    let slices: Vec<[IoSlice<'_>; 1]> = (0..BATCH).map(|_| [IoSlice::new(&probe)]).collect();
    let (mut sent, mut received) = (0u64, 0u64);
    let mut last_answer = Instant::now();
    let end = Instant::now() + length;
    let mut buffers = vec![[0u8; 2048]; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut out = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    while Instant::now() < end {
        if sent - received < UNDER_WAY {
            let flags = MsgFlags::MSG_DONTWAIT;
            let none = [None; BATCH];
            if let Ok(results) = sendmmsg(socket.as_raw_fd(), &mut out, &slices, none, [], flags) {
                sent += results.count() as u64;
            }
        }
        let mut views: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmmsg(socket.as_raw_fd(), &mut headers, &mut views, flags, None) {
            Ok(results) => {
                received += results.count() as u64;
                last_answer = Instant::now();
            }
            // What was lost does not come any more.
            Err(_) if last_answer.elapsed() > Duration::from_millis(50) => sent = received,
            Err(_) => thread::yield_now(),
        }
    }
    received
}

/// Reads a batch and sends it back, and nothing else.
fn bare_echo(length: Duration) -> Figures {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let target = socket.local_addr().expect("an address");
    let end = Arc::new(AtomicBool::new(false));
    let handled = Arc::new(AtomicU64::new(0));
    let echo = {
        let (end, handled) = (end.clone(), handled.clone());
        thread::spawn(move || {
            let mut buffers = vec![[0u8; 2048]; BATCH];
            while !end.load(Relaxed) {
                let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
                let mut views: Vec<[IoSliceMut<'_>; 1]> =
                    buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
                let flags = MsgFlags::MSG_WAITFORONE;
                let received = recvmmsg(socket.as_raw_fd(), &mut headers, &mut views, flags, None);
                let Ok(received) = received else { continue };
                let answers: Vec<(usize, Option<SockaddrIn>)> =
                    received.map(|message| (message.bytes, message.address)).collect();
                let slices: Vec<[IoSlice<'_>; 1]> = answers
                    .iter()
                    .zip(&buffers)
                    .map(|((octets, _), buffer)| [IoSlice::new(&buffer[..*octets])])
                    .collect();
                let to: Vec<Option<SockaddrIn>> = answers.iter().map(|(_, to)| *to).collect();
                let mut out = MultiHeaders::<SockaddrIn>::preallocate(answers.len(), None);
                let flags = MsgFlags::empty();
                let sent = sendmmsg(socket.as_raw_fd(), &mut out, &slices, &to, [], flags);
                handled.fetch_add(sent.map_or(0, Iterator::count) as u64, Relaxed);
            }
            thread_cpu()
        })
    };
    let answers = load(target, length);
    end.store(true, Relaxed);
    let cpu = echo.join().expect("the echo");
    figures(answers, handled.load(Relaxed), cpu, length)
}

/// The server role with a light reflector, on one thread.
fn reflector(length: Duration) -> Figures {
    let port = free_port().expect("a free port");
    let address = proto::ListenAddress {
        address: "127.0.0.1".into(),
        port: Some(port.into()),
        ..Default::default()
    };
    let light = proto::LightServer {
        listen: vec![address],
        prefixes: vec!["127.0.0.0/8".into()],
        stateful: true,
        ..Default::default()
    };
    let server = proto::ServerConfig { light: Some(light), ..Default::default() };
    let document = proto::AgentConfig { server: Some(server), ..Default::default() };
    let config = parse(&document).expect("a configuration").server;
    let (ready, is_ready) = mpsc::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let reflectors = Reflectors::start(PlaneSettings::default()).expect("threads");
    let registry = Registry::new(reflectors);
    let inside = registry.clone();
    let role = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let tasks = Tasks::new();
            let (_config, receiver) = watch::channel(config);
            let (applied, mut in_force) = watch::channel(None);
            tasks.spawn(
                "role",
                ServerRole::new(inside, receiver, &tasks).run(applied, Pulse::default()),
            );
            in_force.wait_for(Option::is_some).await.expect("the role");
            ready.send(()).expect("the main thread");
            let _ = ended.await;
            let cpu = thread_cpu();
            tasks.end(Duration::from_secs(5)).await;
            cpu
        })
    });
    is_ready.recv().expect("the role");
    let answers = load(SocketAddr::from(([127, 0, 0, 1], port)), length);
    let _ = end.send(());
    let cpu = role.join().expect("the role");
    let packets = registry.status().packets.unwrap_or_default();
    figures(answers, packets.reflected, cpu, length)
}

fn figures(answers: u64, handled: u64, cpu: Duration, length: Duration) -> Figures {
    Figures {
        per_second: answers as f64 / length.as_secs_f64(),
        cpu_ns: cpu.as_nanos() as f64 / handled.max(1) as f64,
    }
}
