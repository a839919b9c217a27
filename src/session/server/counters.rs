//! Packet counters of the reflectors as the API reports them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{proto::PacketCounters, twamp::reflector::ReflectorCounters};

/// Adds the counters of a thread to `sum`.
pub(super) fn add(sum: PacketCounters, counters: &ReflectorCounters) -> PacketCounters {
    let load = |counter: &AtomicU64| counter.load(Relaxed);
    let send_failed = load(&counters.send_failed);
    let reflected = load(&counters.reflected).saturating_sub(send_failed);
    PacketCounters {
        received: sum.received + load(&counters.received),
        reflected: sum.reflected + reflected,
        dropped_no_session: sum.dropped_no_session + load(&counters.no_session),
        dropped_not_started: sum.dropped_not_started + load(&counters.not_started),
        dropped_too_short: sum.dropped_too_short + load(&counters.too_short),
        dropped_corrupt: sum.dropped_corrupt + load(&counters.corrupt),
        dropped_not_listed: sum.dropped_not_listed + load(&counters.not_listed),
        dropped_reflection_loop: sum.dropped_reflection_loop + load(&counters.reflection_loop),
        dropped_send_failed: sum.dropped_send_failed + send_failed,
        reflected_light: sum.reflected_light + load(&counters.reflected_light),
        reflected_stamp: sum.reflected_stamp + load(&counters.reflected_stamp),
        dropped_integrity_failed: sum.dropped_integrity_failed + load(&counters.integrity_failed),
        tlvs_malformed: sum.tlvs_malformed + load(&counters.tlvs_malformed),
        tlvs_integrity_failed: sum.tlvs_integrity_failed + load(&counters.tlvs_integrity_failed),
        unknown_error_estimate: sum.unknown_error_estimate + load(&counters.unknown_error_estimate),
        access_reports: sum.access_reports + load(&counters.access_reports),
        dropped_rate_limited: sum.dropped_rate_limited + load(&counters.rate_limited),
        dropped_buffer_full: sum.dropped_buffer_full + load(&counters.buffer_full),
    }
}
