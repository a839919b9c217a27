//! One thread of the data plane: its event loop, endpoints and timers.
//!
//! The thread owns its endpoints. Other threads reach it through the inbox only.

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

use super::{Endpoint, Exit, PlaneSettings};
use crate::{
    net::{Drained, Poller, Waker, apply_scheduling, clock},
    session::lock,
    supervise::{Heartbeat, panic_text},
    time::{Monotonic, NANOS_PER_SECOND},
};

/// Time without a turn after which the thread was paused with the process; it waits for less.
const PAUSE_NS: u64 = 5 * NANOS_PER_SECOND;
/// Limit of the turns in which a socket is drained after a pause.
const MAX_WAITING_TURNS: usize = 64;
/// Number of timers that are handled before sockets are served again.
const MAX_TIMERS_PER_TURN: usize = 64;
/// Pause after an error of epoll, which may repeat immediately.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// An endpoint that its thread has not yet taken over.
pub(super) struct PendingEndpoint<E: Endpoint> {
    pub(super) endpoint: Box<E>,
    pub(super) commands: mpsc::Receiver<E::Command>,
    pub(super) notified: Arc<AtomicBool>,
    pub(super) ended: oneshot::Sender<Exit>,
}

/// State shared with other threads.
pub(super) struct Inbox<E: Endpoint> {
    pending: Mutex<Vec<(u64, PendingEndpoint<E>)>>,
    /// Identifiers of endpoints with new commands.
    pub(super) notified_ids: Arc<Mutex<Vec<u64>>>,
    /// Set when `pending` or `notified_ids` has entries: the loop takes no lock otherwise.
    pub(super) has_notifications: Arc<AtomicBool>,
    pub(super) waker: Waker,
    next_id: AtomicU64,
    endpoints: AtomicUsize,
    closed: AtomicBool,
}

/// Handle of one data-plane thread.
pub(super) struct Shard<E: Endpoint> {
    inbox: Arc<Inbox<E>>,
    heartbeat: Heartbeat,
    thread: Option<JoinHandle<()>>,
}

impl<E: Endpoint> Shard<E> {
    pub(super) fn start(name: String, settings: &PlaneSettings) -> io::Result<Self> {
        let (scheduling, busy_poll_us) = (settings.scheduling.clone(), settings.busy_poll_us);
        let poller = Poller::new()?;
        let inbox = Arc::new(Inbox {
            pending: Mutex::default(),
            notified_ids: Arc::default(),
            has_notifications: Arc::default(),
            waker: poller.waker(),
            next_id: AtomicU64::new(0),
            endpoints: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        });
        let heartbeat = Heartbeat::default();
        let event_loop = EventLoop {
            inbox: inbox.clone(),
            heartbeat: heartbeat.clone(),
            poller,
            slots: Slab::new(),
            slot_by_id: HashMap::new(),
            timers: BinaryHeap::new(),
            unfinished: Vec::new(),
            busy_poll_us,
            spin_before_deadline_ns: u64::from(settings.spin_before_deadline_us) * 1_000,
        };
        let thread = thread::Builder::new().name(name.clone()).spawn(move || {
            for error in apply_scheduling(&scheduling) {
                tracing::warn!(thread = name, %error, "failed to apply thread scheduling");
            }
            event_loop.run();
        })?;
        Ok(Self { inbox, heartbeat, thread: Some(thread) })
    }

    pub(super) fn inbox(&self) -> &Inbox<E> {
        &self.inbox
    }

    /// Queues an endpoint for the thread and returns its identifier.
    pub(super) fn admit(&self, pending: PendingEndpoint<E>) -> u64 {
        let id = self.inbox.next_id.fetch_add(1, Relaxed);
        self.inbox.endpoints.fetch_add(1, Relaxed);
        lock(&self.inbox.pending).push((id, pending));
        self.inbox.has_notifications.store(true, Release);
        id
    }

    /// Returns the number of endpoints.
    pub(super) fn endpoints(&self) -> usize {
        self.inbox.endpoints.load(Relaxed)
    }

    /// Returns true when the event loop has stopped or hangs.
    pub(super) fn has_stalled(&self) -> bool {
        self.heartbeat.has_stalled() || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub(super) fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }
}

impl<E: Endpoint> Drop for Shard<E> {
    fn drop(&mut self) {
        self.inbox.closed.store(true, Release);
        self.inbox.waker.wake();
        // Joining a stalled thread would block forever.
        if let Some(thread) = self.thread.take().filter(|_| !self.heartbeat.has_stalled()) {
            let _ = thread.join();
        }
    }
}

