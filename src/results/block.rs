//! Stored form of single probes: a block of differences, each from the probe before.
//!
//! A probe is one octet of flags, followed by zigzag varints. Test number and sequence number
//! follow only if the flags say so: the difference of the test number, and the distance of the
//! sequence number from the next one. The send time always follows, as the difference between its
//! gap to the previous probe and the gap before that. An answered probe continues with the
//! differences of RTT, egress delay and processing time; if the flags say so, with TTLs and TOS
//! octets, and with the distance of the reply's sequence number from the next one. The ingress
//! delay is RTT minus egress delay.
//!
//! The first probe is encoded against the most frequent values, see [`Baseline::usual`], because a
//! record of a slow session contains little more than its first probe.

use bytes::Buf;
use prost::encoding::{decode_varint, encode_varint};

use crate::{
    model::{OneWayValidity, ProbeStatus, TimestampSource},
    stats::{ProbeResult, have_tai_offset},
    store::zigzag,
    time::UnixTime,
};

/// Status of a probe. An octet without a status has [`Marks`] for the probes after it instead.
const STATUS: u8 = 0b0000_0011;
const OTHER_TEST: u8 = 0b0000_0100;
const OTHER_SEQUENCE: u8 = 0b0000_1000;
const KERNEL_TRANSMIT: u8 = 0b0001_0000;
const KERNEL_RECEIVE: u8 = 0b0010_0000;
const OTHER_PATH: u8 = 0b0100_0000;
const OTHER_REPLY: u8 = 0b1000_0000;
/// Flags of an octet of marks, besides those of kernel timestamps.
const CORRECTED: u8 = 0b0000_0100;
const SYNCHRONISED: u8 = 0b0000_1000;
const STEPPED: u8 = 0b0100_0000;
const VALIDITY_KNOWN: u8 = 0b1000_0000;

/// Values against which the next probe is encoded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Baseline {
    /// The next probe is the first, and is encoded against the usual values.
    is_usual: bool,
    test_number: u64,
    sequence: u32,
    sent_ns: u64,
    gap_ns: i64,
    rtt_ns: i64,
    egress_ns: i64,
    processing_ns: i64,
    reply: u32,
    path: Path,
    marks: Marks,
}

impl Baseline {
    /// Creates the usual values for a record of the time `recorded`: the probe was sent just
    /// before, with gap 0, and its reply has the same sequence number, took half of the round trip
    /// in each direction, and has valid delays.
    pub(super) fn usual(recorded: UnixTime) -> Self {
        Self {
            is_usual: true,
            sequence: u32::MAX,
            sent_ns: recorded.0,
            path: [Some(255), Some(255), Some(0), None],
            marks: Marks(VALIDITY_KNOWN | SYNCHRONISED),
            ..Self::default()
        }
    }

    /// Returns the values adapted to a first probe with this sequence number and round-trip time.
    fn for_first(mut self, sequence: u32, rtt_ns: i64) -> Self {
        if self.is_usual {
            self.reply = sequence.wrapping_sub(1);
            self.egress_ns = rtt_ns / 2;
        }
        self
    }

    /// Ends the use of the usual values after the first probe, whose gap means nothing.
    fn after_first(&mut self, before: &Self) {
        if before.is_usual {
            (self.is_usual, self.gap_ns) = (false, 0);
        }
    }
}

/// Flags with properties that hold for many probes: kernel timestamps of T1 and T4 are those of the
/// network interface ([`KERNEL_TRANSMIT`], [`KERNEL_RECEIVE`]), T3 was corrected, and the validity
/// of delays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Marks(u8);

impl Marks {
    fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    fn set(&mut self, flag: u8, is: bool) {
        self.0 = if is { self.0 | flag } else { self.0 & !flag };
    }

    /// Returns the validity of a probe with these delays.
    fn validity(
        self,
        egress_ns: i64,
        ingress_ns: i64,
        processing_ns: i64,
    ) -> Option<OneWayValidity> {
        let validity = if self.has(STEPPED) {
            OneWayValidity::ClockStepped
        } else if have_tai_offset(egress_ns, ingress_ns) {
            OneWayValidity::TaiOffset
        } else if egress_ns < 0 || ingress_ns < 0 || processing_ns < 0 {
            OneWayValidity::Negative
        } else if self.has(SYNCHRONISED) {
            OneWayValidity::Valid
        } else {
            OneWayValidity::ClockUnsynchronised
        };
        self.has(VALIDITY_KNOWN).then_some(validity)
    }
}

/// TTL and TOS of probe and reply, as in [`ProbeResult`].
type Path = [Option<u32>; 4];

/// Encodes probes as a block for a record of the time `recorded`; `None` if a probe has values that
/// a block cannot hold.
pub(super) fn encode(probes: &[ProbeResult], recorded: UnixTime) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(probes.len() * 14);
    let mut before = Baseline::usual(recorded);
    for probe in probes {
        before = encode_probe(probe, before, &mut octets)?;
    }
    Some(octets)
}

