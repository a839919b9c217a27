//! One thread of the data plane.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use slab::Slab;
use tokio::sync::{mpsc, oneshot};

use super::{Ended, Endpoint, PlaneSettings};
use crate::{
    net::{Bell, Drained, Poller, clock, take_place},
    session::lock,
    supervise::{Pulse, panic_text},
    time::Monotonic,
};

/// Endpoints that do what is due before sockets have their turn.
const DUE_AT_ONCE: usize = 64;
/// Rest after an error of epoll, which may come again at once.
const REST: Duration = Duration::from_millis(100);

/// An endpoint on its way to its thread.
pub(super) struct Newcomer<E: Endpoint> {
    pub(super) endpoint: Box<E>,
    pub(super) commands: mpsc::Receiver<E::Command>,
    pub(super) rung: Arc<AtomicBool>,
    pub(super) ended: oneshot::Sender<Ended>,
}

/// What comes to a thread from others.
pub(super) struct Inbox<E: Endpoint> {
    newcomers: Mutex<Vec<(u64, Newcomer<E>)>>,
    /// Endpoints that were told something.
    pub(super) calls: Arc<Mutex<Vec<u64>>>,
    /// Whether there is anything in either: rounds without a call take no lock.
    pub(super) called: Arc<AtomicBool>,
    pub(super) bell: Bell,
    next_id: AtomicU64,
    endpoints: AtomicUsize,
    closed: AtomicBool,
}

/// A thread, as others see it.
pub(super) struct Shard<E: Endpoint> {
    inbox: Arc<Inbox<E>>,
    pulse: Pulse,
    thread: Option<JoinHandle<()>>,
}

impl<E: Endpoint> Shard<E> {
    /// Starts the thread.
    pub(super) fn start(name: String, settings: &PlaneSettings) -> io::Result<Self> {
        let (place, busy_poll_us) = (settings.place.clone(), settings.busy_poll_us);
        let poller = Poller::new()?;
        let inbox = Arc::new(Inbox {
            newcomers: Mutex::default(),
            calls: Arc::default(),
            called: Arc::default(),
            bell: poller.bell(),
            next_id: AtomicU64::new(0),
            endpoints: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        });
        let pulse = Pulse::default();
        let round = Round {
            inbox: inbox.clone(),
            pulse: pulse.clone(),
            poller,
            places: Slab::new(),
            names: HashMap::new(),
            timers: BinaryHeap::new(),
            again: Vec::new(),
            busy_poll_us,
            awake_ns: u64::from(settings.spin_before_deadline_us) * 1_000,
        };
        let thread = thread::Builder::new().name(name.clone()).spawn(move || {
            for refused in take_place(&place) {
                tracing::warn!(thread = name, "not granted: {refused}");
            }
            round.run();
        })?;
        Ok(Self { inbox, pulse, thread: Some(thread) })
    }

    pub(super) fn inbox(&self) -> &Inbox<E> {
        &self.inbox
    }

    /// Puts an endpoint where its thread finds it; its number.
    pub(super) fn admit(&self, newcomer: Newcomer<E>) -> u64 {
        let id = self.inbox.next_id.fetch_add(1, Relaxed);
        self.inbox.endpoints.fetch_add(1, Relaxed);
        lock(&self.inbox.newcomers).push((id, newcomer));
        self.inbox.called.store(true, Release);
        id
    }

    /// Endpoints that it has.
    pub(super) fn endpoints(&self) -> usize {
        self.inbox.endpoints.load(Relaxed)
    }

    /// Whether it does not come round any more.
    pub(super) fn has_stalled(&self) -> bool {
        self.pulse.has_stalled() || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub(super) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }
}

impl<E: Endpoint> Drop for Shard<E> {
    fn drop(&mut self) {
        self.inbox.closed.store(true, Release);
        self.inbox.bell.ring();
        // One that has stalled would hold this one up for ever.
        if let Some(thread) = self.thread.take().filter(|_| !self.pulse.has_stalled()) {
            let _ = thread.join();
        }
    }
}

struct Place<E: Endpoint> {
    id: u64,
    endpoint: Box<E>,
    commands: mpsc::Receiver<E::Command>,
    rung: Arc<AtomicBool>,
    ended: oneshot::Sender<Ended>,
    /// The earliest time for which a timer of it is set.
    queued: Option<Monotonic>,
    /// The socket of it that is watched.
    watched: Option<u64>,
}

/// What the thread has.
struct Round<E: Endpoint> {
    inbox: Arc<Inbox<E>>,
    pulse: Pulse,
    poller: Poller,
    places: Slab<Place<E>>,
    /// Where the endpoint of a number is.
    names: HashMap<u64, usize>,
    /// Times, and the places that they are of; a place whose time was moved has more than one.
    timers: BinaryHeap<Reverse<(Monotonic, usize)>>,
    /// Places that have more to read.
    again: Vec<u64>,
    busy_poll_us: u32,
    /// So long before something is due it sleeps no more.
    awake_ns: u64,
}

