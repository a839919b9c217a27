//! The data plane: threads that own the sockets of test packets and the machines that process them.
//!
//! A probe passes through no task, channel or runtime timer. Commands of the control plane reach
//! an endpoint through a bounded queue and a waker.

mod shard;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    net::{Drained, TestSocket, ThreadScheduling, Waker},
    session::lock,
    supervise::Heartbeat,
    time::{Monotonic, Now},
};
use shard::{Inbox, PendingEndpoint, Shard};

/// A socket with its machine, owned by one thread of the data plane.
pub(super) trait Endpoint: Send + 'static {
    /// Message type of the control plane.
    type Command: Send + 'static;

    /// Time for which packets may wait in the sockets of the thread, so that one wake-up reads
    /// many. They wait up to twice as long if a timer wakes the thread then anyway. Packets carry
    /// kernel timestamps, so only endpoints that send replies need 0.
    const POLL_COALESCE_NS: u64;

    /// Returns the socket while it is open.
    fn socket(&self) -> Option<&TestSocket>;

    fn handle_command(&mut self, command: Self::Command);

    /// Reads packets from the socket.
    fn receive(&mut self) -> Drained;

    /// Carries out the work that is due at `now`.
    fn advance(&mut self, now: Now);

    /// Returns the time of the next [`Self::advance`]; `None` if no work is scheduled.
    fn deadline(&self) -> Option<Monotonic>;

    /// Returns true when the thread must drop the endpoint.
    fn is_over(&self) -> bool {
        false
    }

    /// Releases resources after the last handle was dropped or [`Self::is_over`] returned true.
    fn end(&mut self);
}

/// Manner in which an endpoint ended.
#[derive(Debug)]
pub(super) enum Exit {
    Clean,
    /// Panic message of the endpoint.
    Panicked(String),
}

/// Sender of commands to one endpoint, which ends when the last handle is dropped.
#[derive(Debug)]
pub(super) struct Handle<C> {
    // Dropped before the last wake-up, so that the thread sees the closed queue.
    commands: Option<mpsc::Sender<C>>,
    notifier: Notifier,
    heartbeat: Heartbeat,
}

#[derive(Clone, Debug)]
struct Notifier {
    id: u64,
    notified: Arc<AtomicBool>,
    notified_ids: Arc<Mutex<Vec<u64>>>,
    has_notifications: Arc<AtomicBool>,
    waker: Waker,
}

impl Notifier {
    fn notify(&self) {
        if !self.notified.swap(true, Ordering::AcqRel) {
            lock(&self.notified_ids).push(self.id);
            self.has_notifications.store(true, Ordering::Release);
            self.waker.wake();
        }
    }
}

impl<C> Clone for Handle<C> {
    fn clone(&self) -> Self {
        let (commands, notifier) = (self.commands.clone(), self.notifier.clone());
        Self { commands, notifier, heartbeat: self.heartbeat.clone() }
    }
}

/// Sender of commands that does not keep its endpoint alive.
#[derive(Debug)]
pub(super) struct WeakHandle<C> {
    commands: Option<mpsc::WeakSender<C>>,
    notifier: Notifier,
}

impl<C> WeakHandle<C> {
    /// Queues a command without waiting; false when the queue is full or the endpoint has ended.
    pub(super) fn try_send(&self, command: C) -> bool {
        let commands = self.commands.as_ref().and_then(mpsc::WeakSender::upgrade);
        let queued = commands.is_some_and(|queue| queue.try_send(command).is_ok());
        self.notifier.notify();
        queued
    }
}

impl<C> Drop for Handle<C> {
    fn drop(&mut self) {
        self.commands = None;
        self.notifier.notify();
    }
}

impl<C> Handle<C> {
    /// Queues a command, waiting while the queue is full. Returns the command when the endpoint
    /// has ended.
    pub(super) async fn send(&self, command: C) -> Result<(), C> {
        let Some(commands) = &self.commands else { return Err(command) };
        let sent = commands.send(command).await.map_err(|unsent| unsent.0);
        self.notifier.notify();
        sent
    }

    /// Queues a command without waiting; false when the queue is full or the endpoint has ended.
    pub(super) fn try_send(&self, command: C) -> bool {
        let queued = self.commands.as_ref().is_some_and(|queue| queue.try_send(command).is_ok());
        self.notifier.notify();
        queued
    }

