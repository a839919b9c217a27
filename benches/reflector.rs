//! Packets per second, CPU per packet and response time of the reflector, compared with a bare
//! `recvmmsg`/`sendmmsg` echo on the same machine in the same run. The ratio counts.
//!
//! `cargo bench --bench reflector [-- SECONDS]`

#![allow(clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::mpsc,
    thread,
    time::Duration,
};

use common::{Echo, Load, cpu_of, flow, load, median, pin};
use tokio::sync::watch;
use twamp_agent::{
    model::parse,
    net::{ThreadScheduling, free_port},
    proto,
    session::{
        PlaneSettings,
        server::{Reflectors, Registry, ServerRole},
    },
    supervise::{Heartbeat, Tasks},
    time::{ErrorEstimate, Monotonic, TimestampFormat, UnixTime},
    twamp::control_client::{ClientAction, ClientOptions, ControlClient, SessionRequest},
    wire::{
        codes::Modes,
        crypto::{SessionKeys, TokenKey},
        format::{PacketFormat, ProbeHeader},
    },
};

const OCTETS: usize = 64;
const ROUNDS: usize = 5;
/// CPUs of the subject and of the generator.
const SUBJECT: usize = 0;
const GENERATOR: usize = 1;
const SECRET: &str = "correct horse battery staple";

#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    per_second: f64,
    cpu_ns: f64,
    rtt_ns: f64,
}

/// Sessions of the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Echo,
    Light,
    Session(Modes),
}

fn main() {
    // `cargo bench` adds its own options.
    let seconds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(2);
    let length = Duration::from_secs(seconds);
    let server = Server::start();
    pin(GENERATOR);
    let cases = [
        ("echo", Kind::Echo),
        ("light", Kind::Light),
        ("unauthenticated", Kind::Session(Modes::UNAUTHENTICATED)),
        ("authenticated", Kind::Session(Modes::AUTHENTICATED)),
        ("encrypted", Kind::Session(Modes::ENCRYPTED)),
    ];
    for (flows, outstanding) in [(1, 32), (16, 4), (1, 1)] {
        let shape = Load { flows, outstanding, length };
        let mut rounds: Vec<Vec<Figures>> = vec![Vec::new(); cases.len()];
        for _ in 0..ROUNDS {
            for (case, (_, kind)) in cases.iter().enumerate() {
                rounds[case].push(server.run(*kind, shape));
            }
        }
        println!("{flows} flows, {outstanding} packets of {OCTETS} octets under way in each:");
        println!(
            "{:<18}{:>11}{:>8}{:>10}{:>8}{:>10}{:>8}",
            "", "packets/s", "ratio", "ns CPU", "ratio", "ns RTT", "ratio"
        );
        let of = |case: usize, figure: fn(&Figures) -> f64| {
            median(&mut rounds[case].iter().map(figure).collect::<Vec<_>>())
        };
        // Ratios of each round to the echo of that round.
        let ratio = |case: usize, figure: fn(&Figures) -> f64| {
            let pairs = rounds[case].iter().zip(&rounds[0]);
            median(&mut pairs.map(|(one, echo)| figure(one) / figure(echo)).collect::<Vec<_>>())
        };
        for (case, (name, _)) in cases.iter().enumerate() {
            print!(
                "{name:<18}{:>11.0}{:>8.2}{:>10.0}{:>8.2}",
                of(case, |f| f.per_second),
                ratio(case, |f| f.per_second),
                of(case, |f| f.cpu_ns),
                ratio(case, |f| f.cpu_ns),
            );
            if outstanding == 1 {
                print!("{:>10.0}{:>8.2}", of(case, |f| f.rtt_ns), ratio(case, |f| f.rtt_ns));
            }
            println!();
        }
        let cpu: fn(&Figures) -> f64 = |f| f.cpu_ns;
        println!(
            "authenticated and encrypted beside unauthenticated: {:.2} and {:.2} times the CPU\n",
            of(3, cpu) / of(2, cpu),
            of(4, cpu) / of(2, cpu)
        );
    }
}

/// Server role with one reflector thread.
struct Server {
    control: SocketAddr,
    light: SocketAddr,
    _end: tokio::sync::oneshot::Sender<()>,
}

