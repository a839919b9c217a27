//! Endpoints that report each call.

use std::{
    sync::mpsc::{Sender, channel},
    time::Duration,
};

use super::*;
use crate::{
    net::{UdpOptions, clock},
    time::UnixTime,
};

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Handled(u8),
    Received(usize),
    Due,
    Over,
}

struct Reporter {
    seen: Sender<Seen>,
    socket: TestSocket,
    due: Option<Monotonic>,
}

impl Endpoint for Reporter {
    type Command = u8;

    const POLL_COALESCE_NS: u64 = 1_000_000;

    fn socket(&self) -> Option<&TestSocket> {
        Some(&self.socket)
    }

    fn handle_command(&mut self, command: u8) {
        assert_ne!(command, 13, "bad luck");
        let _ = self.seen.send(Seen::Handled(command));
    }

    fn receive(&mut self) -> Drained {
        let mut packets = 0;
        let drained = self.socket.receive(|_, _| packets += 1).unwrap();
        let _ = self.seen.send(Seen::Received(packets));
        drained
    }

    fn advance(&mut self, now: Now) {
        if self.due.is_some_and(|due| due <= now.monotonic) {
            self.due = None;
            let _ = self.seen.send(Seen::Due);
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        self.due
    }

    fn end(&mut self) {
        let _ = self.seen.send(Seen::Over);
    }
}

fn socket() -> TestSocket {
    TestSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap()
}

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_receives_commands_packets_deadlines_and_its_end() {
    let plane = Plane::start("test", PlaneSettings::default()).unwrap();
    let (seen, saw) = channel();
    let (socket, other) = (socket(), socket());
    let to = socket.local();
    let due = Some(clock::monotonic().plus_ns(20_000_000));
    let reporter = Reporter { seen, socket, due };
    let (handle, ended) = plane.spawn(|_| reporter, None, 4).unwrap();
    for command in 0..12 {
        handle.send(command).await.unwrap();
        assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Handled(command)), "before it is due");
    }
    assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Due));
    // More packets than one read returns.
    for _ in 0..100 {
        other.send(&[0; 41], to).unwrap();
    }
    let mut received = 0;
    while received < 100 {
        let Ok(Seen::Received(packets)) = saw.recv_timeout(LIMIT) else { panic!("{received}") };
        received += packets;
    }
    let clone = handle.clone();
    drop(handle);
    assert!(clone.try_send(12), "one handle is left");
    // The thread may have polled once more and found nothing.
    let mut next = saw.recv_timeout(LIMIT);
    if next == Ok(Seen::Received(0)) {
        next = saw.recv_timeout(LIMIT);
    }
    assert_eq!(next, Ok(Seen::Handled(12)));
    drop(clone);
    assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Over));
    assert!(matches!(ended.await, Ok(Exit::Clean)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_only_its_endpoint() {
    let plane = Plane::start("test", PlaneSettings::default()).unwrap();
    let (seen, saw) = channel();
    let reporter = |seen| Reporter { seen, socket: socket(), due: None };
    let (bad, bad_ended) = plane.spawn(|_| reporter(channel().0), Some(0), 4).unwrap();
    let (good, _good_ended) = plane.spawn(|_| reporter(seen), Some(0), 4).unwrap();
    bad.send(13).await.unwrap();
    let Ok(Exit::Panicked(text)) = bad_ended.await else { panic!("the endpoint goes on") };
    assert!(text.contains("bad luck"), "{text}");
    assert!(bad.is_closed() && bad.send(1).await == Err(1));
    good.send(1).await.unwrap();
    assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Handled(1)));
    // Dropping the plane ends all endpoints.
    drop(plane);
    assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Over));
}

/// Numbers stay right after a packet that the kernel rejects.
#[test]
fn transmit_timestamps_match_packets_in_order() {
    use crate::net::{StampNumbers, TransmitStamps};
    for (address, host) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("[::1]:0", "::1"),
        ("0.0.0.0:0", "127.0.0.1"),
        ("[::]:0", "::1"),
    ] {
        let transmit_stamps = TransmitStamps::Numbered;
        let options = UdpOptions { transmit_stamps, ..UdpOptions::default() };
        let socket = TestSocket::bind(address.parse().unwrap(), &options).unwrap();
        let to = std::net::SocketAddr::new(host.parse().unwrap(), socket.local().port());
        let mut stamps: Vec<(u32, UnixTime)> = Vec::new();
        let mut numbers = StampNumbers::default();
        let begun = clock::unix();
        for _ in 0..3 {
            for _ in 0..20 {
                socket.send(&[0; 41], to).unwrap();
                numbers.sent();
            }
            let now = clock::monotonic();
            while numbers.is_pending() {
                socket.transmitted(|number, at, _| {
                    stamps.extend(numbers.packet(number, now).map(|packet| (packet, at)));
                });
            }
            // Longer than the largest datagram.
            socket.send(&vec![0; 65_530], to).unwrap_err();
            socket.restart_numbers(|_, _, _| panic!("no timestamp is pending")).unwrap();
            numbers.restart(now);
        }
        assert_eq!(
            stamps.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
            (0..60).collect::<Vec<_>>()
        );
        assert!(stamps.iter().all(|(_, at)| *at >= begun && *at <= clock::unix()));
    }
}

/// New endpoints arrive while the thread takes over others.
#[tokio::test(flavor = "multi_thread")]
async fn no_command_to_a_new_endpoint_is_lost() {
    let plane = Plane::start("test", PlaneSettings::default()).unwrap();
    for _ in 0..2_000 {
        let (seen, saw) = channel();
        let reporter = Reporter { seen, socket: socket(), due: None };
        let (handle, _ended) = plane.spawn(|_| reporter, None, 4).unwrap();
        handle.send(1).await.unwrap();
        assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Handled(1)));
    }
}
