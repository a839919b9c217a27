//! Endpoints that do nothing but tell what was asked of them.

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
    Obeyed(u8),
    Received(usize),
    Due,
    Over,
}

struct Teller {
    seen: Sender<Seen>,
    socket: TestSocket,
    due: Option<Monotonic>,
}

impl Endpoint for Teller {
    type Command = u8;

    const PATIENCE_NS: u64 = 1_000_000;

    fn socket(&self) -> Option<&TestSocket> {
        Some(&self.socket)
    }

    fn obey(&mut self, command: u8) {
        assert_ne!(command, 13, "bad luck");
        let _ = self.seen.send(Seen::Obeyed(command));
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
async fn an_endpoint_is_told_of_commands_packets_times_and_its_end() {
    let plane = Plane::start("test", PlaneSettings::default()).unwrap();
    let (seen, saw) = channel();
    let (socket, other) = (socket(), socket());
    let to = socket.local();
    let due = Some(clock::monotonic().plus_ns(20_000_000));
    let teller = Teller { seen, socket, due };
    let (handle, ended) = plane.spawn(|_| teller, None, 4).unwrap();
    for command in 0..12 {
        handle.tell(command).await.unwrap();
        assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Obeyed(command)), "before it is due");
    }
    assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Due));
    // More than are read at once.
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
    assert!(clone.try_tell(12), "one handle is left");
    // It may have looked once more, and found nothing.
    let mut next = saw.recv_timeout(LIMIT);
    if next == Ok(Seen::Received(0)) {
        next = saw.recv_timeout(LIMIT);
    }
    assert_eq!(next, Ok(Seen::Obeyed(12)));
    drop(clone);
    assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Over));
    assert!(matches!(ended.await, Ok(Ended::InForm)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_panics_is_gone_and_its_neighbour_is_not() {
    let plane = Plane::start("test", PlaneSettings::default()).unwrap();
    let (seen, saw) = channel();
    let teller = |seen| Teller { seen, socket: socket(), due: None };
    let (bad, bad_ended) = plane.spawn(|_| teller(channel().0), Some(0), 4).unwrap();
    let (good, _good_ended) = plane.spawn(|_| teller(seen), Some(0), 4).unwrap();
    bad.tell(13).await.unwrap();
    let Ok(Ended::Panicked(text)) = bad_ended.await else { panic!("it goes on") };
    assert!(text.contains("bad luck"), "{text}");
    assert!(bad.is_closed() && bad.tell(1).await == Err(1));
    good.tell(1).await.unwrap();
    assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Obeyed(1)));
    // All end with the plane.
    drop(plane);
    assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Over));
}

/// Each packet out is told with its number, also behind one that the kernel did not take.
#[test]
fn packets_that_went_out_are_numbered() {
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
        let mut told: Vec<(u32, UnixTime)> = Vec::new();
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
                    told.extend(numbers.packet(number, now).map(|packet| (packet, at)));
                });
            }
            // Longer than any datagram.
            socket.send(&vec![0; 65_530], to).unwrap_err();
            socket.restart_numbers(|_, _, _| panic!("all were told")).unwrap();
            numbers.restart(now);
        }
        assert_eq!(
            told.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
            (0..60).collect::<Vec<_>>()
        );
        assert!(told.iter().all(|(_, at)| *at >= begun && *at <= clock::unix()));
    }
}

/// Endpoints that come while their thread takes up others are told what they are told.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_newcomer_is_told_is_lost() {
    let plane = Plane::start("test", PlaneSettings::default()).unwrap();
    for _ in 0..2_000 {
        let (seen, saw) = channel();
        let teller = Teller { seen, socket: socket(), due: None };
        let (handle, _ended) = plane.spawn(|_| teller, None, 4).unwrap();
        handle.tell(1).await.unwrap();
        assert_eq!(saw.recv_timeout(LIMIT), Ok(Seen::Obeyed(1)));
    }
}
