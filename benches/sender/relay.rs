//! A path whose delays are known: a relay that holds every packet for a while and notes by the
//! kernel's stamps how long that was. What an RTT has beyond its log is what the agent and the stack of
//! the machine add.

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

/// Where the number of the probe is in a reply without keys.
const SENDER_SEQUENCE: usize = 24;

/// How long the probe of each number was held, and its reply, nanoseconds.
type Held = HashMap<u32, (u64, u64)>;

/// One way through the relay.
struct Way {
    from: TestSocket,
    /// Place of the number of the probe.
    sequence: usize,
    waiting: VecDeque<(u64, Vec<u8>)>,
    /// Of what was sent, in order: number of the probe, and when it came.
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

    /// Takes what came; from where that was.
    fn take(&mut self) -> Option<SocketAddr> {
        let mut source = None;
        let take = |meta: &twamp_agent::twamp::PacketMeta, packet: &[u8]| {
            assert_eq!(meta.stamp, StampSource::Kernel, "a stamp of the kernel");
            source = Some(meta.source);
            self.waiting.push_back((meta.received.0, packet.to_vec()));
        };
        self.from.receive(take).expect("packets");
        source
    }

    /// Sends on by another socket what was held long enough; when the next one is due.
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

    /// Notes when what was sent by another socket left.
    fn note(&mut self, by: &TestSocket) {
        by.transmitted(|number, left, _| {
            let (sequence, came) = self.sent[number as usize];
            self.held.insert(sequence, left.0 - came);
        });
    }
}

/// A relay to a reflector.
pub(super) struct Relay {
    /// Where it takes probes.
    pub(super) address: SocketAddr,
    end: Arc<AtomicBool>,
    thread: thread::JoinHandle<Held>,
}

impl Relay {
    /// Holds each packet for `hold`, either way.
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
                sender = probes.take().or(sender);
                replies.take();
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

    /// How long each probe and its reply were held.
    pub(super) fn end(self) -> Held {
        self.end.store(true, Relaxed);
        self.thread.join().expect("the relay")
    }
}
