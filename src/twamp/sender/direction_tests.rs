//! Direction of losses at simulated reflectors that number their replies themselves, and at
//! reflectors that copy the numbers of the probes.

use super::{
    tests::{MS, config, now, reply_to, sent_at},
    *,
};
use crate::{model::ReflectorNumbering, stats::Figures, twamp::PacketMeta};

/// A path and a reflector. All functions get the number of a packet in its direction.
struct Script {
    copies: bool,
    is_lost_out: fn(u32) -> bool,
    is_lost_back: fn(u32) -> bool,
    /// Time for which a probe is held on its way out, in nanoseconds.
    held_ns: fn(u32) -> u64,
    /// Probes that arrive twice.
    is_doubled: fn(u32) -> bool,
}

impl Default for Script {
    fn default() -> Self {
        let (never, at_once) = (|_: u32| false, |_: u32| 0);
        Self {
            copies: false,
            is_lost_out: never,
            is_lost_back: never,
            held_ns: at_once,
            is_doubled: never,
        }
    }
}

fn tenth(n: u32) -> bool {
    n % 10 == 4
}

/// Starts a session and runs one test of a thousand probes, 10 ms apart.
fn run(
    machine: &mut SessionSender,
    has_extensions: bool,
    begun_ns: u64,
    script: &Script,
) -> Figures {
    let carrier = Carrier { has_extensions, ..Carrier::default() };
    machine.session_started(carrier, Monotonic(begun_ns), now(begun_ns));
    // Probes on the way to the reflector by time of arrival, and the number of the reply.
    let mut on_way_out: Vec<(u64, Vec<u8>)> = Vec::new();
    let (mut at_ns, mut sent, mut reflected, mut returned) = (begun_ns, 0, 0, 0);
    loop {
        machine.handle_timeout(now(at_ns));
        while machine.poll_probe(now(at_ns)).is_some() {
            let packet = sent_at(machine, at_ns);
            if !(script.is_lost_out)(sent) {
                let arrival_ns = at_ns + MS + (script.held_ns)(sent);
                let times = if (script.is_doubled)(sent) { 2 } else { 1 };
                (0..times).for_each(|n| on_way_out.push((arrival_ns + n * MS, packet.clone())));
            }
            sent += 1;
        }
        on_way_out.sort_by_key(|(arrival_ns, _)| *arrival_ns);
        while let Some((arrival_ns, packet)) =
            on_way_out.first().filter(|(arrival_ns, _)| *arrival_ns <= at_ns).cloned()
        {
            on_way_out.remove(0);
            let own = reflected;
            reflected += 1;
            let copied = u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]);
            let mut reply = reply_to(&packet, if script.copies { copied } else { own });
            // T2 of the arrival, as an NTP timestamp whose origin does not matter.
            reply[16..24].copy_from_slice(&(arrival_ns << 2).to_be_bytes());
            if !(script.is_lost_back)(returned) {
                machine.handle_reply(&reply, &PacketMeta::default(), now(at_ns));
            }
            returned += 1;
        }
        while let Some(event) = machine.poll_event() {
            if let SenderEvent::Test(result, _) = event {
                return *result.figures.unwrap();
            }
        }
        let due = machine.poll_deadline().map_or(u64::MAX, |due| due.0);
        let arrival = on_way_out.first().map_or(u64::MAX, |(arrival_ns, _)| *arrival_ns);
        at_ns = due.min(arrival).max(at_ns);
    }
}

fn one_test(has_extensions: bool, reflector_numbers_replies: bool, script: &Script) -> Figures {
    let config = SenderConfig { reflector_numbers_replies, ..config(1_000, 10 * MS) };
    run(&mut SessionSender::new(config), has_extensions, 0, script)
}

/// Losses on the way out, on the way back, and without a known direction.
fn losses(figures: &Figures) -> (Option<u64>, Option<u64>, u64) {
    (figures.probes_lost_egress, figures.probes_lost_ingress, figures.probes_lost_unattributed)
}