/// Decodes the probes of the block of a record of the time `recorded`; `None` if it is damaged.
pub(super) fn decode(mut block: impl Buf, recorded: UnixTime) -> Option<Vec<ProbeResult>> {
    let mut before = Baseline::usual(recorded);
    let mut probes = Vec::with_capacity(block.remaining() / 10);
    while block.has_remaining() {
        probes.push(decode_probe(&mut before, &mut block)?);
    }
    Some(probes)
}

fn encode_probe(
    probe: &ProbeResult,
    mut before: Baseline,
    octets: &mut Vec<u8>,
) -> Option<Baseline> {
    let received = probe.status() == ProbeStatus::Received;
    if !(1..=i32::from(STATUS)).contains(&probe.status) {
        return None;
    }
    let mut marks = before.marks;
    let transmit = stamped(probe.transmit_timestamp_source(), &mut marks, KERNEL_TRANSMIT)?;
    let receive = match probe.receive_timestamp_source {
        Some(source) => {
            stamped(TimestampSource::try_from(source).ok()?, &mut marks, KERNEL_RECEIVE)?
        }
        None => false,
    };
    let mut flags = probe.status as u8 & STATUS;
    let mut flag = |is: bool, flag: u8| flags |= if is { flag } else { 0 };
    flag(probe.test_number != before.test_number, OTHER_TEST);
    flag(probe.sequence != before.sequence.wrapping_add(1), OTHER_SEQUENCE);
    flag(transmit, KERNEL_TRANSMIT);
    let mut now = Baseline {
        test_number: probe.test_number,
        sequence: probe.sequence,
        sent_ns: probe.sent_unix_ns,
        gap_ns: probe.sent_unix_ns.wrapping_sub(before.sent_ns).cast_signed(),
        ..before
    };
    if received {
        let (rtt_ns, egress_ns) = (probe.rtt_ns?, probe.egress_ns?);
        if probe.ingress_ns? != rtt_ns.wrapping_sub(egress_ns) {
            return None;
        }
        now.rtt_ns = rtt_ns;
        now.egress_ns = egress_ns;
        now.processing_ns = probe.reflector_processing_ns?;
        now.reply = probe.reflector_sequence?;
        now.path = [probe.egress_ttl, probe.ingress_ttl, probe.ingress_tos, probe.egress_tos];
        if now.path.iter().flatten().any(|octet| *octet > u8::MAX.into()) {
            return None;
        }
        probe.receive_timestamp_source?;
        let validity = probe.one_way_validity.map(OneWayValidity::try_from).transpose().ok()?;
        marks.set(CORRECTED, probe.reflector_timestamp_corrected);
        marks.set(VALIDITY_KNOWN, validity.is_some());
        marks.set(STEPPED, validity == Some(OneWayValidity::ClockStepped));
        match validity {
            Some(OneWayValidity::Valid) => marks.set(SYNCHRONISED, true),
            Some(OneWayValidity::ClockUnsynchronised) => marks.set(SYNCHRONISED, false),
            // These values do not show the synchronisation.
            None
            | Some(
                OneWayValidity::Unspecified
                | OneWayValidity::Negative
                | OneWayValidity::ClockStepped
                | OneWayValidity::TaiOffset,
            ) => {}
        }
        if marks.validity(egress_ns, probe.ingress_ns?, now.processing_ns) != validity {
            return None;
        }
        before = before.for_first(now.sequence, rtt_ns);
        flag(receive, KERNEL_RECEIVE);
        flag(now.path != before.path, OTHER_PATH);
        flag(now.reply != before.reply.wrapping_add(1), OTHER_REPLY);
    } else if probe.rtt_ns.is_some() || probe.reflector_sequence.is_some() {
        return None;
    }
    if marks != before.marks {
        octets.push(marks.0);
        now.marks = marks;
    }
    octets.push(flags);
    encode_differences(&now, &before, flags, received, octets);
    now.after_first(&before);
    Some(now)
}

/// Encodes the differences that the flags announce and, if the probe was answered, its delays.
fn encode_differences(
    now: &Baseline,
    before: &Baseline,
    flags: u8,
    received: bool,
    octets: &mut Vec<u8>,
) {
    let more = |now: u64, before: u64| now.wrapping_sub(before).cast_signed();
    if flags & OTHER_TEST != 0 {
        number(more(now.test_number, before.test_number), octets);
    }
    if flags & OTHER_SEQUENCE != 0 {
        number(next(now.sequence, before.sequence), octets);
    }
    number(now.gap_ns.wrapping_sub(before.gap_ns), octets);
    if received {
        number(now.rtt_ns.wrapping_sub(before.rtt_ns), octets);
        number(now.egress_ns.wrapping_sub(before.egress_ns), octets);
        number(now.processing_ns.wrapping_sub(before.processing_ns), octets);
        if flags & OTHER_PATH != 0 {
            encode_path(now.path, octets);
        }
        if flags & OTHER_REPLY != 0 {
            number(next(now.reply, before.reply), octets);
        }
    }
}

