//! Test sessions of all connections. A stopped session drains: it still answers packets, and its
//! connection may be gone.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    fmt::{self, Debug, Formatter},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::sync::mpsc;

use super::Registry;
use crate::{
    proto::{ServerSession, ServerSessionState},
    time::Monotonic,
    twamp::reflector::SessionCounters,
    wire::codes::Sid,
};

/// Limit of the draining sessions of all clients, as a multiple of `maximum_sessions`, which is the
/// limit for each client. Beyond these limits the oldest draining sessions end, so that no client
/// is refused because of them.
const MAX_DRAINING_FACTOR: usize = 3;

/// Reason for the end of a session without a command of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session::server) enum SessionEnd {
    /// No packet arrived for REFWAIT.
    Silent,
    /// Its socket was closed.
    SocketClosed,
}

/// Removal of a session from its reflector.
pub(in crate::session::server) struct SessionRemoval(Box<dyn Fn() + Send + Sync>);

impl SessionRemoval {
    pub(in crate::session::server) fn new(remove: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Box::new(remove))
    }
}

impl Debug for SessionRemoval {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("SessionRemoval")
    }
}

/// Key of a session: the id of its connection and its own number.
pub(super) type Key = (u64, u64);

/// A session from its acceptance to its end.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) shown: ServerSession,
    pub(super) counters: Arc<SessionCounters>,
    pub(super) client: IpAddr,
    pub(super) accepted: Monotonic,
    removal: Option<SessionRemoval>,
}

/// All sessions in order of connection and acceptance.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: BTreeMap<Key, Session>,
    accepted: u64,
    /// Stopped sessions of each client in the order in which they were stopped.
    draining: BTreeMap<IpAddr, VecDeque<Key>>,
    draining_count: usize,
}

impl Session {
    pub(super) fn new(
        shown: ServerSession,
        counters: Arc<SessionCounters>,
        client: IpAddr,
        accepted: Monotonic,
    ) -> Self {
        Self { shown, counters, client, accepted, removal: None }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shown.state() == ServerSessionState::Draining
    }
}

impl Sessions {
    /// Returns the number of sessions that are not stopped.
    pub(super) fn open(&self) -> usize {
        self.all.len() - self.draining_count
    }

