//! A sender, a reflector and the path between them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use crate::twamp::{
    PacketMeta,
    reflector::{Reflector, ReflectorSession, Sessionless, Verdict},
    sender::{Carrier, SenderConfig, SenderEvent, SessionSender},
};
use crate::{
    model::{AvailabilityRule, Schedule},
    stats::{DelayStats, Figures, TestResult},
    time::{ErrorEstimate, Monotonic, Now, StampSource, TimestampFormat, UnixTime},
    wire::{
        codes::{Modes, Sid},
        crypto::SessionKeys,
        format::PacketFormat,
    },
};

pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MS;

/// Effect of the path on the packet with this number: the delay of each copy that arrives.
pub(super) type Path = Box<dyn FnMut(u32) -> Vec<u64>>;

pub(super) enum Arrival {
    AtReflector(Vec<u8>),
    AtSender(Vec<u8>),
}

pub(super) struct Pair {
    pub(super) now: Now,
    pub(super) sender: SessionSender,
    pub(super) reflector: Reflector,
    pub(super) egress: Path,
    pub(super) ingress: Path,
    /// Offset of the reflector's clock from the sender's.
    pub(super) reflector_offset_ns: i64,
    /// Frequency error of the reflector's clock in ppm.
    pub(super) reflector_skew_ppm: i64,
    pub(super) begun: UnixTime,
    pub(super) flights: BTreeMap<(Monotonic, u64), Arrival>,
    pub(super) flown: u64,
    pub(super) reflected: u32,
    pub(super) results: Vec<TestResult>,
    pub(super) minutes: Vec<(u64, Figures)>,
    pub(super) completed: bool,
    pub(super) octets: usize,
}

pub(super) fn config(probe_count: u32) -> SenderConfig {
    SenderConfig {
        probe_count,
        probe_interval_ns: 10 * MS,
        burst_size: 1,
        schedule: Schedule::Periodic,
        loss_timeout_ns: 500 * MS,
        test_interval_ns: SECOND,
        test_count: 0,
        data_size: 60,
        reflector_numbers_replies: true,
        availability: AvailabilityRule::default(),
        strict_error_estimate: false,
    }
}

pub(super) fn delay(stats: Option<&DelayStats>) -> &DelayStats {
    stats.unwrap()
}

pub(super) fn lossless(delay_ns: u64) -> Path {
    Box::new(move |_| vec![delay_ns])
}

impl Pair {
    pub(super) fn new(config: SenderConfig, egress: Path, ingress: Path) -> Self {
        Self::in_mode(Modes::UNAUTHENTICATED, [TimestampFormat::Ntp; 2], config, egress, ingress)
    }

    /// Creates a pair with this mode; sender and reflector use the given timestamp formats.
    pub(super) fn in_mode(
        mode: Modes,
        timestamps: [TimestampFormat; 2],
        config: SenderConfig,
        egress: Path,
        ingress: Path,
    ) -> Self {
        let format = || {
            let keys = SessionKeys::new([3; 16], [4; 32]);
            PacketFormat::negotiated(mode, Some(&keys), Sid([1; 16]))
        };
        let now = Now { monotonic: Monotonic(SECOND), unix: UnixTime(1_700_000_000 * SECOND) };
        let mut reflector = Reflector::new(862, Sessionless::Dropped, Arc::default());
        let spec = ReflectorSession {
            sid: Sid([1; 16]),
            sender: sender_address(),
            tos: 0,
            format: format(),
            timestamps: timestamps[1],
            refwait_ns: 900 * SECOND,
            counters: Arc::default(),
        };
        assert!(reflector.add(spec, now.monotonic).is_ok());
        reflector.start(Sid([1; 16]), now.monotonic);
        let octets = config.data_size.into();
        let mut sender = SessionSender::new(config);
        let carrier = Carrier {
            format: format(),
            timestamps: timestamps[0],
            has_extensions: true,
            honours_z_bit: mode.contains(Modes::PTP_TIMESTAMPS),
            ..Carrier::default()
        };
        sender.session_started(carrier, now.monotonic, now);
        Self {
            now,
            sender,
            reflector,
            egress,
            ingress,
            reflector_offset_ns: 0,
            reflector_skew_ppm: 0,
            begun: now.unix,
            flights: BTreeMap::new(),
            flown: 0,
            reflected: 0,
            results: Vec::new(),
            minutes: Vec::new(),
            completed: false,
            octets,
        }
    }

