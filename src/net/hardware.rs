//! Network interfaces that stamp packets themselves: which they are, and what their clocks show in
//! the time of this host. An interface is one of the whole host, so this is one of the process.

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

/// How often the clocks are compared: one that nobody disciplines drifts some microseconds meanwhile.
const COMPARE_EVERY: Duration = Duration::from_millis(100);
/// After so many comparisons an interface that does not stamp is tried again.
const ROUNDS: u32 = 50;
/// Comparisons of which the narrowest counts.
const TRIES: usize = 5;
/// A stamp that is further from that of the kernel is of another clock.
const FURTHEST_NS: u64 = NANOS_PER_SECOND;
/// Instead of a distance, where the clock does not answer.
const UNKNOWN: i64 = i64::MIN;

static INTERFACES: RwLock<Vec<Interface>> = RwLock::new(Vec::new());

#[derive(Clone)]
struct Interface {
    name: String,
    clock: Result<Arc<HardwareClock>, String>,
}

/// How an interface is that is to stamp packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HardwareState {
    /// Its name.
    pub interface: String,
    /// Why it does not stamp; empty where it does.
    pub detail: String,
    /// How exactly its clock is known, nanoseconds.
    pub error_ns: u64,
}

/// The clock of an interface (PTP hardware clock).
#[derive(Debug)]
pub(super) struct HardwareClock {
    /// As long as it is open, it is a clock.
    device: File,
    /// What the time of this host is more.
    ahead_ns: AtomicI64,
    error_ns: AtomicU64,
}

impl HardwareClock {
    /// Makes an interface stamp all that it sends and receives, and opens its clock.
    fn of(interface: &str) -> Result<Self, String> {
        let name = InterfaceName::from_str(interface).map_err(|()| "this is no name".to_owned())?;
        if name.get_index().is_none() {
            return Err("there is no such interface".into());
        }
        let number = name.lookup_phc().ok_or("it has no clock of its own (ethtool -T)")?;
        // That the interface stamps is what this socket leaves behind.
        open_interface_udp(name, 0, InterfaceTimestampMode::HardwareAll, None)
            .map_err(|error| format!("it does not stamp all packets: {error}"))?;
        let path = format!("/dev/ptp{number}");
        let device = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        let clock =
            Self { device, ahead_ns: AtomicI64::new(UNKNOWN), error_ns: AtomicU64::default() };
        clock.compare().map_err(|error| format!("{path}: {error}"))?;
        Ok(clock)
    }

    /// Compares it with the clock of this host.
    fn compare(&self) -> io::Result<()> {
        self.compare_with(of_device(&self.device))
    }

    fn compare_with(&self, clock: ClockId) -> io::Result<()> {
        let mut narrowest: Option<(u64, i64)> = None;
        for _ in 0..TRIES {
            let before = read(ClockId::CLOCK_REALTIME)?;
            let there = read(clock).inspect_err(|_| self.ahead_ns.store(UNKNOWN, Relaxed))?;
            let after = read(ClockId::CLOCK_REALTIME)?;
            let Some(width) = after.checked_sub(before) else { continue };
            let ahead = (before + width / 2).wrapping_sub(there).cast_signed();
            if narrowest.is_none_or(|(least, _)| width < least) {
                narrowest = Some((width, ahead));
            }
        }
        let found = narrowest.ok_or_else(|| io::Error::other("the clock of this host went back"));
        let (width, ahead) = found?;
        self.ahead_ns.store(ahead, Relaxed);
        self.error_ns.store(width.div_ceil(2), Relaxed);
        Ok(())
    }

    /// What it showed, in the time of this host; `None` where that is nowhere near `about`: the
    /// stamp is of another clock, or this one was set just now.
    pub(super) fn in_host_time(&self, shown_ns: u64, about: UnixTime) -> Option<UnixTime> {
        in_host_time(self.ahead_ns.load(Relaxed), shown_ns, about)
    }
}

fn in_host_time(ahead_ns: i64, shown_ns: u64, about: UnixTime) -> Option<UnixTime> {
    if ahead_ns == UNKNOWN || shown_ns == 0 {
        return None;
    }
    let time = UnixTime(shown_ns.wrapping_add_signed(ahead_ns));
    (time.since_ns(about).unsigned_abs() <= FURTHEST_NS).then_some(time)
}

/// The identifier of the clock of an open device: `FD_TO_CLOCKID` of clock_gettime(2).
fn of_device(device: &File) -> ClockId {
    ClockId::from_raw((!(device.as_raw_fd() as clockid_t) << 3) | 3)
}

fn read(clock: ClockId) -> io::Result<u64> {
    let time = clock_gettime(clock)?;
    let seconds = (time.tv_sec() as u64).wrapping_mul(NANOS_PER_SECOND);
    Ok(seconds.wrapping_add(time.tv_nsec() as u64))
}

/// The clock that stamps what a socket of this address sends and receives.
pub(super) fn clock_of(address: SocketAddr, interface: Option<&str>) -> Option<Arc<HardwareClock>> {
    let all = INTERFACES.read().unwrap_or_else(PoisonError::into_inner);
    if all.is_empty() {
        return None;
    }
    let name = match interface {
        Some(name) => name.to_owned(),
        None => InterfaceName::from_socket_addr(address).ok()??.as_str().to_owned(),
    };
    all.iter().find(|one| one.name == name)?.clock.as_ref().ok().cloned()
}

