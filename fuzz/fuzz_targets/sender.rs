//! Sender with replies to its probes, modified and unmodified, in each format.
#![no_main]
mod shared;

use libfuzzer_sys::fuzz_target;
use twamp_agent::{
    model::{AccessReport, Dscp, Schedule, Secret, StampSession},
    time::{ErrorEstimate, Monotonic, Now, StampSource, TimestampFormat, UnixTime},
    twamp::{PacketMeta, sender::{Carrier, SenderConfig, SessionSender, StampSender}},
    wire::format::ReplyHeader,
};

fuzz_target!(|data: &[u8]| {
    let Some((&head, data)) = data.split_first() else { return };
    let mut now =
        Now { monotonic: Monotonic(1_000_000_000), unix: UnixTime(1_700_000_000_000_000_000) };
    let formats = shared::formats();
    let chosen = usize::from(head) % (formats.len() + 2);
    let carrier = match formats.get(chosen) {
        Some(format) => Carrier { format: format.clone(), ..Carrier::default() },
        None => {
            let session = StampSession {
                authenticated: chosen > formats.len(),
                secret: Some(Secret::new("secret")),
                class_of_service: Dscp::new(46),
                direct_measurement: true,
                location: true,
                timestamp_information: true,
                follow_up_telemetry: true,
                access_report: Some(AccessReport {
                    access_id: 1,
                    return_code: 1,
                    retransmission_interval_ns: 1_000_000,
                    retransmissions: 4,
                }),
                ..StampSession::default()
            };
            let stamp = StampSender::new(session, 0x4321, 400, |octets| octets.fill(1));
            Carrier {
                format: stamp.format(),
                timestamps: TimestampFormat::Ptp,
                honours_z_bit: true,
                stamp: Some(Box::new(stamp)),
                ..Carrier::default()
            }
        }
    };
    let format = carrier.format.clone();
    let mut sender = SessionSender::new(SenderConfig {
        probe_count: 16,
        probe_interval_ns: 10_000_000,
        burst_size: 1,
        schedule: Schedule::Periodic,
        loss_timeout_ns: 50_000_000,
        test_interval_ns: 10_000_000,
        test_count: 0,
        data_size: 400,
        reflector_numbers_replies: head & 128 != 0,
        availability: Default::default(),
        strict_error_estimate: false,
    });
    sender.session_started(carrier, now.monotonic, now);
    let mut last = vec![0; 400];
    for (choice, piece) in shared::pieces(data) {
        while sender.poll_probe(now).is_some() {
            sender.write_probe(now.unix, ErrorEstimate(0x8001), &mut last, now.monotonic);
            sender.probe_sent(now.unix, 1 << 20, now);
        }
        let mut reply = piece.to_vec();
        // Half of the inputs are replies to the latest probe, modified after the header.
        if choice & 1 == 0
            && let Ok(probe) = format.read_probe(&last)
        {
            let header = ReplyHeader {
                sequence: u32::from(choice >> 4),
                timestamp: probe.timestamp.wrapping_add(5),
                error_estimate: probe.error_estimate,
                receive_timestamp: probe.timestamp.wrapping_add(u64::from(choice)),
                probe,
                sender_ttl: choice,
                sender_tos: Some(choice),
            };
            let base = format.reply_octets();
            reply = last.clone();
            reply.resize(reply.len().max(base), 0);
            for (octet, change) in reply[base..].iter_mut().zip(piece) {
                *octet ^= change;
            }
            format.write_reply(&header, &mut reply);
            format.finish_reply(header.timestamp, &mut reply);
        }
        let meta = PacketMeta { received: now.unix.plus_ns(9_000), stamp: StampSource::Kernel, ..PacketMeta::default() };
        sender.handle_reply(&reply, &meta, now);
        let step = u64::from(choice) * 1_000_000;
        now.monotonic = now.monotonic.plus_ns(step);
        now.unix = now.unix.plus_ns(step as i64);
        sender.handle_timeout(now);
        let _ = (sender.current(), sender.poll_deadline());
        while sender.poll_event().is_some() {}
    }
    sender.stop(0, now);
    sender.handle_timeout(now);
    assert!(sender.is_stopped());
});
