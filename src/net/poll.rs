//! Poller with which one thread waits for many sockets, a point in time and a waker.
//!
//! It uses epoll, a timerfd and an eventfd. A wait can exclude the sockets: their packets then stay
//! queued with their timestamps, which saves a wake-up for each packet.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};

use super::clock;
use crate::time::Monotonic;

/// Events read with one system call.
const EVENTS: usize = 256;
const WAKER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// Wakes a waiting thread from any other thread.
#[derive(Clone, Debug)]
pub struct Waker {
    eventfd: Arc<EventFd>,
    pending: Arc<AtomicBool>,
}

impl Waker {
    /// Ends the current or next wait. Costs no system call while an earlier wake-up is pending.
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // The write fails only if the counter is full, and then the thread wakes anyway.
            let _ = self.eventfd.write(1);
        }
    }

    /// Acknowledges all wake-ups so far; call before handling their causes.
    pub fn clear(&self) {
        self.pending.swap(false, Ordering::AcqRel);
    }
}

/// Poller of one thread.
#[derive(Debug)]
pub struct Poller {
    /// Sockets, timer and waker.
    all: Epoll,
    /// Timer and waker without sockets.
    without_sockets: Epoll,
    timer: TimerFd,
    /// Expiry time of the timer.
    armed: Option<Monotonic>,
    events: Vec<EpollEvent>,
    waker: Waker,
}

#[derive(Clone, Copy)]
enum Sources {
    All,
    WithoutSockets,
}

impl Poller {
    /// Creates a poller without sockets.
    pub fn new() -> io::Result<Self> {
        let (all, without_sockets) = (
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        );
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        let eventfd =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        // With edge triggering, neither the timer nor the eventfd has to be read.
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        for epoll in [&all, &without_sockets] {
            epoll.add(&timer, EpollEvent::new(edge, TIMER))?;
            epoll.add(&eventfd, EpollEvent::new(edge, WAKER))?;
        }
        let waker = Waker { eventfd: Arc::new(eventfd), pending: Arc::default() };
        let events = vec![EpollEvent::empty(); EVENTS];
        Ok(Self { all, without_sockets, timer, armed: None, events, waker })
    }

    /// Returns a waker of this poller.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Watches a socket until it is closed; its packets are reported as `key`, which must be below
    /// 2^63.
    pub fn add(&self, socket: impl AsFd, key: u64) -> io::Result<()> {
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.all.add(socket, EpollEvent::new(edge, key))?)
    }

    /// Waits for `until`, `longest`, the waker or a socket, whichever is first, and appends the
    /// keys of readable sockets to `ready`.
    pub fn wait(
        &mut self,
        until: Option<Monotonic>,
        longest: Duration,
        ready: &mut Vec<u64>,
    ) -> io::Result<()> {
        self.wait_for(Sources::All, until, longest, ready)
    }

    /// Waits like [`Self::wait`] but ignores sockets.
    pub fn wait_without_sockets(&mut self, until: Monotonic, longest: Duration) -> io::Result<()> {
        self.wait_for(Sources::WithoutSockets, Some(until), longest, &mut Vec::new())
    }

    fn wait_for(
        &mut self,
        sources: Sources,
        until: Option<Monotonic>,
        longest: Duration,
        ready: &mut Vec<u64>,
    ) -> io::Result<()> {
        let due = until.is_some_and(|until| until <= clock::monotonic());
        let timeout = if due {
            EpollTimeout::ZERO
        } else {
            self.arm(until)?;
            EpollTimeout::try_from(longest).unwrap_or(EpollTimeout::NONE)
        };
        let epoll = match sources {
            Sources::All => &self.all,
            Sources::WithoutSockets => &self.without_sockets,
        };
        let count = match epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &self.events[..count] {
            match event.data() {
                WAKER | TIMER => {}
                // Only a transmit timestamp is available. The owner of the socket reads it with its
                // next packet.
                _ if !event.events().contains(EpollFlags::EPOLLIN) => {}
                key => ready.push(key),
            }
        }
        Ok(())
    }

    fn arm(&mut self, until: Option<Monotonic>) -> io::Result<()> {
        let Some(until) = until else { return Ok(()) };
        // A timer that expires too early costs only one more turn of the loop, but setting it again
        // costs a system call.
        if self.armed.is_some_and(|armed| clock::monotonic() < armed && armed <= until) {
            return Ok(());
        }
        let at = TimeSpec::from_duration(Duration::from_nanos(until.0));
        self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        self.armed = Some(until);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, thread};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_wait_ends_at_its_time_for_a_socket_and_for_the_waker() {
        let mut poller = Poller::new().unwrap();
        let mut ready = Vec::new();
        let due = clock::monotonic().plus_ns(3_000_000);
        while clock::monotonic() < due {
            poller.wait(Some(due), LONG, &mut ready).unwrap();
        }
        assert!(ready.is_empty());

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        poller.add(&socket, 7).unwrap();
        socket.send_to(&[1], socket.local_addr().unwrap()).unwrap();
        poller.wait(None, LONG, &mut ready).unwrap();
        assert_eq!(ready, [7]);

        let waker = poller.waker();
        let other = thread::spawn(move || waker.wake());
        poller.wait(None, LONG, &mut ready).unwrap();
        other.join().unwrap();
        assert_eq!(ready, [7], "the waker is no socket");
        poller.waker().clear();
        poller.wait(None, Duration::from_millis(1), &mut ready).unwrap();
    }

    #[test]
    fn sockets_can_be_excluded_from_a_wait() {
        let mut poller = Poller::new().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        poller.add(&socket, 7).unwrap();
        socket.send_to(&[1], socket.local_addr().unwrap()).unwrap();
        let due = clock::monotonic().plus_ns(5_000_000);
        while clock::monotonic() < due {
            poller.wait_without_sockets(due, LONG).unwrap();
        }
        let mut ready = Vec::new();
        poller.wait(Some(due), LONG, &mut ready).unwrap();
        assert_eq!(ready, [7], "reported by the next wait for sockets");
    }

    /// The timer must be set to an earlier time than before.
    #[test]
    fn an_earlier_time_replaces_a_later_one() {
        let mut poller = Poller::new().unwrap();
        let later = clock::monotonic().plus_ns(20_000_000_000);
        poller.wait(Some(later), Duration::from_millis(1), &mut Vec::new()).unwrap();
        let sooner = clock::monotonic().plus_ns(1_000_000);
        while clock::monotonic() < sooner {
            poller.wait(Some(sooner), LONG, &mut Vec::new()).unwrap();
        }
        assert!(clock::monotonic() < later);
    }
}