#[test]
fn copied_numbers_tell_no_direction() {
    let script = Script { copies: true, is_lost_out: tenth, ..Script::default() };
    for reflector_numbers_replies in [false, true] {
        let figures = one_test(false, reflector_numbers_replies, &script);
        assert_eq!(losses(&figures), (None, None, 100));
        assert_eq!(figures.reflector_numbering(), ReflectorNumbering::Equal);
    }
}

#[test]
fn copied_numbers_are_recognised_where_probes_are_overtaken_or_doubled() {
    let overtaken = Script {
        copies: true,
        is_lost_out: tenth,
        held_ns: |n| if n % 20 == 7 { 15 * MS } else { 0 },
        ..Script::default()
    };
    let doubled =
        Script { copies: true, is_lost_out: tenth, is_doubled: |n| n == 500, ..Script::default() };
    for script in [overtaken, doubled] {
        for has_extensions in [false, true] {
            let figures = one_test(has_extensions, true, &script);
            assert_eq!(losses(&figures), (None, None, 100));
            assert_eq!(figures.reflector_numbering(), ReflectorNumbering::Copied);
        }
    }
}

#[test]
fn own_numbers_tell_the_direction_once_one_differs() {
    let out = Script { is_lost_out: tenth, ..Script::default() };
    for (has_extensions, reflector_numbers_replies) in [(false, false), (false, true), (true, true)]
    {
        let figures = one_test(has_extensions, reflector_numbers_replies, &out);
        assert_eq!(losses(&figures), (Some(100), Some(0), 0));
        assert_eq!(figures.reflector_numbering(), ReflectorNumbering::Own);
    }
}

#[test]
fn loss_on_the_way_back_alone_needs_a_server_that_is_known_to_number() {
    let back = Script { is_lost_back: tenth, ..Script::default() };
    let figures = one_test(false, true, &back);
    assert_eq!(losses(&figures), (None, None, 100));
    assert_eq!(figures.reflector_numbering(), ReflectorNumbering::Equal);
    // A server with extensions is assumed to number its replies itself.
    let figures = one_test(true, true, &back);
    assert_eq!(losses(&figures), (Some(0), Some(100), 0));
    assert_eq!(figures.reflector_numbering(), ReflectorNumbering::Assumed);
    // One loss on the way out in an earlier session is enough.
    let mut machine = SessionSender::new(config(1_000, 10 * MS));
    let once = Script { is_lost_out: |n| n == 3, ..Script::default() };
    assert_eq!(losses(&run(&mut machine, false, 0, &once)), (Some(1), Some(0), 0));
    let figures = run(&mut machine, false, 100_000 * MS, &back);
    assert_eq!(losses(&figures), (Some(0), Some(100), 0));
    assert_eq!(figures.reflector_numbering(), ReflectorNumbering::Own);
}

#[test]
fn overtaking_on_the_way_out_moves_no_loss_to_the_other_direction() {
    let held = |n: u32| if n % 20 == 7 { 15 * MS } else { 0 };
    let script = |is_lost_out, is_lost_back, held_ns| Script {
        is_lost_out,
        is_lost_back,
        held_ns,
        ..Script::default()
    };
    let never = |_: u32| false;
    // A twentieth is held; replies are lost at another rhythm, also those of held probes.
    let back = |n: u32| n % 24 == 9;
    let figures = one_test(true, true, &script(never, back, held));
    let lost = figures.probes_lost;
    assert!(lost > 40, "{lost}");
    let (egress, ingress, unattributed) = losses(&figures);
    assert_eq!((egress, ingress), (Some(0), Some(lost - unattributed)));
    assert!(unattributed <= 1, "{unattributed}");
    // 10 % loss and 10 % reordering in each direction.
    let held = |n: u32| if n % 10 == 7 { 15 * MS } else { 0 };
    let figures = one_test(true, true, &script(tenth, |n| n % 10 == 6, held));
    let (egress, ingress, unattributed) = losses(&figures);
    assert_eq!(figures.probes_lost, 190);
    assert!(egress <= Some(100) && ingress <= Some(90) && unattributed <= 3, "{figures:?}");
}