struct Slot<E: Endpoint> {
    id: u64,
    endpoint: Box<E>,
    commands: mpsc::Receiver<E::Command>,
    notified: Arc<AtomicBool>,
    ended: oneshot::Sender<Exit>,
    /// Time of the valid timer of this slot. Other entries of the slot in the heap are stale.
    queued: Option<Monotonic>,
    /// Identifier of the socket registered with the poller.
    watched: Option<u64>,
}

/// Event loop and all state of the thread.
struct EventLoop<E: Endpoint> {
    inbox: Arc<Inbox<E>>,
    heartbeat: Heartbeat,
    poller: Poller,
    slots: Slab<Slot<E>>,
    slot_by_id: HashMap<u64, usize>,
    /// Deadlines with slot indexes. A slot whose deadline moved has several entries.
    timers: BinaryHeap<Reverse<(Monotonic, usize)>>,
    /// Slots whose sockets are not yet drained.
    unfinished: Vec<u64>,
    busy_poll_us: u32,
    spin_before_deadline_ns: u64,
}

impl<E: Endpoint> EventLoop<E> {
    fn run(mut self) {
        let mut ready = Vec::new();
        // Sockets are not polled before `next_poll`; `replies_expected` is true while packets are
        // likely by then.
        let (mut next_poll, mut replies_expected) = (Monotonic(0), false);
        let mut latest_turn = clock::monotonic();
        loop {
            self.heartbeat.beat();
            let now = clock::monotonic();
            if now.since_ns(std::mem::replace(&mut latest_turn, now)) >= PAUSE_NS {
                self.receive_waiting();
            }
            self.inbox.waker.clear();
            self.accept_notifications();
            if self.inbox.closed.load(Acquire) {
                let all: Vec<usize> = self.slots.iter().map(|(index, _)| index).collect();
                all.into_iter().for_each(|index| self.end(index));
                return;
            }
            let ran_timers = self.run_due_timers();
            let next = self.timers.peek().map(|Reverse((at, _))| *at);
            let next = next.map(|at| Monotonic(at.0.saturating_sub(self.spin_before_deadline_ns)));
            let (now, longest) = (clock::monotonic(), self.heartbeat.interval());
            // With a coalescing time of 0, sockets are waited for together with everything else.
            let poll_now = E::POLL_COALESCE_NS > 0 && replies_expected && next_poll <= now;
            if ran_timers && (poll_now || !replies_expected) {
                next_poll = now.plus_ns(E::POLL_COALESCE_NS);
            }
            replies_expected = ran_timers || replies_expected && !poll_now;
            let waited = if poll_now || !self.unfinished.is_empty() {
                self.poller.wait(Some(Monotonic(0)), longest, &mut ready)
            } else if now < next_poll {
                // A timer due shortly afterwards wakes the thread anyway.
                let soon = next.filter(|at| *at < next_poll.plus_ns(E::POLL_COALESCE_NS));
                self.poller.wait_without_sockets(soon.unwrap_or(next_poll), longest)
            } else {
                let waited = self.poller.wait(next, longest, &mut ready);
                next_poll = clock::monotonic().plus_ns(E::POLL_COALESCE_NS);
                replies_expected = !ready.is_empty();
                waited
            };
            if let Err(error) = waited {
                tracing::error!(%error, "data-plane thread failed to wait for sockets");
                thread::park_timeout(ERROR_PAUSE);
            }
            ready.append(&mut self.unfinished);
            for key in ready.drain(..) {
                self.visit(key as usize, |endpoint, unfinished| {
                    *unfinished = endpoint.receive() == Drained::No;
                });
            }
        }
    }

    /// Receives the packets that came while the thread did not run, before any timer: they show that
    /// a peer was not silent, and that a probe was answered in time.
    fn receive_waiting(&mut self) {
        let all: Vec<usize> = self.slots.iter().map(|(index, _)| index).collect();
        for index in all {
            self.visit(index, |endpoint, unfinished| {
                let mut turns = 0..MAX_WAITING_TURNS;
                *unfinished = turns.all(|_| endpoint.receive() == Drained::No);
            });
        }
    }