    pub(super) fn draining(&self) -> usize {
        self.draining_count
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Session> {
        self.all.values()
    }

    /// Returns the sessions of a connection.
    pub(super) fn of_connection(&self, connection: u64) -> impl Iterator<Item = &Session> {
        self.all.range((connection, 0)..=(connection, u64::MAX)).map(|(_, session)| session)
    }

    pub(super) fn insert(&mut self, connection: u64, session: Session) -> Key {
        self.accepted += 1;
        let key = (connection, self.accepted);
        self.all.insert(key, session);
        key
    }

    fn set(&mut self, key: Key, state: ServerSessionState) {
        let Some(session) = self.all.get_mut(&key) else { return };
        // A session on several threads is counted once.
        if state == ServerSessionState::Draining && !session.is_draining() {
            self.draining.entry(session.client).or_default().push_back(key);
            self.draining_count += 1;
        }
        session.shown.state = state.into();
    }

    fn remove(&mut self, key: Key) -> Option<Session> {
        let session = self.all.remove(&key)?;
        if session.is_draining() {
            self.draining_count -= 1;
            if let Some(queue) = self.draining.get_mut(&session.client) {
                queue.retain(|other| *other != key);
                if queue.is_empty() {
                    self.draining.remove(&session.client);
                }
            }
        }
        Some(session)
    }

    /// Ends the oldest draining sessions beyond the limits. `client` is about to have another
    /// session.
    pub(super) fn limit_draining(&mut self, client: IpAddr, maximum_sessions: usize) {
        let of_client = self.draining.get(&client).map_or(0, VecDeque::len);
        for _ in maximum_sessions..of_client {
            self.end_oldest(client);
        }
        let maximum = maximum_sessions.saturating_mul(MAX_DRAINING_FACTOR);
        while self.draining_count > maximum {
            // Among clients with equally many sessions, the one with the oldest session is chosen.
            let most = self.draining.iter().max_by_key(|(_, queue)| {
                (queue.len(), Reverse(queue.front().map(|(_, number)| *number)))
            });
            let Some((client, _)) = most else { return };
            self.end_oldest(*client);
        }
    }

    fn end_oldest(&mut self, client: IpAddr) {
        if let Some(key) = self.draining.get(&client).and_then(|queue| queue.front()).copied() {
            self.end(key);
        }
    }

    /// Ends the draining sessions of these connections, even of closed ones. Returns the number of
    /// ended sessions.
    pub(super) fn end_draining(&mut self, connections: &[u64]) -> usize {
        let keys = self.draining.values().flatten();
        let keys: Vec<Key> = keys.filter(|(id, _)| connections.contains(id)).copied().collect();
        keys.iter().for_each(|key| self.end(*key));
        keys.len()
    }

    /// Returns the connections of the draining sessions of the chosen clients.
    pub(super) fn draining_connections(
        &self,
        chosen: impl Fn(IpAddr) -> bool,
    ) -> impl Iterator<Item = u64> {
        let queues = self.draining.iter().filter(move |(client, _)| chosen(**client));
        queues.flat_map(|(_, queue)| queue.iter().map(|(id, _)| *id))
    }

    /// Removes a session here and at its reflector.
    fn end(&mut self, key: Key) {
        if let Some(SessionRemoval(remove)) = self.remove(key).and_then(|session| session.removal) {
            remove();
        }
    }
}

/// Registry entry of a session; dropping it removes the session.
#[derive(Debug)]
pub(in crate::session::server) struct SessionEntry {
    registry: Arc<Registry>,
    key: Key,
    ended: mpsc::Sender<(Sid, SessionEnd)>,
    /// Set when one of the threads with this session has reported its end.
    is_reported: AtomicBool,
    is_draining: AtomicBool,
}

impl SessionEntry {
    pub(super) fn new(
        registry: Arc<Registry>,
        key: Key,
        ended: mpsc::Sender<(Sid, SessionEnd)>,
    ) -> Self {
        let (is_reported, is_draining) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { registry, key, ended, is_reported, is_draining }
    }

    pub(in crate::session::server) fn set(&self, state: ServerSessionState) {
        self.is_draining.store(state == ServerSessionState::Draining, Relaxed);
        self.registry.lock().sessions.set(self.key, state);
    }

    /// Returns true if the session was not stopped although its connection is gone. This happens
    /// when the command to remove it did not fit into the queue of the socket.
    pub(in crate::session::server) fn is_orphaned(&self) -> bool {
        self.ended.is_closed() && !self.is_draining.load(Relaxed)
    }

    /// Publishes the reflector address of the session.
    pub(in crate::session::server) fn set_reflector(&self, reflector: SocketAddr) {
        if let Some(session) = self.registry.lock().sessions.all.get_mut(&self.key) {
            session.shown.reflector_address = reflector.to_string();
        }
    }

    /// Sets the removal of the session from its reflector.
    pub(in crate::session::server) fn set_removal(&self, removal: SessionRemoval) {
        if let Some(session) = self.registry.lock().sessions.all.get_mut(&self.key) {
            session.removal = Some(removal);
        }
    }

    /// Reports the end of the session to its connection. The queue has room for one notice per
    /// session.
    pub(in crate::session::server) fn report_end(&self, sid: Sid, end: SessionEnd) {
        if !self.is_reported.swap(true, Relaxed) {
            let _ = self.ended.try_send((sid, end));
        }
    }
}

impl Drop for SessionEntry {
    fn drop(&mut self) {
        self.registry.lock().sessions.remove(self.key);
    }
}
