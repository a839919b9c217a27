//! How one thread waits for many sockets, for a point in time and for a bell: epoll, a timer of
//! nanoseconds, and an eventfd.

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

/// Sockets told of with one system call.
const EVENTS: usize = 256;
const BELL: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// Wakes the thread that waits, from any other.
#[derive(Clone, Debug)]
pub struct Bell {
    eventfd: Arc<EventFd>,
    rung: Arc<AtomicBool>,
}

impl Bell {
    /// The thread comes round once more. Cheap where it has yet to come round for an earlier ring.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // It fails only where the counter is full, and then the thread wakes anyway.
            let _ = self.eventfd.write(1);
        }
    }

    /// What was rung for until now is about to be seen to.
    pub fn answer(&self) {
        self.rung.swap(false, Ordering::AcqRel);
    }
}

/// What a thread waits with.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    timer: TimerFd,
    /// What the timer is set to.
    armed: Option<Monotonic>,
    events: Vec<EpollEvent>,
    bell: Bell,
}

impl Poller {
    /// With no socket yet.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        let eventfd =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        // Told at the edge, neither has to be read.
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(&timer, EpollEvent::new(edge, TIMER))?;
        epoll.add(&eventfd, EpollEvent::new(edge, BELL))?;
        let bell = Bell { eventfd: Arc::new(eventfd), rung: Arc::default() };
        Ok(Self { epoll, timer, armed: None, events: vec![EpollEvent::empty(); EVENTS], bell })
    }

    /// Wakes the thread that waits with this.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Tells of this socket by `key` from now on, each time that something comes, until it is
    /// closed. `key` is below 2^63.
    pub fn add(&self, socket: impl AsFd, key: u64) -> io::Result<()> {
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.epoll.add(socket, EpollEvent::new(edge, key))?)
    }

    /// Waits for `until`, for `longest`, for the bell or for sockets, whichever is first; the keys
    /// of sockets go to `ready`.
    pub fn wait(
        &mut self,
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
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &self.events[..count] {
            match event.data() {
                BELL => {}
                // It rang, and is set anew when it is needed again.
                TIMER => self.armed = None,
                key => ready.push(key),
            }
        }
        Ok(())
    }

    fn arm(&mut self, until: Option<Monotonic>) -> io::Result<()> {
        // One that rings too early costs one round more, and setting it another system call.
        let early = |until: Monotonic| self.armed.is_some_and(|armed| armed <= until);
        let Some(until) = until.filter(|until| !early(*until)) else { return Ok(()) };
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
    fn it_wakes_at_the_time_for_a_socket_and_for_the_bell() {
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

        let bell = poller.bell();
        let other = thread::spawn(move || bell.ring());
        poller.wait(None, LONG, &mut ready).unwrap();
        other.join().unwrap();
        assert_eq!(ready, [7], "the bell is no socket");
        poller.bell().answer();
        poller.wait(None, Duration::from_millis(1), &mut ready).unwrap();
    }

    /// One deadline passes, and an earlier one than the timer was set to comes up.
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
