//! The clocks of the host.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use nix::time::{ClockId, clock_gettime};

use crate::time::{ErrorEstimate, MAX_ERROR_NS, Monotonic, NANOS_PER_SECOND, Now, UnixTime};

/// Longest time that a reading of both clocks may take. If it takes longer, the scheduler has
/// interrupted it, and it is repeated.
const TORN_READING_NS: u64 = 50_000;
/// Age up to which the cached clock state is used.
const STATE_AGE_NS: u64 = NANOS_PER_SECOND;
/// `STA_UNSYNC` of adjtimex(2): clock not synchronised.
const STA_UNSYNC: i32 = 0x0040;
/// Error of adjtimex(2) from which on the kernel considers a clock as not synchronised, in
/// microseconds (`NTP_PHASE_LIMIT`). As a value of `esterror` it means that there is no estimate.
const MAX_ERROR_US: i64 = (MAX_ERROR_NS / 1_000).cast_signed();
/// Error of a clock that is declared as synchronised, if the kernel does not know its error.
const DECLARED_ERROR_NS: u64 = 1_000_000;

/// Setting of the operator: a daemon synchronises the clock, but the kernel does not know it.
static DECLARED_SYNCHRONISED: AtomicBool = AtomicBool::new(false);

/// Synchronisation state of the local clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockState {
    /// Synchronised by an external source.
    pub synchronised: bool,
    /// Estimated error in nanoseconds; 0 when not synchronised.
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
    read_pair(monotonic)
}

/// Reads the realtime clock, and the time since boot instead of the monotonic clock, which stops
/// while the host is suspended.
pub fn now_since_boot() -> Now {
    read_pair(|| Monotonic(read(ClockId::CLOCK_BOOTTIME)))
}

fn read_pair(monotonic: impl Fn() -> Monotonic) -> Now {
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

/// Declares that the clock of this host is synchronised although the kernel does not know it.
pub fn declare_synchronised(is_synchronised: bool) {
    DECLARED_SYNCHRONISED.store(is_synchronised, Relaxed);
}

fn read_error_estimate() -> ErrorEstimate {
    let mut state = rtime_clock::adjtime::Timex::new();
    let read = rtime_clock::adjtime::adjtimex(&mut state).is_ok();
    let kernel = read.then_some((state.0.status, state.0.esterror, state.0.maxerror));
    estimate(kernel, DECLARED_SYNCHRONISED.load(Relaxed))
}

/// Makes an estimate from `status`, `esterror` and `maxerror` of adjtimex(2), if they could be
/// read. The return value of the call is useless: it is TIME_ERROR even if a daemon synchronises
/// the clock well. timesyncd leaves `esterror` at 0 and phc2sys at 16 s; then `maxerror` is used as
/// the error.
fn estimate(kernel: Option<(i32, i64, i64)>, is_declared: bool) -> ErrorEstimate {
    let kernel = kernel.filter(|(status, _, max_us)| {
        status & STA_UNSYNC == 0 && (0..MAX_ERROR_US).contains(max_us)
    });
    let error_us = kernel.map(|(_, estimated_us, max_us)| match estimated_us {
        1..MAX_ERROR_US => estimated_us,
        // phc2sys sets `maxerror` to 0 with each update. The smallest error that the kernel can
        // express is then used.
        _ => max_us.max(1),
    });
    match error_us.and_then(|error_us| u64::try_from(error_us).ok()) {
        Some(error_us) => ErrorEstimate::new(true, error_us * 1_000),
        None if is_declared => ErrorEstimate::new(true, DECLARED_ERROR_NS),
        None => ErrorEstimate::UNSYNCHRONISED,
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

    /// Values of chronyd with and without `rtcsync`, systemd-timesyncd and phc2sys.
    #[test]
    fn synchronisation_is_judged_by_the_largest_error() {
        let unsync = STA_UNSYNC;
        for (kernel, is_declared, expected_us) in [
            (Some((0x2001, 120, 4_000)), false, Some(120)),
            (Some((0x2001, 0, 250_000)), false, Some(250_000)),
            (Some((0x2001, 16_000_000, 500_000)), false, Some(500_000)),
            (Some((0x2001, 16_000_000, 0)), false, Some(1)),
            (Some((0x2001, 0, 0)), false, Some(1)),
            (Some((0x2001, 120, 16_000_000)), false, None),
            (Some((0x2041, 120, 4_000)), false, None),
            (Some((unsync, 16_000_000, 16_000_000)), false, None),
            (Some((unsync, 16_000_000, 16_000_000)), true, Some(1_000)),
            (Some((0x2001, 120, 4_000)), true, Some(120)),
            (Some((0, -1, -1)), false, None),
            (None, false, None),
            (None, true, Some(1_000)),
        ] {
            let estimate = estimate(kernel, is_declared);
            assert_eq!(estimate.is_synchronised(), expected_us.is_some(), "{kernel:?}");
            if let Some(expected_us) = expected_us {
                // The wire format has 256 steps, and the error is rounded up to the next.
                let error_us = estimate.error_ns() as f64 / 1_000.0;
                assert!(
                    (f64::from(expected_us) * 0.999..f64::from(expected_us) * 1.01)
                        .contains(&error_us),
                    "{kernel:?}: {error_us}"
                );
            }
        }
    }

    #[test]
    fn the_estimate_is_never_corrupt() {
        assert!(!error_estimate().is_unknown());
    }
}
