//! Server role over loopback, with a client that sends raw octets.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;
use twamp_agent::{
    model::{self, ServerConfig},
    net::free_port,
    proto,
    session::{
        PlaneSettings,
        server::{Reflectors, Registry, ServerRole},
    },
    supervise::{Heartbeat, Tasks},
};

const LIMIT: Duration = Duration::from_secs(5);

struct Server {
    address: SocketAddr,
    registry: Arc<Registry>,
    tasks: Tasks,
    config: watch::Sender<Option<Arc<ServerConfig>>>,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start(change: impl FnOnce(&mut proto::ServerConfig)) -> Self {
        let port = free_port().unwrap();
        let mut document = proto::ServerConfig {
            listen: vec![proto::ListenAddress {
                address: "127.0.0.1".into(),
                port: Some(port.into()),
                ..Default::default()
            }],
            client_list: vec![proto::ClientList {
                name: "local".into(),
                prefixes: vec!["127.0.0.0/8".into()],
            }],
            ..Default::default()
        };
        change(&mut document);
        let document = proto::AgentConfig { server: Some(document), ..Default::default() };
        let config = model::parse(&document).unwrap().server;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let reflectors = Reflectors::start(PlaneSettings::default()).unwrap();
        let (tasks, registry) = (Tasks::new(), Registry::new(reflectors.counters()));
        let (config, receiver) = watch::channel(config);
        let (applied, mut in_force) = watch::channel(None);
        {
            let _inside = runtime.enter();
            let role = ServerRole::new(registry.clone(), reflectors, receiver, &tasks);
            tasks.spawn("server role", role.run(applied, Heartbeat::default()));
        }
        runtime.block_on(in_force.wait_for(Option::is_some)).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self { address, registry, tasks, config, runtime }
    }

    fn connect(&self) -> Control {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut control = Control { stream, greeting: Vec::new(), start: Vec::new() };
        control.greeting = control.read(64);
        let mut response = vec![0; 164];
        response[3] = 1;
        control.stream.write_all(&response).unwrap();
        control.start = control.read(48);
        assert_eq!(control.start[15], 0);
        control
    }

    fn wait(&self, what: impl Fn(&Registry) -> bool) {
        for _ in 0..500 {
            if what(&self.registry) {
                return;
            }
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{:?} {:?}", self.registry.status(), self.registry.sessions(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.config.send_replace(None);
        assert!(self.runtime.block_on(self.tasks.end(LIMIT)), "all tasks end");
    }
}

struct Control {
    stream: TcpStream,
    greeting: Vec<u8>,
    start: Vec<u8>,
}

struct Accepted {
    accept: u8,
    port: u16,
    sid: [u8; 16],
}

impl Control {
    fn read(&mut self, octets: usize) -> Vec<u8> {
        let mut buffer = vec![0; octets];
        self.stream.read_exact(&mut buffer).unwrap();
        buffer
    }

    fn request(&mut self, udp: &UdpSocket, change: impl FnOnce(&mut [u8])) -> Accepted {
        let port = udp.local_addr().unwrap().port();
        let mut request = vec![0; 112];
        request[..2].copy_from_slice(&[5, 4]);
        request[12..14].copy_from_slice(&port.to_be_bytes());
        request[14..16].copy_from_slice(&port.to_be_bytes());
        request[64..68].copy_from_slice(&27u32.to_be_bytes());
        request[76..84].copy_from_slice(&(1u64 << 32).to_be_bytes());
        change(&mut request);
        self.stream.write_all(&request).unwrap();
        let answer = self.read(48);
        Accepted {
            accept: answer[0],
            port: u16::from_be_bytes([answer[2], answer[3]]),
            sid: answer[4..20].try_into().unwrap(),
        }
    }

    fn start(&mut self) {
        let mut start = vec![0; 32];
        start[0] = 2;
        self.stream.write_all(&start).unwrap();
        assert_eq!(self.read(32), vec![0; 32]);
    }

