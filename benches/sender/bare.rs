//! Cost of the same packets in the kernel alone, and wake-up latency of a thread.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use twamp_agent::{
    net::{Poller, TestSocket, TransmitStamps, UdpOptions, clock},
    time::ErrorEstimate,
    wire::format::{PacketFormat, ProbeHeader},
};

use super::{
    RESPONDER, SENDER, SESSIONS_OF_AN_ADDRESS,
    common::{cpu_of, pin},
    respond,
};

/// Wake-up policy of the thread of the bare sockets.
#[derive(Clone, Copy)]
pub(super) enum Wake {
    /// At a fixed interval, for all due probes.
    Each(Duration),
    /// For each probe, which is the cost of exact sending.
    ForEachProbe,
}

impl Wake {
    fn every(self, gap: Duration) -> Duration {
        match self {
            Self::Each(beat) => beat,
            Self::ForEachProbe => gap,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Each(_) => "each ms",
            Self::ForEachProbe => "each probe",
        }
    }
}

/// Measures the kernel: the same number of sockets and timestamps, one packet sent and one
/// received per probe, from one thread that is woken when probes are due.
pub(super) fn sockets(sessions: usize, interval: Duration, wake: Wake, length: Duration) {
    let end = Arc::new(AtomicBool::new(false));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let target = socket.local_addr().expect("an address");
    let responder = {
        let end = end.clone();
        let body = move || {
            pin(RESPONDER);
            respond(&socket, &Mutex::default(), &AtomicBool::new(false), &end);
        };
        thread::Builder::new().name("responder".into()).spawn(body).expect("a thread")
    };
    let body = move || {
        pin(SENDER);
        let options =
            UdpOptions { transmit_stamps: TransmitStamps::Numbered, ..UdpOptions::default() };
        let bind = |index: usize| {
            let address = [127, 0, 0, (1 + index / SESSIONS_OF_AN_ADDRESS) as u8];
            TestSocket::bind(SocketAddr::from((address, 0)), &options).expect("a socket")
        };
        let sockets: Vec<TestSocket> = (0..sessions).map(bind).collect();
        let packet = probe();
        let (begun, mut sent, mut due, mut next) = (Instant::now(), 0u64, 0u64, 0);
        let mut waiting: Vec<usize> = Vec::new();
        let before = cpu_of("bare");
        let gap = interval / u32::try_from(sessions).expect("a number of sockets");
        let (tick, mut poller) = (wake.every(gap), Poller::new().expect("a timer"));
        for number in 1.. {
            let at = tick * number;
            if at > length {
                break;
            }
            while let Some(rest) = at.checked_sub(begun.elapsed()) {
                let due = clock::monotonic().plus_ns(rest.as_nanos() as u64);
                poller.wait_without_sockets(due, length).expect("a wait");
            }
            for index in waiting.drain(..) {
                sockets[index].transmitted(|_, _, _| {});
                let _ = sockets[index].receive(|_, _| {});
            }
            let until = (at.as_nanos() / gap.as_nanos()) as u64;
            while due < until {
                due += 1;
                next = (next + 1) % sessions;
                sent += u64::from(sockets[next].send(&packet, target).is_ok());
                waiting.push(next);
            }
        }
        (sent, cpu_of("bare").saturating_sub(before))
    };
    let thread = thread::Builder::new().name("bare".into()).spawn(body).expect("a thread");
    let (sent, cpu) = thread.join().expect("the bare sender");
    end.store(true, Relaxed);
    responder.join().expect("the responder");
    println!(
        "{:<38}{:>9.0}{:>57.2}",
        format!("  bare, {sessions} sockets, {}", wake.words()),
        sent as f64 / length.as_secs_f64(),
        cpu.as_nanos() as f64 / 1e3 / sent.max(1) as f64,
    );
}

/// Measures the wake-up latency of a thread that sleeps until each millisecond.
pub(super) fn timer(length: Duration) {
    let body = move || {
        pin(SENDER);
        let mut poller = Poller::new().expect("a timer");
        let begun = Instant::now();
        let mut late: Vec<u64> = Vec::new();
        for tick in 1.. {
            let at = Duration::from_millis(tick);
            if at > length {
                break;
            }
            while let Some(rest) = at.checked_sub(begun.elapsed()) {
                let due = clock::monotonic().plus_ns(rest.as_nanos() as u64);
                poller.wait_without_sockets(due, length).expect("a wait");
            }
            late.push(begun.elapsed().saturating_sub(at).as_nanos() as u64);
        }
        late.sort_unstable();
        late
    };
    let late = thread::spawn(body).join().expect("the timer");
    let at = |part: f64| late[((late.len() - 1) as f64 * part) as usize] as f64 / 1e3;
    println!(
        "{:<38}{:>9}{:>10.1}{:>10.1}{:>10.1}{:>10.1}",
        "  a bare timer of a millisecond",
        "1000",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}

fn probe() -> Vec<u8> {
    let format = PacketFormat::open();
    let mut packet = vec![0; format.probe_octets()];
    let header =
        ProbeHeader { sequence: 0, timestamp: 1, error_estimate: ErrorEstimate(0x8a64), ssid: 0 };
    format.write_probe(&header, &mut packet);
    packet
}
