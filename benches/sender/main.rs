//! Accuracy and cost of sending: the agent on one side, on the other a responder that records the
//! kernel's receive timestamp of each probe. Those timestamps, not the agent's own reports,
//! determine lateness.
//!
//! `cargo bench --bench sender [-- SECONDS]`

#![allow(clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod accuracy;
mod bare;
#[path = "../common/mod.rs"]
mod common;
mod relay;

use std::{
    collections::HashMap,
    fs,
    io::{IoSlice, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bare::Wake;
use common::{BATCH, cpu_of, pin};
use nix::{
    cmsg_space,
    sys::{
        socket::{
            ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg,
            setsockopt, sockopt,
        },
        time::TimeSpec,
    },
};
use twamp_agent::{
    agent::{Agent, Options},
    api::{
        ApiSettings,
        services::{
            agent_service_client::AgentServiceClient, client_service_client::ClientServiceClient,
            results_service_client::ResultsServiceClient,
        },
    },
    net::{ThreadScheduling, free_port, raise_open_files},
    proto,
    session::PlaneSettings,
    time::{ErrorEstimate, UnixTime},
    wire::format::{PacketFormat, ReplyHeader},
};

const MILLISECOND: Duration = Duration::from_millis(1);
/// Catch-up limit of the sender; probes later than this are skipped.
const LATEST: Duration = Duration::from_millis(100);
const WARM_UP: Duration = Duration::from_secs(4);
const SENDER: usize = 0;
const RESPONDER: usize = 1;
const SESSIONS_OF_A_CONNECTION: usize = 10;
/// Sessions per source address.
const SESSIONS_OF_AN_ADDRESS: usize = 20_000;

/// Source, Sequence Number and receive time of a probe.
#[derive(Clone, Copy)]
struct Arrival {
    from: (u8, u16),
    sequence: u32,
    at_ns: u64,
}

/// Sessions, pace and parallel load of a run.
#[derive(Clone, Copy, Debug)]
struct Run {
    sessions: usize,
    interval: Duration,
    realtime_priority: u8,
    spin_before_deadline_us: u32,
    /// API calls per second, with records of the probes of each tenth session.
    beside: usize,
}

const fn run(
    sessions: usize,
    interval_ms: u64,
    (realtime_priority, spin_before_deadline_us): (u8, u32),
    beside: usize,
) -> Run {
    Run {
        sessions,
        interval: Duration::from_millis(interval_ms),
        realtime_priority,
        spin_before_deadline_us,
        beside,
    }
}

/// Runs of the schedule, followed by those of the growth.
const ROWS: [(&str, Run); 12] = [
    ("10,000 sessions, 10 probes/s each", run(10_000, 100, (0, 0), 0)),
    ("  the same with SCHED_FIFO", run(10_000, 100, (10, 0), 0)),
    ("  and 1,000 calls/s and records", run(10_000, 100, (10, 0), 1_000)),
    ("5,000 sessions, 10 probes/s each", run(5_000, 100, (0, 0), 0)),
    ("1,000 sessions, 1 probe/s each", run(1_000, 1_000, (0, 0), 0)),
    ("  the same, SCHED_FIFO, awake 200 us", run(1_000, 1_000, (10, 200), 0)),
    ("  and 1,000 calls/s and records", run(1_000, 1_000, (10, 200), 1_000)),
    ("  10 sessions", run(10, 1, (0, 0), 0)),
    ("  100 sessions", run(100, 10, (0, 0), 0)),
    ("  1,000 sessions", run(1_000, 100, (0, 0), 0)),
    ("  10,000 sessions", run(10_000, 1_000, (0, 0), 0)),
    ("  50,000 sessions", run(50_000, 5_000, (0, 0), 0)),
];
const SCHEDULE_ROWS: usize = 7;
/// Executes a single run.
const ROW: &str = "row";

fn main() {
    // `cargo bench` adds its own options.
    let seconds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(10);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, row, index, seconds] = &arguments[..]
        && row == ROW
    {
        let (name, run) = ROWS[index.parse::<usize>().expect("a row")];
        let length = Duration::from_secs(seconds.parse().expect("seconds"));
        raise_open_files();
        return runtime.block_on(schedule(name, run, length));
    }
    let length = Duration::from_secs(seconds);
    let files = raise_open_files();
    println!("round trip on idle loopback, 100 probes a second for 5 s, agent to agent");
    runtime.block_on(accuracy::idle_loopback());
    println!(
        "\nthrough a relay that holds each packet for 10 ms, 100 probes a second for {seconds} s"
    );
    runtime.block_on(accuracy::known_delays(length));

    println!(
        "\n{:<38}{:>9}{:>10}{:>10}{:>10}{:>10}{:>8}{:>9}{:>9}",
        "", "probes/s", "p50 us", "p99 us", "p99.9", "max us", "missed", "us CPU", "KiB"
    );
    println!("schedule");
    for (index, (name, run)) in ROWS.iter().enumerate() {
        if index == SCHEDULE_ROWS {
            bare::timer(length);
            bare::sockets(10_000, Duration::from_millis(100), Wake::Each(MILLISECOND), length);
            println!("growth, 10,000 probes/s in all");
        }
        if files < run.sessions as u64 + 1_000 {
            println!("{name:<38}not run: {files} open files are allowed");
            continue;
        }
        // Each run has its own process, so that its memory is measured alone.
        let this = std::env::current_exe().expect("this program");
        let row = std::process::Command::new(this)
            .args([ROW, &index.to_string(), &seconds.to_string()])
            .status();
        assert!(row.expect("a process").success(), "{name}");
    }
    bare::sockets(10_000, Duration::from_secs(1), Wake::Each(MILLISECOND), length);
    bare::sockets(10_000, Duration::from_secs(1), Wake::ForEachProbe, length);
}

fn duration(length: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(length).ok()
}

fn light(
    name: String,
    port: u16,
    session: &proto::TestSession,
    sessions: usize,
) -> proto::ControlConnection {
    let session = |index: usize| proto::TestSession {
        name: format!("s{index}"),
        destination_port: Some(port.into()),
        loss_timeout: duration(Duration::from_millis(500)),
        ..session.clone()
    };
    proto::ControlConnection {
        name,
        control_type: proto::ControlType::Light.into(),
        target_address: "127.0.0.1".into(),
        test_interval: duration(Duration::from_secs(1)),
        test_sessions: (0..sessions).map(session).collect(),
        ..proto::ControlConnection::default()
    }
}

struct Running {
    agent: Agent,
    endpoint: String,
    _directory: tempfile::TempDir,
}

async fn start(bootstrap: proto::AgentConfig, senders: PlaneSettings) -> Running {
    let directory = tempfile::tempdir().expect("a directory");
    let port = free_port().expect("a free port");
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], port)).into()];
    let options = Options {
        state_dir: directory.path().join("state"),
        api: ApiSettings { listen, ..ApiSettings::default() },
        senders,
        reflectors: PlaneSettings::default(),
        hardware_timestamp_interfaces: Vec::new(),
        clock_is_synchronised: false,
        bootstrap: Some(bootstrap),
    };
    let agent = Agent::start(options).await.expect("an agent");
    Running { agent, endpoint: format!("http://127.0.0.1:{port}"), _directory: directory }
}

