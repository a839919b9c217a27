//! Hardware timestamps: interfaces that timestamp packets, and the offsets of their clocks.
//!
//! The list is global because an interface belongs to the whole host.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    str::FromStr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::{
    libc::clockid_t,
    time::{ClockId, clock_gettime},
};
use timestamped_socket::{
    interface::InterfaceName,
    socket::{InterfaceTimestampMode, open_interface_udp},
};
use tokio_util::sync::CancellationToken;

use crate::time::{NANOS_PER_SECOND, UnixTime};

/// Interval between comparisons of the clocks, in which a free-running clock drifts some
/// microseconds.
const COMPARE_INTERVAL: Duration = Duration::from_millis(100);
/// Comparisons after which an interface without timestamps is tried again.
const RETRY_AFTER_COMPARISONS: u32 = 50;
/// Readings per comparison. Only the shortest reading counts.
const READINGS: usize = 5;
/// Largest difference between the timestamps of the interface and the kernel. A larger difference
/// means that the clock was set, or that the timestamp is of another clock.
const MAX_DIFFERENCE_NS: u64 = NANOS_PER_SECOND;
/// Offset of a clock that does not respond.
const UNKNOWN: i64 = i64::MIN;

static INTERFACES: RwLock<Vec<Interface>> = RwLock::new(Vec::new());

#[derive(Clone)]
struct Interface {
    name: String,
    clock: Result<Arc<HardwareClock>, String>,
}

/// State of an interface configured for hardware timestamps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HardwareState {
    /// Name of the network interface.
    pub interface: String,
    /// Reason why the interface does not timestamp packets; empty if it does.
    pub detail: String,
    /// Error of the clock offset in nanoseconds.
    pub error_ns: u64,
}

/// PTP hardware clock of an interface.
#[derive(Debug)]
pub(super) struct HardwareClock {
    /// Kept open: the clock identifier is derived from the file descriptor.
    device: File,
    /// Host time minus time of this clock.
    offset_ns: AtomicI64,
    error_ns: AtomicU64,
}

impl HardwareClock {
    /// Enables timestamps of all packets on an interface and opens its clock.
    fn open(interface: &str) -> Result<Self, String> {
        let name =
            InterfaceName::from_str(interface).map_err(|()| "invalid interface name".to_owned())?;
        if name.get_index().is_none() {
            return Err("no such interface".into());
        }
        let number = name.lookup_phc().ok_or("no PTP hardware clock, see `ethtool -T`")?;
        // The interface continues to timestamp packets after this socket is closed.
        open_interface_udp(name, 0, InterfaceTimestampMode::HardwareAll, None)
            .map_err(|error| format!("failed to enable timestamps of all packets: {error}"))?;
        let path = format!("/dev/ptp{number}");
        let device = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        let clock =
            Self { device, offset_ns: AtomicI64::new(UNKNOWN), error_ns: AtomicU64::default() };
        clock.compare().map_err(|error| format!("{path}: {error}"))?;
        Ok(clock)
    }

    /// Measures the offset from the host clock.
    fn compare(&self) -> io::Result<()> {
        self.compare_with(clock_of_device(&self.device))
    }

    fn compare_with(&self, clock: ClockId) -> io::Result<()> {
        let mut narrowest: Option<(u64, i64)> = None;
        for _ in 0..READINGS {
            let before = read(ClockId::CLOCK_REALTIME)?;
            let device_time =
                read(clock).inspect_err(|_| self.offset_ns.store(UNKNOWN, Relaxed))?;
            let after = read(ClockId::CLOCK_REALTIME)?;
            let Some(width) = after.checked_sub(before) else { continue };
            let offset_ns = (before + width / 2).wrapping_sub(device_time).cast_signed();
            if narrowest.is_none_or(|(least, _)| width < least) {
                narrowest = Some((width, offset_ns));
            }
        }
        let found = narrowest
            .ok_or_else(|| io::Error::other("host clock stepped back during the comparison"));
        let (width, offset_ns) = found?;
        self.offset_ns.store(offset_ns, Relaxed);
        self.error_ns.store(width.div_ceil(2), Relaxed);
        Ok(())
    }

    /// Converts a timestamp to host time. `None` when the result differs from `near` by more than
    /// [`MAX_DIFFERENCE_NS`].
    pub(super) fn to_host_time(&self, timestamp_ns: u64, near: UnixTime) -> Option<UnixTime> {
        to_host_time(self.offset_ns.load(Relaxed), timestamp_ns, near)
    }
}

fn to_host_time(offset_ns: i64, timestamp_ns: u64, near: UnixTime) -> Option<UnixTime> {
    if offset_ns == UNKNOWN || timestamp_ns == 0 {
        return None;
    }
    let time = UnixTime(timestamp_ns.wrapping_add_signed(offset_ns));
    (time.since_ns(near).unsigned_abs() <= MAX_DIFFERENCE_NS).then_some(time)
}

/// Returns the clock identifier of an open device: `FD_TO_CLOCKID` of clock_gettime(2).
fn clock_of_device(device: &File) -> ClockId {
    ClockId::from_raw((!(device.as_raw_fd() as clockid_t) << 3) | 3)
}

fn read(clock: ClockId) -> io::Result<u64> {
    let time = clock_gettime(clock)?;
    let seconds = (time.tv_sec() as u64).wrapping_mul(NANOS_PER_SECOND);
    Ok(seconds.wrapping_add(time.tv_nsec() as u64))
}

