//! The data plane: threads that own the sockets of test packets and what stands behind them. A
//! probe meets no task, no channel and no timer of a runtime on its way; what the control plane
//! wants of an endpoint comes to it by a queue and a bell.

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
    net::{Bell, Drained, TestSocket, ThreadPlace},
    session::lock,
    supervise::Pulse,
    time::{Monotonic, Now},
};
use shard::{Inbox, Newcomer, Shard};

/// What a thread of the data plane owns and looks after.
pub(super) trait Endpoint: Send + 'static {
    /// What it can be told.
    type Command: Send + 'static;

    /// For so long packets may lie in the sockets of its thread before they are taken, and once more
    /// so long where something is due then: whoever needs no more than their stamps spares a wake-up
    /// for each. 0 where somebody waits.
    const PATIENCE_NS: u64;

    /// Its socket, while it has one.
    fn socket(&self) -> Option<&TestSocket>;

    /// Does what it is told.
    fn obey(&mut self, command: Self::Command);

    /// Takes what came to the socket.
    fn receive(&mut self) -> Drained;

    /// Does what is due.
    fn advance(&mut self, now: Now);

    /// When something will be due.
    fn deadline(&self) -> Option<Monotonic>;

    /// Whether it has nothing more to do.
    fn is_over(&self) -> bool {
        false
    }

    /// Nobody is left to tell it anything, or it is over.
    fn end(&mut self);
}

/// How an endpoint ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// As it was to.
    InForm,
    /// It panicked.
    Panicked(String),
}

/// Tells an endpoint what to do. The endpoint ends when the last of its handles is dropped.
#[derive(Debug)]
pub(super) struct Handle<C> {
    // Closed before the bell rings for the last time.
    commands: Option<mpsc::Sender<C>>,
    caller: Caller,
    pulse: Pulse,
}

#[derive(Clone, Debug)]
struct Caller {
    id: u64,
    rung: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<u64>>>,
    called: Arc<AtomicBool>,
    bell: Bell,
}

impl Caller {
    fn call(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            lock(&self.calls).push(self.id);
            self.called.store(true, Ordering::Release);
            self.bell.ring();
        }
    }
}

impl<C> Clone for Handle<C> {
    fn clone(&self) -> Self {
        let (commands, caller) = (self.commands.clone(), self.caller.clone());
        Self { commands, caller, pulse: self.pulse.clone() }
    }
}

impl<C> Drop for Handle<C> {
    fn drop(&mut self) {
        self.commands = None;
        self.caller.call();
    }
}

impl<C> Handle<C> {
    /// Waits for room in the queue; gives the command back where the endpoint is no more.
    pub(super) async fn tell(&self, command: C) -> Result<(), C> {
        let Some(commands) = &self.commands else { return Err(command) };
        let sent = commands.send(command).await.map_err(|unsent| unsent.0);
        self.caller.call();
        sent
    }

    /// For where one cannot wait: `false` where there is no room.
    pub(super) fn try_tell(&self, command: C) -> bool {
        let told = self.commands.as_ref().is_some_and(|queue| queue.try_send(command).is_ok());
        self.caller.call();
        told
    }

    /// Whether the endpoint is no more.
    pub(super) fn is_closed(&self) -> bool {
        self.commands.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// Whether the thread that has the endpoint has stalled.
    pub(super) fn has_stalled(&self) -> bool {
        self.pulse.has_stalled()
    }
}

/// How many threads, and how they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneSettings {
    /// Threads, at least one.
    pub threads: usize,
    /// Where and how urgently each runs.
    pub place: ThreadPlace,
    /// For so many microseconds sockets are asked for packets before a thread sleeps; 0 for none.
    pub busy_poll_us: u32,
    /// So many microseconds before something is due a thread sleeps no more: waking up takes its
    /// time, on a virtual machine a tenth of a millisecond.
    pub spin_before_deadline_us: u32,
}

impl Default for PlaneSettings {
    fn default() -> Self {
        Self {
            threads: 1,
            place: ThreadPlace::default(),
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

/// A new endpoint: how to tell it something, and how it ended once it did.
pub(super) type Spawned<C> = (Handle<C>, oneshot::Receiver<Ended>);

impl<E: Endpoint> Plane<E> {
    /// Starts the threads; `name` is what the kernel shows of them, with a number.
    pub(super) fn start(name: &'static str, settings: PlaneSettings) -> io::Result<Self> {
        let shards: io::Result<Vec<_>> = (0..settings.threads.max(1))
            .map(|index| Shard::start(format!("{name}-{index}"), &settings))
            .collect();
        Ok(Self { name, settings, shards: Mutex::new(shards?) })
    }

    /// Threads.
    pub(super) fn threads(&self) -> usize {
        self.settings.threads.max(1)
    }

    /// Gives an endpoint, made for the thread of an index, to the one that has the fewest, or to
    /// that of the index `on`.
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
            // Whatever holds it up, new endpoints are not to suffer from it.
            let name = format!("{}-{index}", self.name);
            tracing::error!(thread = name, "a thread of the data plane has stalled: another one");
            shards[index] = Shard::start(name, &self.settings)?;
        }
        Ok(shards[index].spawn(endpoint(index), commands))
    }
}

impl<E: Endpoint> Shard<E> {
    fn spawn(&self, endpoint: E, commands: usize) -> Spawned<E::Command> {
        let (sender, receiver) = mpsc::channel(commands);
        let (ended, has_ended) = oneshot::channel();
        let rung = Arc::new(AtomicBool::new(false));
        let newcomer = Newcomer {
            endpoint: Box::new(endpoint),
            commands: receiver,
            rung: rung.clone(),
            ended,
        };
        let Inbox { calls, called, bell, .. } = self.inbox();
        let id = self.admit(newcomer);
        let (calls, called, bell) = (calls.clone(), called.clone(), bell.clone());
        let caller = Caller { id, rung, calls, called, bell };
        caller.call();
        (Handle { commands: Some(sender), caller, pulse: self.pulse() }, has_ended)
    }
}