    /// Takes over pending endpoints and handles queued commands.
    fn accept_notifications(&mut self) {
        // Entries added while the flag is cleared are handled now; later ones set it again.
        let has_notifications = &self.inbox.has_notifications;
        if !has_notifications.load(Relaxed) || !has_notifications.swap(false, AcqRel) {
            return;
        }
        // `notified_ids` is read first: each endpoint named there is then known or pending. A
        // notification without an endpoint would be lost, and all later ones of that endpoint with
        // it.
        let notified_ids = std::mem::take(&mut *lock(&self.inbox.notified_ids));
        let pending = std::mem::take(&mut *lock(&self.inbox.pending));
        for (id, pending) in pending {
            let PendingEndpoint { endpoint, commands, notified, ended } = pending;
            let slot =
                Slot { id, endpoint, commands, notified, ended, queued: None, watched: None };
            let index = self.slots.insert(slot);
            self.slot_by_id.insert(id, index);
            self.visit(index, |_, _| {});
        }
        for id in notified_ids {
            let Some(index) = self.slot_by_id.get(&id).copied() else { continue };
            // Commands whose notification was suppressed by this flag are in the queue now.
            self.slots[index].notified.swap(false, AcqRel);
            while let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.id == id) {
                match slot.commands.try_recv() {
                    Ok(command) => {
                        self.visit(index, |endpoint, _| endpoint.handle_command(command));
                    }
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        self.end(index);
                        break;
                    }
                }
            }
        }
    }

    /// Runs due timers; returns true if there were any.
    fn run_due_timers(&mut self) -> bool {
        for done in 0..MAX_TIMERS_PER_TURN {
            let now = clock::monotonic();
            let due = self.timers.peek().filter(|Reverse((at, _))| *at <= now);
            let Some(Reverse((at, index))) = due.copied() else { return done > 0 };
            self.timers.pop();
            if let Some(slot) = self.slots.get_mut(index)
                && slot.queued == Some(at)
            {
                slot.queued = None;
                self.visit(index, |_, _| {});
            }
        }
        true
    }

    /// Runs `act` and due work on an endpoint, then registers its socket and deadline. A panic
    /// ends this endpoint only.
    fn visit(&mut self, index: usize, act: impl FnOnce(&mut E, &mut bool)) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let mut unfinished = false;
        let acted = catch_unwind(AssertUnwindSafe(|| {
            act(&mut slot.endpoint, &mut unfinished);
            slot.endpoint.advance(clock::now());
        }));
        if let Err(panic) = acted {
            let text = panic_text(panic.as_ref()).to_owned();
            self.remove(index, |_| Exit::Panicked(text));
            return;
        }
        if slot.endpoint.is_over() {
            return self.end(index);
        }
        if unfinished {
            self.unfinished.push(index as u64);
        }
        // The kernel stops watching a socket when it is closed.
        if let Some(socket) = slot.endpoint.socket()
            && slot.watched != Some(socket.id())
        {
            if self.busy_poll_us > 0
                && let Err(error) = socket.set_busy_poll(self.busy_poll_us)
            {
                tracing::debug!(%error, "failed to enable busy polling");
            }
            match self.poller.add(socket, index as u64) {
                Ok(()) => slot.watched = Some(socket.id()),
                Err(error) => tracing::error!(%error, "failed to watch test socket"),
            }
        }
        if let Some(at) = slot.endpoint.deadline()
            && slot.queued.is_none_or(|queued| at < queued)
        {
            slot.queued = Some(at);
            self.timers.push(Reverse((at, index)));
        }
    }

    fn end(&mut self, index: usize) {
        self.remove(index, |slot| {
            // Queued commands are handled so that their senders receive an answer.
            slot.commands.close();
            let drained = catch_unwind(AssertUnwindSafe(|| {
                while let Ok(command) = slot.commands.try_recv() {
                    slot.endpoint.handle_command(command);
                }
                slot.endpoint.end();
            }));
            match drained {
                Ok(()) => Exit::Clean,
                Err(panic) => Exit::Panicked(panic_text(panic.as_ref()).to_owned()),
            }
        });
    }

    fn remove(&mut self, index: usize, finish: impl FnOnce(&mut Slot<E>) -> Exit) {
        let Some(mut slot) = self.slots.try_remove(index) else { return };
        self.slot_by_id.remove(&slot.id);
        let exit = finish(&mut slot);
        self.inbox.endpoints.fetch_sub(1, Relaxed);
        let Slot { endpoint, commands, ended: notice, .. } = slot;
        // Sockets and addresses are released before the end is announced.
        drop((endpoint, commands));
        let _ = notice.send(exit);
    }
}
