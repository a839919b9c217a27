//! Open connections and sessions of the server role, counted against the limits and published by
//! the API. Dropping the guard of an entry removes it.

mod admission;
mod connections;
mod sessions;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use super::counters;
use crate::{
    net::clock,
    proto::{
        EndCause, EndedConnections, GetServerStatusResponse, KeyCounters, PacketCounters, Refusal,
        RefusalCause, RefusedConnections, RefusedSessions, ServerConnection, ServerSession,
        ServerSocket,
    },
    time::UnixTime,
    twamp::{control_server::ServerError, reflector::ReflectorCounters},
    wire::codes::Accept,
};
use connections::OpenConnection;
use sessions::Sessions;

pub(super) use admission::{ConnectionRefusal, SessionRefusal};
pub(super) use connections::ConnectionEntry;
pub(super) use sessions::{SessionEnd, SessionEntry, SessionRemoval};

/// Number of stored refusals.
const MAX_REFUSALS: usize = 64;

/// Registry of the server role.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    start_time: UnixTime,
    /// Packet counters of each data-plane thread.
    packets: Vec<Arc<ReflectorCounters>>,
}

#[derive(Debug, Default)]
struct Inner {
    connections: BTreeMap<u64, OpenConnection>,
    sessions: Sessions,
    accepted: u64,
    refused: BTreeMap<i32, u64>,
    sessions_refused: BTreeMap<u8, u64>,
    ended: BTreeMap<i32, u64>,
    /// Latest refusals, newest first.
    latest_refusals: VecDeque<Refusal>,
    sockets: Vec<ServerSocket>,
    keys: KeyCounters,
    irregular_stops: u64,
    ip_versions_corrected: u64,
}

impl Registry {
    /// Creates the registry of a server that starts now.
    pub fn new(packets: Vec<Arc<ReflectorCounters>>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), start_time: clock::unix(), packets })
    }

    /// Returns the Start-Time of the server, the same for all connections.
    pub(super) fn start_time(&self) -> UnixTime {
        self.start_time
    }

    /// Publishes the state of all sockets.
    pub(super) fn set_sockets(&self, sockets: Vec<ServerSocket>) {
        self.lock().sockets = sockets;
    }

    /// Counts an authentication; `accepted` is `None` if too many clients were waiting.
    pub(super) fn count_authentication(&self, accepted: Option<bool>) {
        let keys = &mut self.lock().keys;
        match accepted {
            Some(true) => keys.accepted += 1,
            Some(false) => keys.refused += 1,
            None => keys.busy += 1,
        }
    }

    /// Counts a refused session.
    pub(super) fn session_refused(&self, client: SocketAddr, refusal: &SessionRefusal) {
        let mut inner = self.lock();
        let SessionRefusal { accept, detail } = refusal;
        *inner.sessions_refused.entry(accept.0).or_default() += 1;
        inner.remember(client, RefusalCause::Unspecified, *accept, detail.clone());
    }

    /// Counts a refused connection.
    pub(super) fn connection_refused(&self, client: SocketAddr, refusal: &ConnectionRefusal) {
        let mut inner = self.lock();
        let ConnectionRefusal { cause, detail } = refusal;
        *inner.refused.entry((*cause).into()).or_default() += 1;
        inner.remember(client, *cause, Accept::OK, detail.clone());
    }

    /// Counts a session whose IP version was taken from the control connection.
    pub(super) fn ip_version_corrected(&self) {
        self.lock().ip_versions_corrected += 1;
    }

    /// Counts the end of an admitted connection.
    pub(super) fn count_end(&self, cause: EndCause) {
        *self.lock().ended.entry(cause.into()).or_default() += 1;
    }

    /// Counts the end of a connection if it was an irregular stop.
    pub(super) fn count_irregular_stop(&self, error: &ServerError) {
        if matches!(error, ServerError::WrongSessionCount { .. } | ServerError::BrokenStop) {
            self.lock().irregular_stops += 1;
        }
    }

    /// Returns the status of the server role.
    pub fn status(&self) -> GetServerStatusResponse {
        let inner = self.lock();
        GetServerStatusResponse {
            sockets: inner.sockets.clone(),
            connections_open: inner.connections.len() as u32,
            sessions_open: inner.sessions.open() as u32,
            sessions_draining: inner.sessions.draining() as u32,
            ip_versions_corrected: inner.ip_versions_corrected,
            connections_accepted: inner.accepted,
            connections_refused: inner
                .refused
                .iter()
                .map(|(cause, count)| RefusedConnections { cause: *cause, count: *count })
                .collect(),
            packets: Some(
                self.packets
                    .iter()
                    .fold(PacketCounters::default(), |sum, thread| counters::add(sum, thread)),
            ),
            latest_refusals: inner.latest_refusals.iter().cloned().collect(),
            sessions_refused: inner
                .sessions_refused
                .iter()
                .map(|(accept, count)| RefusedSessions {
                    accept_code: (*accept).into(),
                    count: *count,
                })
                .collect(),
            connections_ended: inner
                .ended
                .iter()
                .map(|(cause, count)| EndedConnections { cause: *cause, count: *count })
                .collect(),
            keys: Some(inner.keys),
            irregular_stops: inner.irregular_stops,
            start_time: Some(self.start_time.to_proto()),
        }
    }

    /// Returns the control connections in order of id.
    pub fn connections(&self) -> Vec<ServerConnection> {
        let inner = self.lock();
        let with_count = |connection: &OpenConnection| ServerConnection {
            sessions: inner.sessions.of_connection(connection.shown.id).count() as u32,
            ..connection.shown.clone()
        };
        inner.connections.values().map(with_count).collect()
    }

    /// Returns the sessions of a connection, or of all connections if `connection` is 0.
    pub fn sessions(&self, connection: u64) -> Vec<ServerSession> {
        let inner = self.lock();
        let chosen: Vec<_> = match connection {
            0 => inner.sessions.all().collect(),
            one => inner.sessions.of_connection(one).collect(),
        };
        let shown = |session: &sessions::Session| ServerSession {
            packets_received: session.counters.received.load(Relaxed),
            packets_reflected: session.counters.reflected.load(Relaxed),
            last_sequence_received: session.counters.last_received.load(Relaxed),
            last_sequence_sent: session.counters.last_sent.load(Relaxed),
            ..session.shown.clone()
        };
        chosen.into_iter().map(shown).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn remember(
        &mut self,
        client: SocketAddr,
        cause: RefusalCause,
        accept: Accept,
        detail: String,
    ) {
        self.latest_refusals.truncate(MAX_REFUSALS - 1);
        self.latest_refusals.push_front(Refusal {
            time: Some(clock::unix().to_proto()),
            client_address: client.to_string(),
            cause: cause.into(),
            accept_code: accept.0.into(),
            detail,
        });
    }
}

/// Returns a list of the clients that hold most of a limited resource, the largest holder first.
fn describe_holders(clients: impl Iterator<Item = IpAddr>) -> String {
    const NAMED: usize = 3;
    let mut counts = BTreeMap::new();
    clients.for_each(|client| *counts.entry(client).or_insert(0_usize) += 1);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let named = counts.iter().take(NAMED).map(|(client, count)| format!("{client} ({count})"));
    let named = named.collect::<Vec<_>>().join(", ");
    match counts.len().saturating_sub(NAMED) {
        0 => named,
        others => format!("{named} and {others} others"),
    }
}

#[cfg(test)]
mod tests;
