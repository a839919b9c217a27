//! The clocks of the host.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::time::{ClockId, clock_gettime};

use crate::time::{ErrorEstimate, Monotonic, NANOS_PER_SECOND, Now, UnixTime};

/// Longest time between two readings of one clock pair; the scheduler interrupted longer ones,
/// which are repeated.
const TORN_READING_NS: u64 = 50_000;
/// Age up to which the cached clock state is used.
const STATE_AGE_NS: u64 = NANOS_PER_SECOND;
/// `STA_UNSYNC` of adjtimex(2): clock not synchronised.
const STA_UNSYNC: i32 = 0x0040;

/// Synchronisation state of the local clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockState {
    /// Synchronised by an external source.
    pub synchronised: bool,
    /// Estimated error in nanoseconds (`esterror` of adjtimex(2)); 0 when not synchronised.
    pub error_ns: u64,
}

/// Reads the monotonic clock.
pub fn monotonic() -> Monotonic {
    Monotonic(read(ClockId::CLOCK_MONOTONIC))
}

/// Reads the realtime clock.
pub fn unix() -> UnixTime {
    UnixTime(read(ClockId::CLOCK_REALTIME))
}

/// Reads both clocks at the same moment.
pub fn now() -> Now {
    let mut before = monotonic();
    for _ in 0..5 {
        let time = unix();
        let after = monotonic();
        if after.since_ns(before) <= TORN_READING_NS {
            return Now { monotonic: before, unix: time };
        }
        before = after;
    }
    Now { monotonic: before, unix: unix() }
}

/// Time since the boot of the host, including suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uptime {
    /// Number derived from the boot identifier; 0 when unknown.
    pub boot: u64,
    /// Nanoseconds since the host booted.
    pub ns: u64,
}

/// Reads the time since boot.
pub fn uptime() -> Uptime {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let boot = boot.and_then(|id| uuid::Uuid::try_parse(id.trim()).ok());
    let boot = boot.map_or(0, |id| id.as_u64_pair().0);
    Uptime { boot, ns: read(ClockId::CLOCK_BOOTTIME) }
}

/// Returns the state of the local clock, at most one second old.
pub fn state() -> ClockState {
    let estimate = error_estimate();
    ClockState {
        synchronised: estimate.is_synchronised(),
        error_ns: if estimate.is_synchronised() { estimate.error_ns() } else { 0 },
    }
}

/// Returns the Error Estimate of local timestamps, at most one second old.
pub fn error_estimate() -> ErrorEstimate {
    // Time of reading in the high 48 bits (units of 2^16 ns), estimate in the low 16: one word, no
    // lock.
    static CACHE: AtomicU64 = AtomicU64::new(0);
    let now = monotonic().0;
    let cached = CACHE.load(Relaxed);
    if cached != 0 && now.saturating_sub(cached & !0xffff) < STATE_AGE_NS {
        return ErrorEstimate(cached as u16);
    }
    let estimate = read_error_estimate();
    CACHE.store(now & !0xffff | u64::from(estimate.0), Relaxed);
    estimate
}

fn read_error_estimate() -> ErrorEstimate {
    let mut state = rtime_clock::adjtime::Timex::new();
    match rtime_clock::adjtime::adjtimex(&mut state) {
        Ok(_) if state.0.status & STA_UNSYNC == 0 => {
            let microseconds = u64::try_from(state.0.esterror).unwrap_or(0);
            ErrorEstimate::new(true, microseconds.saturating_mul(1_000))
        }
        _ => ErrorEstimate::UNSYNCHRONISED,
    }
}

fn read(clock: ClockId) -> u64 {
    // All clocks read here exist on every Linux.
    clock_gettime(clock).map_or(0, |time| {
        (time.tv_sec() as u64).wrapping_mul(NANOS_PER_SECOND).wrapping_add(time.tv_nsec() as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_forward_together() {
        let (a, b) = (now(), now());
        assert!(b.monotonic >= a.monotonic);
        let apart = b.unix.since_ns(a.unix) - b.monotonic.since_ns(a.monotonic) as i64;
        assert!(apart.abs() < 1_000_000_000);
    }

    #[test]
    fn the_estimate_is_never_corrupt() {
        assert!(!error_estimate().is_corrupt());
    }
}