/// How the interfaces are that are to stamp packets.
pub fn hardware_states() -> Vec<HardwareState> {
    let all = INTERFACES.read().unwrap_or_else(PoisonError::into_inner);
    let state = |Interface { name, clock }: &Interface| HardwareState {
        interface: name.clone(),
        detail: clock.as_ref().err().cloned().unwrap_or_default(),
        error_ns: clock.as_ref().map_or(0, |clock| clock.error_ns.load(Relaxed)),
    };
    all.iter().map(state).collect()
}

/// Makes these interfaces stamp packets; one that does not is told of in the log and in
/// [`hardware_states`], and tried again by [`follow_hardware`]. Inside a runtime.
pub fn stamp_by_hardware(names: &[String]) {
    let opened = names.iter().map(|name| open(name, None)).collect();
    *INTERFACES.write().unwrap_or_else(PoisonError::into_inner) = opened;
}

fn open(name: &str, before: Option<&str>) -> Interface {
    let clock = HardwareClock::of(name).map(Arc::new);
    match &clock {
        Ok(_) => tracing::info!(interface = name, "packets are stamped by the interface"),
        Err(detail) if before != Some(detail) => {
            tracing::warn!(interface = name, "packets are stamped by the kernel: {detail}");
        }
        Err(_) => {}
    }
    Interface { name: name.to_owned(), clock }
}

/// Compares the clocks again and again, until `token` is cancelled.
pub async fn follow_hardware(token: CancellationToken) {
    let mut every = tokio::time::interval(COMPARE_EVERY);
    let mut round = 0;
    while !INTERFACES.read().unwrap_or_else(PoisonError::into_inner).is_empty() {
        tokio::select! {
            _ = every.tick() => {}
            () = token.cancelled() => return,
        }
        round = (round + 1) % ROUNDS;
        let all = INTERFACES.read().unwrap_or_else(PoisonError::into_inner).clone();
        let followed = all.into_iter().map(|interface| follow(interface, round == 0)).collect();
        *INTERFACES.write().unwrap_or_else(PoisonError::into_inner) = followed;
    }
}

fn follow(interface: Interface, again: bool) -> Interface {
    match &interface.clock {
        Ok(clock) => match clock.compare() {
            Ok(()) => interface,
            Err(error) => {
                let detail = format!("its clock cannot be read: {error}");
                tracing::warn!(interface = interface.name, "{detail}");
                Interface { clock: Err(detail), ..interface }
            }
        },
        Err(detail) if again => open(&interface.name, Some(detail)),
        Err(_) => interface,
    }
}

/// An interface that is said to stamp packets, by a clock that never answers.
#[cfg(test)]
pub(super) fn pretend(interface: &str) {
    let device = File::open("/dev/null").unwrap();
    let (ahead_ns, error_ns) = (AtomicI64::new(0), AtomicU64::default());
    let clock = Ok(Arc::new(HardwareClock { device, ahead_ns, error_ns }));
    *INTERFACES.write().unwrap() = vec![Interface { name: interface.to_owned(), clock }];
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = NANOS_PER_SECOND as i64;

    #[test]
    fn a_stamp_is_told_in_the_time_of_the_host_or_not_at_all() {
        let now = UnixTime(1_800_000_000 * NANOS_PER_SECOND);
        // A clock that shows TAI is 37 s ahead.
        let shown = now.plus_ns(37 * SECOND - 5_000).0;
        assert_eq!(in_host_time(-37 * SECOND, shown, now), Some(now.plus_ns(-5_000)));
        assert_eq!(in_host_time(-36 * SECOND + 1, shown, now), Some(now.plus_ns(SECOND - 4_999)));
        for (ahead, shown) in
            [(0, shown), (UNKNOWN, shown), (-37 * SECOND, 0), (-35 * SECOND, shown), (0, u64::MAX)]
        {
            assert_eq!(in_host_time(ahead, shown, now), None, "{ahead} {shown}");
        }
    }

    /// The clock of this host, in the place of one that a device has.
    #[test]
    fn a_clock_is_compared_with_that_of_the_host() {
        let clock = HardwareClock {
            device: File::open("/dev/null").unwrap(),
            ahead_ns: AtomicI64::new(UNKNOWN),
            error_ns: AtomicU64::default(),
        };
        let now = || read(ClockId::CLOCK_REALTIME).map(UnixTime).unwrap();
        assert_eq!(clock.in_host_time(1, now()), None);
        clock.compare_with(ClockId::CLOCK_MONOTONIC).unwrap();
        let shown = read(ClockId::CLOCK_MONOTONIC).unwrap();
        let told = clock.in_host_time(shown, now()).unwrap();
        assert!(now().since_ns(told) < SECOND / 10);
        clock.compare().unwrap_err();
        assert_eq!(clock.in_host_time(shown, now()), None, "it does not answer any more");
    }

    #[tokio::test]
    async fn an_interface_without_a_clock_says_so_and_the_kernel_stamps() {
        for (name, detail) in [
            ("lo", "it has no clock of its own (ethtool -T)"),
            ("gone0", "there is no such interface"),
            ("a name that is too long", "this is no name"),
        ] {
            let Interface { clock, .. } = open(name, None);
            assert_eq!(clock.unwrap_err(), detail, "{name}");
        }
    }
}