    fn stop(&mut self, sessions: u32) {
        let mut stop = vec![0; 32];
        stop[0] = 3;
        stop[4..8].copy_from_slice(&sessions.to_be_bytes());
        self.stream.write_all(&stop).unwrap();
    }
}

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn probe(sequence: u32) -> Vec<u8> {
    let mut packet = vec![0; 41];
    packet[..4].copy_from_slice(&sequence.to_be_bytes());
    packet[4] = 0xe8;
    packet[13] = 1;
    packet
}

fn reflected(udp: &UdpSocket, port: u16, sequence: u32) -> Vec<u8> {
    udp.send_to(&probe(sequence), ("127.0.0.1", port)).unwrap();
    let mut buffer = [0; 100];
    let (octets, from) = udp.recv_from(&mut buffer).unwrap();
    // Items 90 and 96: the reply goes from the receiving port to the sending port.
    assert_eq!(from, SocketAddr::from(([127, 0, 0, 1], port)));
    buffer[..octets].to_vec()
}

fn is_silent(udp: &UdpSocket, port: u16) -> bool {
    udp.send_to(&probe(99), ("127.0.0.1", port)).unwrap();
    udp.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let silent = udp.recv(&mut [0; 100]).is_err();
    udp.set_read_timeout(Some(LIMIT)).unwrap();
    silent
}

#[test]
fn conformance_003_018_salt_and_challenge_differ_and_start_time_does_not() {
    let server = Server::start(|_| {});
    let (a, b) = (server.connect(), server.connect());
    assert_ne!(a.greeting[16..32], b.greeting[16..32]);
    assert_ne!(a.greeting[32..48], b.greeting[32..48]);
    assert_eq!(a.start[32..40], b.start[32..40]);
}

#[test]
fn conformance_043_045_053_063_084_087_090_a_session_and_a_second_round() {
    let server = Server::start(|_| {});
    let mut control = server.connect();
    for _ in 0..2 {
        let udp = udp();
        let accepted = control.request(&udp, |_| {});
        assert_eq!(accepted.accept, 0);
        assert_ne!(accepted.port, 0, "the port asked for is taken by its sender on this host");
        control.start();
        for sequence in 0..3 {
            let reply = reflected(&udp, accepted.port, sequence);
            assert_eq!(reply[..4], sequence.to_be_bytes());
            let time = |at: usize| u64::from_be_bytes(reply[at..at + 8].try_into().unwrap());
            assert!(time(16) <= time(4), "T2 before T3");
        }
        control.stop(1);
    }
}

#[test]
fn conformance_046_session_identifiers_are_unique() {
    let server = Server::start(|server| {
        server.maximum_sessions = Some(100_000);
        server.maximum_sessions_per_connection = Some(1024);
    });
    let mut control = server.connect();
    let mut seen = HashSet::new();
    for port in 20_000..20_500u16 {
        let accepted = control.request(&udp(), |octets| {
            octets[12..14].copy_from_slice(&port.to_be_bytes());
        });
        assert_eq!(accepted.sid[..4], [127, 0, 0, 1]);
        assert!(seen.insert(accepted.sid));
    }
}

#[test]
fn conformance_047_replies_carry_the_dscp_of_the_request() {
    let server = Server::start(|_| {});
    let mut control = server.connect();
    let udp = udp();
    let accepted = control.request(&udp, |octets| octets[84] = 46);
    control.start();
    reflected(&udp, accepted.port, 0);
    assert_eq!(server.registry.sessions(0)[0].dscp, 46);
}

#[test]
fn conformance_049_third_parties_are_declined() {
    let server = Server::start(|_| {});
    let mut control = server.connect();
    let other_sender = |octets: &mut [u8]| octets[16..20].copy_from_slice(&[192, 0, 2, 1]);
    let other_receiver = |octets: &mut [u8]| octets[32..36].copy_from_slice(&[192, 0, 2, 2]);
    assert_eq!(control.request(&udp(), other_sender).accept, 3);
    assert_eq!(control.request(&udp(), other_receiver).accept, 3);
    let itself = |octets: &mut [u8]| octets[16..20].copy_from_slice(&[127, 0, 0, 1]);
    assert_eq!(control.request(&udp(), itself).accept, 0);
}

#[test]
fn conformance_050_limits() {
    let server = Server::start(|server| {
        server.maximum_connections_per_client = Some(2);
        server.maximum_sessions = Some(3);
        server.maximum_sessions_per_connection = Some(2);
    });
    let (mut a, mut b) = (server.connect(), server.connect());
    let mut third = TcpStream::connect(server.address).unwrap();
    third.set_read_timeout(Some(LIMIT)).unwrap();
    let mut greeting = Vec::new();
    third.read_to_end(&mut greeting).unwrap();
    assert_eq!((greeting.len(), &greeting[12..16]), (64, &[0; 4][..]), "no mode, and the close");
    assert_eq!(a.request(&udp(), |_| {}).accept, 0);
    assert_eq!(a.request(&udp(), |_| {}).accept, 0);
    let over = a.request(&udp(), |_| {});
    assert_eq!((over.accept, over.port, over.sid), (4, 0, [0; 16]));
    assert_eq!(b.request(&udp(), |_| {}).accept, 0);
    assert_eq!(b.request(&udp(), |_| {}).accept, 5);
    let refused = server.registry.status().connections_refused;
    assert_eq!((refused.len(), refused[0].count), (1, 1));
    // Ended connections do not count.
    drop(a);
    server.wait(|registry| registry.status().sessions_open == 1);
    assert_eq!(b.request(&udp(), |_| {}).accept, 0);
}

#[test]
fn a_client_that_is_not_listed_is_closed_without_a_word() {
    let server = Server::start(|server| {
        server.client_list[0].prefixes = vec!["192.0.2.0/24".into()];
    });
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(stream.read(&mut [0; 64]).unwrap_or(0), 0);
    server.wait(|registry| registry.status().connections_refused.len() == 1);
}

#[test]
fn conformance_051_056_the_port_is_bound_and_silent_before_start() {
    let server = Server::start(|_| {});
    let mut control = server.connect();
    let udp = udp();
    let accepted = control.request(&udp, |_| {});
    let taken = UdpSocket::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), accepted.port));
    assert!(taken.is_err(), "bound before Accept-Session");
    assert!(is_silent(&udp, accepted.port));
    control.start();
    let reply = reflected(&udp, accepted.port, 5);
    assert_eq!(reply[..4], [0; 4], "what came before the start has no number");
}