impl<E: Endpoint> Round<E> {
    fn run(mut self) {
        let mut ready = Vec::new();
        // Before that, sockets are left alone; and whether anything is expected there by then.
        let (mut next_look, mut answers_follow) = (Monotonic(0), false);
        loop {
            self.pulse.beat();
            self.inbox.bell.answer();
            self.take_calls();
            if self.inbox.closed.load(Acquire) {
                let all: Vec<usize> = self.places.iter().map(|(index, _)| index).collect();
                all.into_iter().for_each(|index| self.end(index));
                return;
            }
            let did = self.do_what_is_due();
            let next = self.timers.peek().map(|Reverse((at, _))| *at);
            let next = next.map(|at| Monotonic(at.0.saturating_sub(self.awake_ns)));
            let (now, rest) = (clock::monotonic(), self.pulse.rest());
            // Without patience sockets are waited for like everything else.
            let look = E::PATIENCE_NS > 0 && answers_follow && next_look <= now;
            if did && (look || !answers_follow) {
                next_look = now.plus_ns(E::PATIENCE_NS);
            }
            answers_follow = did || answers_follow && !look;
            let waited = if look || !self.again.is_empty() {
                self.poller.wait(Some(Monotonic(0)), rest, &mut ready)
            } else if now < next_look {
                // What is due soon after wakes the thread anyway.
                let soon = next.filter(|at| *at < next_look.plus_ns(E::PATIENCE_NS));
                self.poller.wait_without_sockets(soon.unwrap_or(next_look), rest)
            } else {
                let waited = self.poller.wait(next, rest, &mut ready);
                next_look = clock::monotonic().plus_ns(E::PATIENCE_NS);
                answers_follow = !ready.is_empty();
                waited
            };
            if let Err(error) = waited {
                tracing::error!(%error, "a thread of the data plane cannot wait for its sockets");
                thread::park_timeout(REST);
            }
            ready.append(&mut self.again);
            for key in ready.drain(..) {
                self.visit(key as usize, |endpoint, again| {
                    *again = endpoint.receive() == Drained::No;
                });
            }
        }
    }

    /// Takes up newcomers, and what endpoints were told.
    fn take_calls(&mut self) {
        // What is put there while this is cleared is taken now; what is put there later sets it again.
        let called = &self.inbox.called;
        if !called.load(Relaxed) || !called.swap(false, AcqRel) {
            return;
        }
        // In this order: whoever is called is among the newcomers by then, and a call that finds
        // nobody is lost, and with it each later one.
        let calls = std::mem::take(&mut *lock(&self.inbox.calls));
        let newcomers = std::mem::take(&mut *lock(&self.inbox.newcomers));
        for (id, newcomer) in newcomers {
            let Newcomer { endpoint, commands, rung, ended } = newcomer;
            let place = Place { id, endpoint, commands, rung, ended, queued: None, watched: None };
            let index = self.places.insert(place);
            self.names.insert(id, index);
            self.visit(index, |_, _| {});
        }
        for id in calls {
            let Some(index) = self.names.get(&id).copied() else { continue };
            // What was told before a call that was left out, because of this one, is in the queue.
            self.places[index].rung.swap(false, AcqRel);
            while let Some(place) = self.places.get_mut(index).filter(|place| place.id == id) {
                match place.commands.try_recv() {
                    Ok(command) => self.visit(index, |endpoint, _| endpoint.obey(command)),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        self.end(index);
                        break;
                    }
                }
            }
        }
    }

    /// Whether anything was.
    fn do_what_is_due(&mut self) -> bool {
        for done in 0..DUE_AT_ONCE {
            let now = clock::monotonic();
            let due = self.timers.peek().filter(|Reverse((at, _))| *at <= now);
            let Some(Reverse((at, index))) = due.copied() else { return done > 0 };
            self.timers.pop();
            if let Some(place) = self.places.get_mut(index)
                && place.queued == Some(at)
            {
                place.queued = None;
                self.visit(index, |_, _| {});
            }
        }
        true
    }

    /// Lets an endpoint do something, then what is due, and sees to what follows. One that panics
    /// is gone, and the others go on.
    fn visit(&mut self, index: usize, act: impl FnOnce(&mut E, &mut bool)) {
        let Some(place) = self.places.get_mut(index) else { return };
        let mut again = false;
        let acted = catch_unwind(AssertUnwindSafe(|| {
            act(&mut place.endpoint, &mut again);
            place.endpoint.advance(clock::now());
        }));
        if let Err(panic) = acted {
            let text = panic_text(panic.as_ref()).to_owned();
            self.remove(index, |_| Ended::Panicked(text));
            return;
        }
        if place.endpoint.is_over() {
            return self.end(index);
        }
        if again {
            self.again.push(index as u64);
        }
        // One that is closed is watched no more.
        if let Some(socket) = place.endpoint.socket()
            && place.watched != Some(socket.id())
        {
            if self.busy_poll_us > 0
                && let Err(error) = socket.set_busy_poll(self.busy_poll_us)
            {
                tracing::debug!(%error, "no busy polling");
            }
            match self.poller.add(socket, index as u64) {
                Ok(()) => place.watched = Some(socket.id()),
                Err(error) => tracing::error!(%error, "a test socket cannot be watched"),
            }
        }
        if let Some(at) = place.endpoint.deadline()
            && place.queued.is_none_or(|queued| at < queued)
        {
            place.queued = Some(at);
            self.timers.push(Reverse((at, index)));
        }
    }

    fn end(&mut self, index: usize) {
        self.remove(index, |place| {
            // Whatever is still in the queue is answered.
            place.commands.close();
            let ended = catch_unwind(AssertUnwindSafe(|| {
                while let Ok(command) = place.commands.try_recv() {
                    place.endpoint.obey(command);
                }
                place.endpoint.end();
            }));
            match ended {
                Ok(()) => Ended::InForm,
                Err(panic) => Ended::Panicked(panic_text(panic.as_ref()).to_owned()),
            }
        });
    }

    fn remove(&mut self, index: usize, how: impl FnOnce(&mut Place<E>) -> Ended) {
        let Some(mut place) = self.places.try_remove(index) else { return };
        self.names.remove(&place.id);
        let ended = how(&mut place);
        self.inbox.endpoints.fetch_sub(1, Relaxed);
        let Place { endpoint, commands, ended: told, .. } = place;
        // What it holds is free before anybody hears of its end.
        drop((endpoint, commands));
        let _ = told.send(ended);
    }
}