/// Returns false for a timestamp of the program, and true for one of the kernel or the network
/// interface, between which `flag` of the marks distinguishes; `None` for other sources.
fn stamped(source: TimestampSource, marks: &mut Marks, flag: u8) -> Option<bool> {
    match source {
        TimestampSource::User => return Some(false),
        TimestampSource::Kernel => marks.set(flag, false),
        TimestampSource::Hardware => marks.set(flag, true),
        TimestampSource::Unspecified | TimestampSource::Mixed => return None,
    }
    Some(true)
}

fn decode_probe(state: &mut Baseline, block: &mut impl Buf) -> Option<ProbeResult> {
    let mut flags = block.try_get_u8().ok()?;
    if flags & STATUS == 0 {
        state.marks = Marks(flags);
        flags = block.try_get_u8().ok()?;
    }
    let mut before = *state;
    let status = ProbeStatus::try_from(i32::from(flags & STATUS)).ok()?;
    if flags & OTHER_TEST != 0 {
        state.test_number = before.test_number.wrapping_add_signed(read(block)?);
    }
    state.sequence = before.sequence.wrapping_add(1);
    if flags & OTHER_SEQUENCE != 0 {
        state.sequence = advance(before.sequence, read(block)?);
    }
    state.gap_ns = before.gap_ns.wrapping_add(read(block)?);
    state.sent_ns = before.sent_ns.wrapping_add_signed(state.gap_ns);
    state.after_first(&before);
    let source = |is_stamped, hardware| match (is_stamped, hardware) {
        (false, _) => TimestampSource::User,
        (true, false) => TimestampSource::Kernel,
        (true, true) => TimestampSource::Hardware,
    };
    let probe = ProbeResult {
        test_number: state.test_number,
        sequence: state.sequence,
        sent_unix_ns: state.sent_ns,
        status: status.into(),
        transmit_timestamp_source: source(
            flags & KERNEL_TRANSMIT != 0,
            state.marks.has(KERNEL_TRANSMIT),
        )
        .into(),
        ..ProbeResult::default()
    };
    if status != ProbeStatus::Received {
        return Some(probe);
    }
    state.rtt_ns = before.rtt_ns.wrapping_add(read(block)?);
    before = before.for_first(state.sequence, state.rtt_ns);
    state.egress_ns = before.egress_ns.wrapping_add(read(block)?);
    state.processing_ns = before.processing_ns.wrapping_add(read(block)?);
    if flags & OTHER_PATH != 0 {
        state.path = decode_path(block)?;
    }
    state.reply = before.reply.wrapping_add(1);
    if flags & OTHER_REPLY != 0 {
        state.reply = advance(before.reply, read(block)?);
    }
    let [egress_ttl, ingress_ttl, ingress_tos, egress_tos] = state.path;
    let ingress_ns = state.rtt_ns.wrapping_sub(state.egress_ns);
    let validity = state.marks.validity(state.egress_ns, ingress_ns, state.processing_ns);
    Some(ProbeResult {
        rtt_ns: Some(state.rtt_ns),
        egress_ns: Some(state.egress_ns),
        ingress_ns: Some(ingress_ns),
        one_way_validity: validity.map(i32::from),
        reflector_timestamp_corrected: state.marks.has(CORRECTED),
        reflector_processing_ns: Some(state.processing_ns),
        reflector_sequence: Some(state.reply),
        egress_ttl,
        ingress_ttl,
        ingress_tos,
        egress_tos,
        receive_timestamp_source: Some(
            source(flags & KERNEL_RECEIVE != 0, state.marks.has(KERNEL_RECEIVE)).into(),
        ),
        ..probe
    })
}

/// Returns the distance of a number from the next one.
fn next(now: u32, before: u32) -> i64 {
    now.wrapping_sub(before).wrapping_sub(1).cast_signed().into()
}

fn advance(before: u32, beyond: i64) -> u32 {
    before.wrapping_add(1).wrapping_add(beyond as u32)
}

/// Encodes a path: one bit for each value that is present, one for each that is 0, then the others.
fn encode_path(path: Path, octets: &mut Vec<u8>) {
    let bits = |which: fn(&Option<u32>) -> bool| {
        path.iter().rev().fold(0, |bits, octet| bits << 1 | u8::from(which(octet)))
    };
    octets.push(bits(Option::is_some) | bits(|octet| *octet == Some(0)) << path.len());
    octets.extend(path.iter().flatten().filter(|octet| **octet != 0).map(|octet| *octet as u8));
}

fn decode_path(block: &mut impl Buf) -> Option<Path> {
    let bits = block.try_get_u8().ok()?;
    let mut path = Path::default();
    for index in 0..path.len() {
        if bits >> index & 1 != 0 {
            let is_zero = bits >> (index + path.len()) & 1 != 0;
            let octet = if is_zero { 0 } else { block.try_get_u8().ok()? };
            path[index] = Some(octet.into());
        }
    }
    Some(path)
}

fn number(value: i64, octets: &mut Vec<u8>) {
    encode_varint(zigzag::encode(value), octets);
}

fn read(block: &mut impl Buf) -> Option<i64> {
    decode_varint(block).ok().map(zigzag::decode)
}

#[cfg(test)]
mod tests;