async fn schedule(name: &str, run: Run, length: Duration) {
    let arrivals = Arc::new(Mutex::new(Vec::with_capacity(2_000_000)));
    let end = Arc::new(AtomicBool::new(false));
    let noting = Arc::new(AtomicBool::new(false));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let port = socket.local_addr().expect("an address").port();
    let responder = {
        let (arrivals, end, noting) = (arrivals.clone(), end.clone(), noting.clone());
        let body = move || {
            pin(RESPONDER);
            respond(&socket, &arrivals, &noting, &end);
        };
        thread::Builder::new().name("responder".into()).spawn(body).expect("a thread")
    };
    // One test that outlasts the observation.
    let probes = (length * 3 + WARM_UP * 2 + run.interval * 8).as_nanos() / run.interval.as_nanos();
    let of_each = run.sessions.min(SESSIONS_OF_A_CONNECTION);
    let connections = (0..run.sessions / of_each).map(|index| {
        let noted = run.beside > 0 && index % 10 == 0;
        let store = if noted { proto::StoreProbes::All } else { proto::StoreProbes::None };
        proto::ControlConnection {
            source_address: format!("127.0.0.{}", 1 + index * of_each / SESSIONS_OF_AN_ADDRESS),
            ..light(
                format!("c{index}"),
                port,
                &proto::TestSession {
                    probe_count: Some(u32::try_from(probes).unwrap_or(1_000).clamp(3, 1_000_000)),
                    probe_interval: duration(run.interval),
                    store_probes: store.into(),
                    ..proto::TestSession::default()
                },
                of_each,
            )
        }
    });
    let client = proto::ClientConfig { control_connections: connections.collect() };
    let config = proto::AgentConfig { client: Some(client), ..Default::default() };
    let memory = resident_kib();
    let scheduling =
        ThreadScheduling { cpus: vec![SENDER], realtime_priority: run.realtime_priority };
    let running = start(
        config,
        PlaneSettings {
            scheduling,
            spin_before_deadline_us: run.spin_before_deadline_us,
            ..PlaneSettings::default()
        },
    )
    .await;
    let mut clients = ClientServiceClient::connect(running.endpoint.clone())
        .await
        .expect("the API")
        .max_decoding_message_size(256 << 20);
    let begun = Instant::now();
    loop {
        let request = proto::ListConnectionsRequest::default();
        let all = clients.list_connections(request).await.expect("connections").into_inner();
        let up = |c: &proto::Connection| c.state() == proto::ConnectionState::Running;
        let not_up = all.connections.iter().find(|c| !up(c));
        if not_up.is_none() && all.connections.len() == run.sessions / of_each {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not run: {not_up:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Warm-up: the first probes of a session allocate its memory.
    tokio::time::sleep(WARM_UP.max(run.interval * 4)).await;
    let flood = (run.beside > 0).then(|| tokio::spawn(flood(running.endpoint.clone(), run.beside)));
    let memory = resident_kib().saturating_sub(memory);
    let left_out = probes_not_sent(&running.endpoint).await;
    noting.store(true, Relaxed);
    let (begun, cpu) = (Instant::now(), cpu_of("sender-0"));
    tokio::time::sleep(length).await;
    let (elapsed, cpu) = (begun.elapsed(), cpu_of("sender-0").saturating_sub(cpu));
    noting.store(false, Relaxed);
    let left_out = probes_not_sent(&running.endpoint).await.saturating_sub(left_out);
    end.store(true, Relaxed);
    if let Some(flood) = flood {
        flood.abort();
    }
    responder.join().expect("the responder");
    running.agent.stop().await;
    let arrivals = std::mem::take(&mut *arrivals.lock().expect("arrivals"));
    let mut late = lateness(&arrivals, run.interval);
    late.sort_unstable();
    let at = |part: f64| {
        late.get(((late.len().max(1) - 1) as f64 * part) as usize)
            .map_or(0.0, |ns| *ns as f64 / 1e3)
    };
    println!(
        "{name:<38}{:>9.0}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{left_out:>8}{:>9.2}{:>9.1}",
        arrivals.len() as f64 / elapsed.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        cpu.as_nanos() as f64 / 1e3 / arrivals.len().max(1) as f64,
        memory as f64 / run.sessions as f64,
    );
}

/// Returns the probes that running tests skipped as overdue.
async fn probes_not_sent(endpoint: &str) -> u64 {
    let results = ResultsServiceClient::connect(endpoint.to_owned()).await.expect("the API");
    let request = proto::GetStatisticsRequest {
        scopes: vec![proto::StatisticsScope::CurrentTest.into()],
        ..proto::GetStatisticsRequest::default()
    };
    let mut results = results.max_decoding_message_size(256 << 20);
    let found = results.get_statistics(request).await.expect("statistics").into_inner();
    let figures = found.statistics.iter().filter_map(|one| one.figures.as_ref());
    figures.map(|figures| figures.probes_not_sent).sum()
}

/// Returns the lateness of each probe against the grid of its session, which its earliest probe
/// anchors. Skipped probes have no Sequence Number, but only probes later than [`LATEST`] and than
/// their interval are skipped: the gaps then identify the slots.
fn lateness(arrivals: &[Arrival], interval: Duration) -> Vec<u64> {
    let interval_ns = interval.as_nanos() as u64;
    let latest_ns = interval_ns.max(LATEST.as_nanos() as u64);
    let mut sessions: HashMap<(u8, u16), Vec<(u32, u64)>> = HashMap::new();
    for arrival in arrivals {
        sessions.entry(arrival.from).or_default().push((arrival.sequence, arrival.at_ns));
    }
    let mut late = Vec::with_capacity(arrivals.len());
    for probes in sessions.values() {
        let (mut before, mut slot, mut places) = (probes[0], 0, Vec::with_capacity(probes.len()));
        for probe in probes {
            let gap_ns = probe.1.saturating_sub(before.1);
            slot += if gap_ns < latest_ns + interval_ns {
                u64::from(probe.0 - before.0)
            } else {
                (gap_ns + interval_ns / 2) / interval_ns
            };
            before = *probe;
            places.push(probe.1.saturating_sub(slot * interval_ns));
        }
        let grid = places.iter().min().copied().unwrap_or(0);
        late.extend(places.iter().map(|scheduling| scheduling - grid));
    }
    late
}

async fn flood(endpoint: String, calls_a_second: usize) {
    let mut client = AgentServiceClient::connect(endpoint).await.expect("the API");
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    loop {
        tick.tick().await;
        for _ in 0..calls_a_second / 100 {
            client.get_agent(proto::GetAgentRequest::default()).await.expect("an answer");
        }
    }
}

fn resident_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

fn respond(
    socket: &UdpSocket,
    arrivals: &Mutex<Vec<Arrival>>,
    noting: &AtomicBool,
    end: &AtomicBool,
) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    setsockopt(socket, sockopt::ReceiveTimestampns, &true).expect("stamps");
    setsockopt(socket, sockopt::RcvBuf, &(4 << 20)).expect("a buffer");
    let format = PacketFormat::open();
    let mut buffers = vec![[0u8; 2048]; BATCH];
    let mut replies = vec![[0u8; 64]; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, Some(cmsg_space!(TimeSpec)));
    let mut out = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut arrivals = arrivals.lock().expect("arrivals");
    while !end.load(Relaxed) {
        let mut to = [None::<SockaddrIn>; BATCH];
        let mut count = 0;
        {
            let mut views: Vec<[IoSliceMut<'_>; 1]> =
                buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let flags = MsgFlags::MSG_WAITFORONE;
            let received = recvmmsg(socket.as_raw_fd(), &mut headers, &mut views, flags, None);
            let Ok(received) = received else { continue };
            for message in received {
                let mut at_ns = 0;
                for cmsg in message.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmTimestampns(stamp) = cmsg {
                        at_ns = stamp.tv_sec() as u64 * 1_000_000_000 + stamp.tv_nsec() as u64;
                    }
                }
                let packet = message.iovs().next().unwrap_or(&[]);
                let (Some(from), Ok(probe)) = (message.address, format.read_probe(packet)) else {
                    continue;
                };
                if noting.load(Relaxed) {
                    let from = (from.ip().octets()[3], from.port());
                    arrivals.push(Arrival { from, sequence: probe.sequence, at_ns });
                }
                let timestamp = twamp_agent::time::TimestampFormat::Ntp.encode(UnixTime(at_ns));
                let header = ReplyHeader {
                    sequence: probe.sequence,
                    timestamp,
                    error_estimate: ErrorEstimate(0x8a64),
                    receive_timestamp: timestamp,
                    probe,
                    sender_ttl: 255,
                    sender_tos: None,
                };
                format.write_reply(&header, &mut replies[count]);
                format.finish_reply(timestamp, &mut replies[count]);
                to[count] = Some(from);
                count += 1;
            }
        }
        let octets = format.reply_octets();
        let slices: Vec<[IoSlice<'_>; 1]> =
            replies[..count].iter().map(|reply| [IoSlice::new(&reply[..octets])]).collect();
        let flags = MsgFlags::empty();
        let _ = sendmmsg(socket.as_raw_fd(), &mut out, &slices, &to[..count], [], flags)
            .map(Iterator::count);
    }
}