    /// Moves the simulation to another time.
    pub(super) fn at(mut self, unix: UnixTime) -> Self {
        (self.now.unix, self.begun) = (unix, unix);
        self
    }

    pub(super) fn deliver(&mut self, delay_ns: u64, arrival: Arrival) {
        self.flown += 1;
        self.flights.insert((self.now.monotonic.plus_ns(delay_ns), self.flown), arrival);
    }

    /// Sends due probes and collects events.
    pub(super) fn send_and_collect(&mut self) {
        while let Some(sequence) = self.sender.poll_probe(self.now) {
            let mut packet = vec![0; self.octets];
            let t1 = self.now.unix;
            let now = self.now.monotonic;
            self.sender.write_probe(t1, ErrorEstimate(0x8001), &mut packet, now);
            self.sender.probe_sent(t1, 1 << 40, self.now);
            for delay in (self.egress)(sequence) {
                self.deliver(delay, Arrival::AtReflector(packet.clone()));
            }
        }
        while let Some(event) = self.sender.poll_event() {
            match event {
                SenderEvent::Test(result, _) => self.results.push(*result),
                SenderEvent::Completed => self.completed = true,
                SenderEvent::Minute(minute, figures, _) => self.minutes.push((minute, *figures)),
                SenderEvent::Probe(_) => {}
            }
        }
    }

    pub(super) fn run_until(&mut self, end: Monotonic) {
        self.send_and_collect();
        loop {
            let flight = self.flights.keys().next().map(|(at, _)| *at);
            let Some(next) = flight.into_iter().chain(self.sender.poll_deadline()).min() else {
                break;
            };
            if next > end {
                break;
            }
            let step = next.since_ns(self.now.monotonic);
            self.now.monotonic = self.now.monotonic.plus_ns(step);
            self.now.unix = self.now.unix.plus_ns(step as i64);
            while let Some(entry) = self.flights.first_entry().filter(|e| e.key().0 <= next) {
                match entry.remove() {
                    Arrival::AtReflector(packet) => self.reflect(&packet),
                    Arrival::AtSender(packet) => {
                        let meta = PacketMeta {
                            received: self.now.unix,
                            stamp: StampSource::Kernel,
                            ttl: Some(250),
                            tos: Some(0),
                            ..PacketMeta::default()
                        };
                        self.sender.handle_reply(&packet, &meta, self.now);
                    }
                }
            }
            self.sender.handle_timeout(self.now);
            self.send_and_collect();
        }
    }

    pub(super) fn reflect(&mut self, packet: &[u8]) {
        let passed = self.now.unix.since_ns(self.begun);
        let skew_ns = passed / 1_000_000 * self.reflector_skew_ppm;
        let clock = self.now.unix.plus_ns(self.reflector_offset_ns + skew_ns);
        let meta = PacketMeta {
            source: sender_address(),
            destination: SocketAddr::from(([127, 0, 0, 1], 862)),
            received: clock,
            ttl: Some(251),
            tos: Some(0xb9),
            ..PacketMeta::default()
        };
        let mut reply = vec![0; 2048];
        let verdict = self.reflector.handle(
            &meta,
            packet,
            ErrorEstimate(0x8001),
            self.now.monotonic,
            &mut reply,
        );
        if let Verdict::Reply { octets, finish, .. } = verdict {
            reply.truncate(octets);
            self.reflector.finish(sender_address(), finish, &mut reply, clock.plus_ns(1_000));
            self.reflected += 1;
            for delay in (self.ingress)(self.reflected - 1) {
                self.deliver(delay, Arrival::AtSender(reply.clone()));
            }
        }
    }

    pub(super) fn only(&self) -> &Figures {
        assert_eq!(self.results.len(), 1);
        self.results[0].figures.as_ref().unwrap()
    }
}

pub(super) fn sender_address() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 40_000)
}

pub(super) fn every(modulus: u32, delay_ns: u64) -> Path {
    Box::new(move |n| if n % modulus == modulus - 1 { vec![] } else { vec![delay_ns] })
}