#[test]
fn conformance_061_062_drains_for_the_timeout() {
    let server = Server::start(|_| {});
    let mut control = server.connect();
    let udp = udp();
    let accepted = control.request(&udp, |_| {});
    control.start();
    reflected(&udp, accepted.port, 0);
    control.stop(1);
    // The request named one second.
    server.wait(|registry| registry.sessions(0).iter().all(|s| s.state == 3));
    reflected(&udp, accepted.port, 1);
    server.wait(|registry| registry.sessions(0).is_empty());
    assert!(is_silent(&udp, accepted.port));
}

/// Sessions end to the millisecond, not at the next periodic check.
#[test]
fn conformance_062_beyond_the_timeout_nothing_is_answered() {
    let server = Server::start(|_| {});
    for (sessions, round) in [(1, 0), (1, 1), (1, 2), (0, 3), (65_536, 4)] {
        let mut control = server.connect();
        let udp = udp();
        // A timeout of 1/16 s.
        let accepted = control.request(&udp, |octets| {
            octets[76..84].copy_from_slice(&(1u64 << 28).to_be_bytes());
        });
        control.start();
        reflected(&udp, accepted.port, 0);
        control.stop(sessions);
        // Also with a wrong number in Stop-Sessions.
        reflected(&udp, accepted.port, 1);
        udp.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        assert!(udp.recv(&mut [0; 100]).is_err(), "two answers to one packet");
        assert!(is_silent(&udp, accepted.port), "round {round}");
    }
    assert_eq!(server.registry.status().irregular_stops, 2);
}

#[test]
fn conformance_065_refwait_frees_the_port() {
    let server = Server::start(|server| {
        server.refwait = Some(prost_types::Duration { seconds: 1, nanos: 0 });
        server.server_inactivity_timeout = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    });
    let mut control = server.connect();
    let udp = udp();
    let accepted = control.request(&udp, |_| {});
    control.start();
    reflected(&udp, accepted.port, 0);
    server.wait(|registry| registry.sessions(0).is_empty());
    assert!(is_silent(&udp, accepted.port));
    // Item 66: SERVWAIT then ends the connection.
    assert_eq!(control.stream.read(&mut [0; 64]).unwrap(), 0);
}

#[test]
fn conformance_067_sessions_end_with_the_connection() {
    let server = Server::start(|_| {});
    let udp = udp();
    let port = {
        let mut control = server.connect();
        let accepted = control.request(&udp, |_| {});
        control.start();
        reflected(&udp, accepted.port, 0);
        accepted.port
    };
    server.wait(|registry| registry.sessions(0).is_empty() && registry.connections().is_empty());
    assert!(is_silent(&udp, port));
}

#[test]
fn conformance_091_other_senders_are_not_answered() {
    let server = Server::start(|_| {});
    let mut control = server.connect();
    let (stranger, udp) = (udp(), udp());
    let accepted = control.request(&udp, |_| {});
    control.start();
    assert!(is_silent(&stranger, accepted.port));
    reflected(&udp, accepted.port, 0);
}

#[test]
fn ports_of_a_range() {
    let low = free_port().unwrap().min(60_000);
    let server = Server::start(|server| {
        server.test_port = Some(proto::TestPort {
            mode: proto::TestPortMode::Range.into(),
            shared_port: None,
            range_min: Some(low.into()),
            range_max: Some(u32::from(low) + 20),
        });
    });
    let mut control = server.connect();
    for _ in 0..5 {
        let accepted = control.request(&udp(), |_| {});
        assert_eq!(accepted.accept, 0);
        assert!((low..=low + 20).contains(&accepted.port), "{}", accepted.port);
    }
}
