//! Time per packet of the machines alone, without a socket: encoding, decoding and the reflector
//! from probe to finished reply in each mode, compared with the raw cryptography in the same run,
//! and with up to 100,000 senders. Asserts that no packet allocates.
//!
//! `cargo bench --bench packets [-- MILLISECONDS]`

#![allow(clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::{
    collections::HashSet,
    hint::black_box,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use aes::{
    Aes128, Block,
    cipher::{BlockDecryptMut, BlockEncryptMut, KeyInit, KeyIvInit},
};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::Sha256;
use twamp_agent::{
    model::Secret,
    time::{ErrorEstimate, Monotonic, TimestampFormat, UnixTime},
    twamp::{
        PacketMeta,
        reflector::{
            Allowances, LightPolicy, Reflector, ReflectorSession, Sessionless, StampPolicy,
            StampRule, Verdict,
        },
    },
    wire::{
        codes::{Modes, Sid},
        crypto::{SessionKeys, StampKey},
        format::{PacketFormat, ProbeHeader, Protection, ReplyHeader},
    },
};

const ROUNDS: usize = 5;
const OCTETS: usize = 112;
const START: UnixTime = UnixTime(1_700_000_000_000_000_000);
const ESTIMATE: ErrorEstimate = ErrorEstimate(0x8a64);

