//! Reflector with sessions in each format and senders without one.
#![no_main]
mod shared;

use std::{net::SocketAddr, sync::Arc};

use libfuzzer_sys::fuzz_target;
use twamp_agent::{
    model::Secret,
    time::{ErrorEstimate, Monotonic, TimestampFormat, UnixTime},
    twamp::{PacketMeta, reflector::{
        Allowances, LightPolicy, Reflector, ReflectorSession, Sessionless, StampPolicy, StampRule,
        Verdict,
    }},
    wire::codes::Sid,
};

fuzz_target!(|data: &[u8]| {
    let Some((&head, data)) = data.split_first() else { return };
    let prefix = "192.0.2.0/24".parse().expect("a prefix");
    let stamp = |authenticated| StampPolicy {
        sessions: vec![StampRule { prefix, port: None, ssid: None }],
        stateful: head & 8 != 0,
        authenticated,
        secrets: vec![Secret::new("other"), Secret::new("secret")],
        allow_class_of_service: head & 16 != 0,
        timestamps: TimestampFormat::Ptp,
        refwait_ns: 1_000_000_000,
    };
    let sessionless = match head & 3 {
        0 => Sessionless::Dropped,
        1 => Sessionless::Light(LightPolicy {
            maximum_packets_per_second: None,
            prefixes: vec![prefix],
            stateful: head & 8 != 0,
            refwait_ns: 1_000_000_000,
            allowances: Allowances::default(),
        }),
        other => Sessionless::Stamp(stamp(other == 3)),
    };
    let mut reflector = Reflector::new(862, sessionless, Arc::default());
    let mut now = Monotonic(0);
    for (index, format) in shared::formats().into_iter().enumerate() {
        let session = ReflectorSession {
            sid: Sid([index as u8; 16]),
            sender: SocketAddr::from(([192, 0, 2, 1], 4000 + index as u16)),
            tos: 0,
            format,
            timestamps: TimestampFormat::Ntp,
            refwait_ns: 1_000_000_000,
            counters: Arc::default(),
        };
        assert!(reflector.add(session, now).is_ok());
        reflector.start(Sid([index as u8; 16]), now);
    }
    let mut reply = vec![0; 2048];
    for (choice, packet) in shared::pieces(data) {
        let source = SocketAddr::from(([192, 0, 2, choice & 3], 4000 + u16::from(choice >> 3)));
        let meta = PacketMeta {
            source,
            source_mac: Some([2; 6]),
            destination: SocketAddr::from(([192, 0, 2, 2], 862)),
            to_group: choice == 255,
            received: UnixTime(1_700_000_000_000_000_000),
            ttl: Some(choice),
            tos: Some(choice),
            ..PacketMeta::default()
        };
        let verdict = reflector.handle(&meta, packet, ErrorEstimate(0x8001), now, &mut reply);
        if let Verdict::Reply { octets, finish, .. } = verdict {
            assert!(octets <= packet.len().max(112), "never more than the RFCs ask for");
            reflector.finish(source, finish, &mut reply[..octets], UnixTime(u64::from(choice)));
            let wire = reply[..octets].to_vec();
            reflector.transmitted(&wire, UnixTime(1_700_000_000_000_000_999));
        }
        now = now.plus_ns(u64::from(choice) * 1_000_000);
        reflector.expire(now, |_, _| {});
    }
});
