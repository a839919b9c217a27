//! How one thread waits for many sockets, for a point in time and for a bell: epoll, a timer of
//! nanoseconds, and an eventfd. Sockets can be left for a while: what comes to them lies there with
//! its stamp, and a thread that is woken for each packet does little else.

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
    /// Of sockets, timer and bell.
    all: Epoll,
    /// Of timer and bell.
    calls: Epoll,
    timer: TimerFd,
    /// What the timer is set to.
    armed: Option<Monotonic>,
    events: Vec<EpollEvent>,
    bell: Bell,
}

#[derive(Clone, Copy)]
enum Which {
    All,
    Calls,
}

impl Poller {
    /// With no socket yet.
    pub fn new() -> io::Result<Self> {
        let (all, calls) = (
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        );
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        let eventfd =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        // Told at the edge, neither has to be read.
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        for epoll in [&all, &calls] {
            epoll.add(&timer, EpollEvent::new(edge, TIMER))?;
            epoll.add(&eventfd, EpollEvent::new(edge, BELL))?;
        }
        let bell = Bell { eventfd: Arc::new(eventfd), rung: Arc::default() };
        let events = vec![EpollEvent::empty(); EVENTS];
        Ok(Self { all, calls, timer, armed: None, events, bell })
    }

    /// Wakes the thread that waits with this.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Tells of this socket by `key` from now on, each time that something comes, until it is
    /// closed. `key` is below 2^63.
    pub fn add(&self, socket: impl AsFd, key: u64) -> io::Result<()> {
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.all.add(socket, EpollEvent::new(edge, key))?)
    }

    /// Waits for `until`, for `longest`, for the bell or for sockets, whichever is first; the keys
    /// of sockets go to `ready`.
    pub fn wait(
        &mut self,
        until: Option<Monotonic>,
        longest: Duration,
        ready: &mut Vec<u64>,
    ) -> io::Result<()> {
        self.wait_for(Which::All, until, longest, ready)
    }

    /// The same, and leaves sockets alone.
    pub fn wait_without_sockets(&mut self, until: Monotonic, longest: Duration) -> io::Result<()> {
        self.wait_for(Which::Calls, Some(until), longest, &mut Vec::new())
    }

    fn wait_for(
        &mut self,
        which: Which,
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
        let epoll = match which {
            Which::All => &self.all,
            Which::Calls => &self.calls,
        };
        let count = match epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &self.events[..count] {
            match event.data() {
                BELL | TIMER => {}
                // Of the stamp of a packet that went out, which is read with the next that comes.
                _ if !event.events().contains(EpollFlags::EPOLLIN) => {}
                key => ready.push(key),
            }
        }
        Ok(())
    }

    fn arm(&mut self, until: Option<Monotonic>) -> io::Result<()> {
        let Some(until) = until else { return Ok(()) };
        // One that rings too early costs one round more, and setting it another system call.
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

    #[test]
    fn sockets_can_be_left_alone() {
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
        assert_eq!(ready, [7], "it is told when it is asked for");
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