/// Returns the nanoseconds of one call, the median of several rounds. Asserts that none allocates.
fn measure(length: Duration, mut call: impl FnMut()) -> f64 {
    for _ in 0..1_000 {
        call();
    }
    let allocations = allocation_counter::measure(|| (0..1_000).for_each(|_| call()));
    assert_eq!(allocations.count_total, 0, "a packet allocates");
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (begun, mut calls) = (Instant::now(), 0u32);
            while begun.elapsed() < length {
                (0..256).for_each(|_| call());
                calls += 256;
            }
            begun.elapsed().as_nanos() as f64 / f64::from(calls)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn probe_header(sequence: u32) -> ProbeHeader {
    let timestamp = TimestampFormat::Ntp.encode(START);
    ProbeHeader { sequence, timestamp, error_estimate: ESTIMATE, ssid: 0 }
}

fn meta() -> PacketMeta {
    PacketMeta {
        source: SocketAddr::from(([192, 0, 2, 1], 4001)),
        destination: SocketAddr::from(([192, 0, 2, 2], 862)),
        received: START,
        ttl: Some(255),
        tos: Some(184),
        ..PacketMeta::default()
    }
}

/// Measures the reflector from a received probe to the finished reply.
fn reflect(mut reflector: Reflector, probe: &[u8], length: Duration) -> f64 {
    let (meta, mut reply) = (meta(), vec![0; 2048]);
    measure(length, || {
        let verdict = reflector.handle(&meta, black_box(probe), ESTIMATE, Monotonic(1), &mut reply);
        let Verdict::Reply { octets, finish, .. } = verdict else { panic!("{verdict:?}") };
        reflector.finish(meta.source, finish, &mut reply[..octets], START);
        black_box(&reply);
    })
}

fn with_session(format: PacketFormat) -> Reflector {
    let mut reflector = Reflector::new(862, Sessionless::Dropped, Arc::default());
    let session = session(Sid([1; 16]), meta().source, format);
    reflector.add(session, Monotonic(0)).expect("a new session");
    reflector.start(Sid([1; 16]), Monotonic(0));
    reflector
}

/// Measures packets of many senders in an order that defeats caches, and the check for silent ones
/// that runs once a second.
fn growth(length: Duration) {
    println!("\nns for each packet with so many senders, us to look for silent ones");
    println!("{:<20}{:>12}{:>10}{:>12}{:>10}", "", "sessions", "", "light", "");
    for count in [1u32, 100, 1_000, 10_000, 100_000] {
        let sender = |n: u32| {
            // A prime multiplier visits each sender once per `count`.
            let mixed = (u64::from(n) * 0x9e37_79b1 % u64::from(count)) as u32;
            SocketAddr::from(([10, (mixed >> 16) as u8, (mixed >> 8) as u8, mixed as u8], 4001))
        };
        let mut negotiated = Reflector::new(862, Sessionless::Dropped, Arc::default());
        let all: HashSet<SocketAddr> = (0..count).map(sender).collect();
        for (number, sender) in all.iter().enumerate() {
            let mut sid = [0; 16];
            sid[..8].copy_from_slice(&(number as u64).to_be_bytes());
            let session = session(Sid(sid), *sender, PacketFormat::open());
            negotiated.add(session, Monotonic(0)).expect("a new session");
            negotiated.start(Sid(sid), Monotonic(0));
        }
        let mut probe = vec![0u8; OCTETS];
        PacketFormat::open().write_probe(&probe_header(7), &mut probe);
        print!("{:<20}", format!("{} senders", all.len()));
        for mut reflector in [negotiated, without_session(None)] {
            let (mut meta, mut reply, mut n) = (meta(), vec![0; 2048], 0u32);
            let mut handle = || {
                n = n.wrapping_add(1);
                meta.source = sender(n);
                let verdict =
                    reflector.handle(&meta, black_box(&probe), ESTIMATE, Monotonic(1), &mut reply);
                assert!(matches!(verdict, Verdict::Reply { .. }));
            };
            // Each sender is known now.
            (0..count).for_each(|_| handle());
            let packet = measure(length, handle);
            let mut looked = Vec::new();
            for second in 1..20 {
                let begun = Instant::now();
                reflector.expire(Monotonic(second * 1_000_000_000), |_, _| {});
                looked.push(begun.elapsed());
            }
            looked.sort_unstable();
            print!("{packet:>12.0}{:>10.1}", looked[10].as_nanos() as f64 / 1e3);
        }
        println!();
    }
}

fn session(sid: Sid, sender: SocketAddr, format: PacketFormat) -> ReflectorSession {
    ReflectorSession {
        sid,
        sender,
        tos: 184,
        format,
        timestamps: TimestampFormat::Ntp,
        refwait_ns: u64::MAX / 2,
        counters: Arc::default(),
    }
}

fn without_session(authenticated: Option<bool>) -> Reflector {
    let prefix = "0.0.0.0/0".parse().expect("a prefix");
    let policy = match authenticated {
        None => Sessionless::Light(LightPolicy {
            maximum_packets_per_second: None,
            prefixes: vec![prefix],
            stateful: true,
            refwait_ns: u64::MAX,
            allowances: Allowances::default(),
        }),
        Some(authenticated) => Sessionless::Stamp(StampPolicy {
            sessions: vec![StampRule { prefix, port: None, ssid: None }],
            stateful: true,
            authenticated,
            secrets: vec![Secret::new("secret")],
            allow_class_of_service: true,
            timestamps: TimestampFormat::Ntp,
            refwait_ns: u64::MAX,
        }),
    };
    Reflector::new(862, policy, Arc::default())
}

/// Measures only the cryptography of a reflected packet: HMAC and AES over the given octets of
/// probe and reply, with prepared key schedules.
fn raw_sha1(length: Duration, octets: [usize; 2]) -> f64 {
    let cipher = Aes128::new(&[1; 16].into());
    let mac = <Hmac<Sha1> as Mac>::new(&[2; 64].into());
    let mut packet = [0u8; OCTETS];
    let zero = [0u8; 16].into();
    measure(length, || {
        let mut open = cbc::Decryptor::<Aes128>::new(&[1; 16].into(), &zero);
        for block in packet[..octets[0]].chunks_exact_mut(16) {
            open.decrypt_block_mut(Block::from_mut_slice(block));
        }
        for octets in octets {
            let mut mac = mac.clone();
            mac.update(&packet[..octets]);
            black_box(mac.finalize());
        }
        let mut seal = cbc::Encryptor::<Aes128>::new(&[1; 16].into(), &zero);
        for block in packet[..octets[1]].chunks_exact_mut(16) {
            seal.encrypt_block_mut(Block::from_mut_slice(block));
        }
        black_box((&packet, &cipher));
    })
}

fn raw_sha256(length: Duration) -> f64 {
    let mac = <Hmac<Sha256> as Mac>::new(&[2; 64].into());
    let packet = [0u8; 96];
    measure(length, || {
        for _ in 0..2 {
            let mut mac = mac.clone();
            mac.update(black_box(&packet));
            black_box(mac.finalize());
        }
    })
}

fn main() {
    // `cargo bench` adds its own options.
    let given = std::env::args().find_map(|argument| argument.parse().ok());
    let length = Duration::from_millis(given.unwrap_or(200));
    let keys = SessionKeys::new([0x20; 16], [0x30; 32]);
    let twamp = |mode| PacketFormat::negotiated(Modes(mode), Some(&keys), Sid([1; 16]));
    let stamp = |protection| PacketFormat { protection, ..PacketFormat::default() };
    let key = Arc::new(StampKey::new(b"secret"));
    let formats = [
        ("unauthenticated", twamp(1), None, None),
        ("authenticated", twamp(2), None, Some(raw_sha1(length, [16, 16]))),
        ("encrypted", twamp(4), None, Some(raw_sha1(length, [32, 96]))),
        ("light", twamp(1), Some(None), None),
        ("STAMP", stamp(Protection::StampOpen), Some(Some(false)), None),
        (
            "STAMP authenticated",
            stamp(Protection::StampAuthenticated(key)),
            Some(Some(true)),
            Some(raw_sha256(length)),
        ),
    ];
    println!("ns for each packet of {OCTETS} octets; no packet allocates");
    println!(
        "{:<20}{:>9}{:>9}{:>9}{:>9}{:>9}{:>12}{:>10}{:>8}",
        "", "probe", "", "reply", "", "", "reflector", "raw", ""
    );
    println!(
        "{:<20}{:>9}{:>9}{:>9}{:>9}{:>9}{:>12}{:>10}{:>8}",
        "mode", "write", "read", "write", "read", "reflect", "packets/s", "crypto", "ratio"
    );
    for (name, format, sessionless, raw) in formats {
        let mut packet = vec![0u8; OCTETS];
        let write_probe =
            measure(length, || format.write_probe(black_box(&probe_header(7)), &mut packet));
        let probe = packet.clone();
        let read_probe = measure(length, || {
            black_box(format.read_probe(black_box(&probe)).expect("a probe"));
        });
        let reply = ReplyHeader {
            sequence: 5,
            timestamp: 0,
            error_estimate: ESTIMATE,
            receive_timestamp: 1,
            probe: probe_header(7),
            sender_ttl: 255,
            sender_tos: None,
        };
        let write_reply = measure(length, || {
            format.write_reply(black_box(&reply), &mut packet);
            format.finish_reply(9, &mut packet);
        });
        let read_reply = measure(length, || {
            black_box(format.read_reply(black_box(&packet)).expect("a reply"));
        });
        let reflector = match sessionless {
            None => with_session(format.clone()),
            Some(kind) => without_session(kind),
        };
        let whole = reflect(reflector, &probe, length);
        let (raw_text, ratio) = raw.map_or_else(
            || ("-".to_owned(), "-".to_owned()),
            |raw| (format!("{raw:.0}"), format!("{:.2}", whole / raw)),
        );
        println!(
            "{name:<20}{write_probe:>9.0}{read_probe:>9.0}{write_reply:>9.0}{read_reply:>9.0}\
             {whole:>9.0}{:>12.0}{raw_text:>10}{ratio:>8}",
            1e9 / whole
        );
    }
    growth(length);
}
