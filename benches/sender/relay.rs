//! A path with known delays: a relay that holds each packet and records the time by kernel
//! timestamps. The excess of a reported RTT over the record is due to the agent and the network
//! stack.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use twamp_agent::{
    net::{Poller, TestSocket, TransmitStamps, UdpOptions, clock},
    time::StampSource,
};

/// Offset of the probe's Sequence Number in an open reply.
const SENDER_SEQUENCE: usize = 24;

/// Time for which each probe and its reply were held, by Sequence Number, nanoseconds.
type Held = HashMap<u32, (u64, u64)>;

/// One direction of the relay.
struct Way {
    from: TestSocket,
    /// Offset of the probe's Sequence Number.
    sequence: usize,
    waiting: VecDeque<(u64, Vec<u8>)>,
    /// Sent packets in order: Sequence Number of the probe and receive time.
    sent: Vec<(u32, u64)>,
    held: HashMap<u32, u64>,
}

impl Way {
    fn new(sequence: usize) -> Self {
        let options =
            UdpOptions { transmit_stamps: TransmitStamps::Numbered, ..UdpOptions::default() };
        let from = TestSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &options);
        Self {
            from: from.expect("a socket"),
            sequence,
            waiting: VecDeque::new(),
            sent: Vec::new(),
            held: HashMap::new(),
        }
    }

    /// Receives queued packets and returns their source.
    fn receive(&mut self) -> Option<SocketAddr> {
        let mut source = None;
        let take = |meta: &twamp_agent::twamp::PacketMeta, packet: &[u8]| {
            assert_eq!(meta.stamp, StampSource::Kernel, "a stamp of the kernel");
            source = Some(meta.source);
            self.waiting.push_back((meta.received.0, packet.to_vec()));
        };
        self.from.receive(take).expect("packets");
        source
    }

    /// Forwards packets that were held long enough; returns the time of the next one.
    fn send(&mut self, by: &TestSocket, to: SocketAddr, hold_ns: u64) -> Option<u64> {
        while let Some((came, packet)) = self.waiting.front() {
            if came + hold_ns > clock::unix().0 {
                return Some(came + hold_ns);
            }
            by.send(packet, to).expect("sent");
            let number = packet[self.sequence..].first_chunk().expect("a packet");
            self.sent.push((u32::from_be_bytes(*number), *came));
            self.waiting.pop_front();
        }
        None
    }

    /// Records the transmit times of forwarded packets.
    fn note(&mut self, by: &TestSocket) {
        by.transmitted(|number, left, _| {
            let (sequence, came) = self.sent[number as usize];
            self.held.insert(sequence, left.0 - came);
        });
    }
}

/// A relay in front of a reflector.
pub(super) struct Relay {
    /// Address to which the sender sends its probes.
    pub(super) address: SocketAddr,
    end: Arc<AtomicBool>,
    thread: thread::JoinHandle<Held>,
}

impl Relay {
    /// Starts a relay that holds each packet for `hold`, in both directions.
    pub(super) fn start(reflector: SocketAddr, hold: Duration) -> Self {
        let (mut probes, mut replies) = (Way::new(0), Way::new(SENDER_SEQUENCE));
        let (address, end) = (probes.from.local(), Arc::new(AtomicBool::new(false)));
        let hold_ns = hold.as_nanos() as u64;
        let ended = end.clone();
        let body = move || {
            let mut poller = Poller::new().expect("a poller");
            poller.add(&probes.from, 0).expect("a socket");
            poller.add(&replies.from, 1).expect("a socket");
            let (mut sender, mut ready, mut due_ns) = (None, Vec::new(), None::<u64>);
            while !ended.load(Relaxed) {
                let now = clock::now();
                let until = due_ns.map(|due| now.monotonic.plus_ns(due.saturating_sub(now.unix.0)));
                poller.wait(until, Duration::from_millis(20), &mut ready).expect("a wait");
                ready.clear();
                sender = probes.receive().or(sender);
                replies.receive();
                let next = probes.send(&replies.from, reflector, hold_ns);
                let back = sender.and_then(|to| replies.send(&probes.from, to, hold_ns));
                due_ns = next.into_iter().chain(back).min();
                probes.note(&replies.from);
                replies.note(&probes.from);
            }
            let both = |(number, there): (&u32, &u64)| {
                Some((*number, (*there, *replies.held.get(number)?)))
            };
            probes.held.iter().filter_map(both).collect()
        };
        let thread = thread::Builder::new().name("relay".into()).spawn(body).expect("a thread");
        Self { address, end, thread }
    }

    /// Returns the time for which each probe and its reply were held.
    pub(super) fn end(self) -> Held {
        self.end.store(true, Relaxed);
        self.thread.join().expect("the relay")
    }
}