    /// Returns a handle that does not keep the endpoint alive.
    pub(super) fn downgrade(&self) -> WeakHandle<C> {
        let commands = self.commands.as_ref().map(mpsc::Sender::downgrade);
        WeakHandle { commands, notifier: self.notifier.clone() }
    }

    /// Returns true when the endpoint has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.commands.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// Returns true when the endpoint's thread has stalled.
    pub(super) fn has_stalled(&self) -> bool {
        self.heartbeat.has_stalled()
    }
}

/// Number and scheduling of data-plane threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneSettings {
    /// Number of threads, at least one.
    pub threads: usize,
    /// CPU affinity and priority of each thread.
    pub scheduling: ThreadScheduling,
    /// Duration in microseconds of busy polling on each socket; 0 disables it.
    pub busy_poll_us: u32,
    /// Time before a deadline, in microseconds, from which a thread spins instead of sleeping: a
    /// wake-up takes up to 100 µs on a virtual machine.
    pub spin_before_deadline_us: u32,
}

impl Default for PlaneSettings {
    fn default() -> Self {
        Self {
            threads: 1,
            scheduling: ThreadScheduling::default(),
            busy_poll_us: 0,
            spin_before_deadline_us: 0,
        }
    }
}

/// Threads that share the endpoints of one kind.
pub(super) struct Plane<E: Endpoint> {
    name: &'static str,
    settings: PlaneSettings,
    shards: Mutex<Vec<Shard<E>>>,
}

impl<E: Endpoint> std::fmt::Debug for Plane<E> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, settings, .. } = self;
        formatter
            .debug_struct("Plane")
            .field("name", name)
            .field("settings", settings)
            .finish_non_exhaustive()
    }
}

/// Handle of a new endpoint and the notice of its end.
pub(super) type Spawned<C> = (Handle<C>, oneshot::Receiver<Exit>);

impl<E: Endpoint> Plane<E> {
    /// Starts the threads. The kernel shows each as `name` with its index.
    pub(super) fn start(name: &'static str, settings: PlaneSettings) -> io::Result<Self> {
        let shards: io::Result<Vec<_>> = (0..settings.threads.max(1))
            .map(|index| Shard::start(format!("{name}-{index}"), &settings))
            .collect();
        Ok(Self { name, settings, shards: Mutex::new(shards?) })
    }

    /// Returns the number of threads.
    pub(super) fn threads(&self) -> usize {
        self.settings.threads.max(1)
    }

    /// Creates an endpoint on thread `on`, or on the thread with the fewest endpoints. `endpoint`
    /// receives the thread index; `commands` is the length of its queue.
    pub(super) fn spawn(
        &self,
        endpoint: impl FnOnce(usize) -> E,
        on: Option<usize>,
        commands: usize,
    ) -> io::Result<Spawned<E::Command>> {
        let mut shards = lock(&self.shards);
        let fewest = (0..shards.len()).min_by_key(|index| shards[*index].endpoints());
        let index = on.or(fewest).unwrap_or(0) % shards.len();
        if shards[index].has_stalled() {
            // New endpoints must not wait for a stalled thread.
            let thread = format!("{}-{index}", self.name);
            tracing::error!(thread, "data-plane thread stalled, replacing it");
            shards[index] = Shard::start(thread, &self.settings)?;
        }
        Ok(shards[index].spawn(endpoint(index), commands))
    }
}

impl<E: Endpoint> Shard<E> {
    fn spawn(&self, endpoint: E, commands: usize) -> Spawned<E::Command> {
        let (sender, receiver) = mpsc::channel(commands);
        let (ended, has_ended) = oneshot::channel();
        let notified = Arc::new(AtomicBool::new(false));
        let pending = PendingEndpoint {
            endpoint: Box::new(endpoint),
            commands: receiver,
            notified: notified.clone(),
            ended,
        };
        let Inbox { notified_ids, has_notifications, waker, .. } = self.inbox();
        let id = self.admit(pending);
        let (notified_ids, has_notifications, waker) =
            (notified_ids.clone(), has_notifications.clone(), waker.clone());
        let notifier = Notifier { id, notified, notified_ids, has_notifications, waker };
        notifier.notify();
        (Handle { commands: Some(sender), notifier, heartbeat: self.heartbeat() }, has_ended)
    }
}