/// Returns the clock that timestamps the packets of a socket on this address.
pub(super) fn clock_of(address: SocketAddr, interface: Option<&str>) -> Option<Arc<HardwareClock>> {
    let all = INTERFACES.read().unwrap_or_else(PoisonError::into_inner);
    if all.is_empty() {
        return None;
    }
    let name = match interface {
        Some(name) => name.to_owned(),
        None => InterfaceName::from_socket_addr(address).ok()??.as_str().to_owned(),
    };
    all.iter().find(|interface| interface.name == name)?.clock.as_ref().ok().cloned()
}

/// Returns the state of each configured interface.
pub fn hardware_states() -> Vec<HardwareState> {
    let all = INTERFACES.read().unwrap_or_else(PoisonError::into_inner);
    let state = |Interface { name, clock }: &Interface| HardwareState {
        interface: name.clone(),
        detail: clock.as_ref().err().cloned().unwrap_or_default(),
        error_ns: clock.as_ref().map_or(0, |clock| clock.error_ns.load(Relaxed)),
    };
    all.iter().map(state).collect()
}

/// Enables hardware timestamps on these interfaces. [`follow_hardware`] retries those that fail.
/// Must be called inside a runtime.
pub fn enable_hardware_stamps(names: &[String]) {
    let opened = names.iter().map(|name| open(name, None)).collect();
    *INTERFACES.write().unwrap_or_else(PoisonError::into_inner) = opened;
}

fn open(name: &str, before: Option<&str>) -> Interface {
    let clock = HardwareClock::open(name).map(Arc::new);
    match &clock {
        Ok(_) => tracing::info!(interface = name, "hardware timestamps enabled"),
        Err(detail) if before != Some(detail) => {
            tracing::warn!(
                interface = name,
                cause = detail,
                "hardware timestamps unavailable, using kernel timestamps"
            );
        }
        Err(_) => {}
    }
    Interface { name: name.to_owned(), clock }
}

/// Measures the clock offsets periodically until `token` is cancelled.
pub async fn follow_hardware(token: CancellationToken) {
    let mut ticks = tokio::time::interval(COMPARE_INTERVAL);
    let mut comparisons = 0;
    while !INTERFACES.read().unwrap_or_else(PoisonError::into_inner).is_empty() {
        tokio::select! {
            _ = ticks.tick() => {}
            () = token.cancelled() => return,
        }
        comparisons = (comparisons + 1) % RETRY_AFTER_COMPARISONS;
        let all = INTERFACES.read().unwrap_or_else(PoisonError::into_inner).clone();
        let updated =
            all.into_iter().map(|interface| update(interface, comparisons == 0)).collect();
        *INTERFACES.write().unwrap_or_else(PoisonError::into_inner) = updated;
    }
}

fn update(interface: Interface, retry: bool) -> Interface {
    match &interface.clock {
        Ok(clock) => match clock.compare() {
            Ok(()) => interface,
            Err(error) => {
                let detail = format!("failed to read clock: {error}");
                tracing::warn!(interface = interface.name, %error, "hardware clock lost, using kernel timestamps");
                Interface { clock: Err(detail), ..interface }
            }
        },
        Err(detail) if retry => open(&interface.name, Some(detail)),
        Err(_) => interface,
    }
}

/// Configures an interface with a clock that never responds.
#[cfg(test)]
pub(super) fn pretend(interface: &str) {
    let device = File::open("/dev/null").unwrap();
    let (offset_ns, error_ns) = (AtomicI64::new(0), AtomicU64::default());
    let clock = Ok(Arc::new(HardwareClock { device, offset_ns, error_ns }));
    *INTERFACES.write().unwrap() = vec![Interface { name: interface.to_owned(), clock }];
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = NANOS_PER_SECOND as i64;

    #[test]
    fn timestamps_are_converted_to_host_time_or_rejected() {
        let now = UnixTime(1_800_000_000 * NANOS_PER_SECOND);
        // A clock in TAI is 37 s ahead.
        let shown = now.plus_ns(37 * SECOND - 5_000).0;
        assert_eq!(to_host_time(-37 * SECOND, shown, now), Some(now.plus_ns(-5_000)));
        assert_eq!(to_host_time(-36 * SECOND + 1, shown, now), Some(now.plus_ns(SECOND - 4_999)));
        for (ahead, shown) in
            [(0, shown), (UNKNOWN, shown), (-37 * SECOND, 0), (-35 * SECOND, shown), (0, u64::MAX)]
        {
            assert_eq!(to_host_time(ahead, shown, now), None, "{ahead} {shown}");
        }
    }

    /// The monotonic clock of the host stands in for a PTP clock.
    #[test]
    fn the_offset_from_the_host_clock_is_measured() {
        let clock = HardwareClock {
            device: File::open("/dev/null").unwrap(),
            offset_ns: AtomicI64::new(UNKNOWN),
            error_ns: AtomicU64::default(),
        };
        let now = || read(ClockId::CLOCK_REALTIME).map(UnixTime).unwrap();
        assert_eq!(clock.to_host_time(1, now()), None);
        clock.compare_with(ClockId::CLOCK_MONOTONIC).unwrap();
        let shown = read(ClockId::CLOCK_MONOTONIC).unwrap();
        let host_time = clock.to_host_time(shown, now()).unwrap();
        assert!(now().since_ns(host_time) < SECOND / 10);
        clock.compare().unwrap_err();
        assert_eq!(
            clock.to_host_time(shown, now()),
            None,
            "a clock that stopped responding is not used"
        );
    }

    #[tokio::test]
    async fn an_interface_without_a_clock_reports_the_reason() {
        for (name, detail) in [
            ("lo", "no PTP hardware clock, see `ethtool -T`"),
            ("gone0", "no such interface"),
            ("a name that is too long", "invalid interface name"),
        ] {
            let Interface { clock, .. } = open(name, None);
            assert_eq!(clock.unwrap_err(), detail, "{name}");
        }
    }
}