impl Server {
    fn start() -> Self {
        let ports = [free_port(), free_port()].map(|port| port.expect("a free port"));
        let at = |port: u16| proto::ListenAddress {
            address: "127.0.0.1".into(),
            port: Some(port.into()),
            ..Default::default()
        };
        let all: Vec<String> = vec!["127.0.0.0/8".into()];
        let modes = [
            proto::AuthenticationMode::None,
            proto::AuthenticationMode::Authenticated,
            proto::AuthenticationMode::Encrypted,
        ];
        let key =
            proto::Key { key_id: "bench".into(), secret: SECRET.into(), ..Default::default() };
        let server = proto::ServerConfig {
            listen: vec![at(ports[0])],
            client_list: vec![proto::ClientList { name: "all".into(), prefixes: all.clone() }],
            authentication_modes: modes.map(Into::into).to_vec(),
            key_chains: vec![proto::KeyChain { name: "bench".into(), keys: vec![key] }],
            light: Some(proto::LightReflector {
                listen: vec![at(ports[1])],
                prefixes: all,
                stateful: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        let document = proto::AgentConfig { server: Some(server), ..Default::default() };
        let config = parse(&document).expect("a configuration").server;
        let scheduling = ThreadScheduling { cpus: vec![SUBJECT], ..ThreadScheduling::default() };
        let settings = PlaneSettings { scheduling, ..PlaneSettings::default() };
        let reflectors = Reflectors::start(settings).expect("threads");
        let (ready, is_ready) = mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let tasks = Tasks::new();
                let (_config, receiver) = watch::channel(config);
                let (applied, mut in_force) = watch::channel(None);
                let registry = Registry::new(reflectors.counters());
                let role = ServerRole::new(registry, reflectors, receiver, &tasks);
                tasks.spawn("role", role.run(applied, Heartbeat::default()));
                in_force.wait_for(Option::is_some).await.expect("the role");
                ready.send(()).expect("the main thread");
                let _ = ended.await;
                tasks.end(Duration::from_secs(5)).await;
            });
        });
        is_ready.recv().expect("the role");
        let [control, light] = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Self { control, light, _end: end }
    }

    fn run(&self, kind: Kind, shape: Load) -> Figures {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let (name, seen, cpu);
        match kind {
            Kind::Echo => {
                let echo = Echo::start(SUBJECT);
                let flows = open_flows(echo.address, local, shape);
                name = "echo";
                let before = cpu_of(name);
                seen = load(&flows, shape);
                cpu = cpu_of(name).saturating_sub(before);
            }
            Kind::Light => {
                name = "reflector-0";
                let flows = open_flows(self.light, local, shape);
                let before = cpu_of(name);
                seen = load(&flows, shape);
                cpu = cpu_of(name).saturating_sub(before);
            }
            Kind::Session(modes) => {
                name = "reflector-0";
                // Each flow is a session with its own keys.
                let sessions: Vec<Session> =
                    (0..shape.flows).map(|_| Session::negotiate(self.control, modes)).collect();
                let own = |session: &Session| {
                    (session.socket.try_clone().expect("a socket"), probe(&session.format))
                };
                let flows: Vec<_> = sessions.iter().map(own).collect();
                let before = cpu_of(name);
                seen = load(&flows, shape);
                cpu = cpu_of(name).saturating_sub(before);
            }
        }
        Figures {
            per_second: seen.per_second,
            cpu_ns: cpu.as_nanos() as f64 / seen.answers.max(1) as f64,
            rtt_ns: seen.median_rtt_ns as f64,
        }
    }
}

fn open_flows(target: SocketAddr, local: SocketAddr, shape: Load) -> Vec<(UdpSocket, Vec<u8>)> {
    let packet = probe(&PacketFormat::open());
    (0..shape.flows).map(|_| (flow(target, local), packet.clone())).collect()
}

fn probe(format: &PacketFormat) -> Vec<u8> {
    let mut packet = vec![0; OCTETS.max(format.probe_octets())];
    let header = ProbeHeader {
        sequence: 1,
        timestamp: TimestampFormat::Ntp.encode(UnixTime(1_700_000_000_000_000_000)),
        error_estimate: ErrorEstimate(0x8a64),
        ssid: 0,
    };
    format.write_probe(&header, &mut packet);
    packet
}

/// Negotiates a session over TWAMP-Control.
struct Session {
    _control: TcpStream,
    socket: UdpSocket,
    format: PacketFormat,
}

impl Session {
    fn negotiate(server: SocketAddr, security: Modes) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = socket.local_addr().expect("an address").port();
        let mut stream = TcpStream::connect(server).expect("the server");
        let any = Ipv4Addr::UNSPECIFIED.into();
        let request = SessionRequest {
            sender_address: any,
            sender_port: port,
            receiver_address: any,
            receiver_port: port,
            data_size: OCTETS as u16,
            reflected_length: 0,
            dscp: 0,
            timeout_ns: 1_000_000_000,
        };
        let options = ClientOptions {
            security,
            extensions: Modes::default(),
            key_id: "bench".into(),
            maximum_count: 1 << 20,
            response_timeout_ns: u64::MAX / 2,
            key_timeout_ns: u64::MAX / 2,
            keys: SessionKeys::new([1; 16], [2; 32]),
            client_iv: [3; 16],
            reflected_octets: 0,
        };
        let now = Monotonic(0);
        let mut machine = ControlClient::new(vec![request], options, now);
        let mut found = None;
        loop {
            while let Some(action) = machine.poll_action() {
                match action {
                    ClientAction::Send(octets) => stream.write_all(&octets).expect("sent"),
                    ClientAction::DeriveKey { salt, count } => {
                        machine
                            .key_derived(&TokenKey::derive(SECRET.as_bytes(), &salt, count), now);
                    }
                    ClientAction::Accepted(accepted) => found = Some(accepted),
                    ClientAction::Started => {
                        let accepted = found.expect("accepted");
                        socket
                            .connect(SocketAddr::new(server.ip(), accepted.port))
                            .expect("a route");
                        socket.set_nonblocking(true).expect("non-blocking");
                        return Self { _control: stream, socket, format: accepted.format };
                    }
                    ClientAction::Refused(..) | ClientAction::Stopped | ClientAction::Failed(_) => {
                        panic!("{action:?}");
                    }
                }
            }
            let mut buffer = [0; 1024];
            let octets = stream.read(&mut buffer).expect("read");
            assert!(octets > 0, "closed by the server");
            machine.handle_input(&buffer[..octets], now);
        }
    }
}
