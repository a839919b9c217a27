//! Open connections and sessions of the server role, counted against the limits and published by
//! the API. Each entry is removed by the drop of its guard.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::counters;
use crate::{
    model::ServerConfig,
    net::clock,
    proto::{
        EndCause, EndedConnections, GetServerStatusResponse, KeyCounters, PacketCounters, Refusal,
        RefusalCause, RefusedConnections, RefusedSessions, ServerConnection, ServerConnectionState,
        ServerSession, ServerSessionState, ServerSocket,
    },
    time::UnixTime,
    twamp::{
        control_server::ServerError,
        reflector::{ReflectorCounters, SessionCounters},
    },
    wire::codes::{Accept, Sid},
};

/// Limit of draining sessions, as a multiple of `maximum_sessions`: a client that reconnects
/// immediately finds room, but one that does so repeatedly cannot take all.
const MAX_DRAINING_FACTOR: usize = 3;
/// Number of stored refusals.
const MAX_REFUSALS: usize = 64;

/// Reason for the end of a session without a command of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionEnd {
    /// No packet for REFWAIT.
    Silent,
    /// Its socket was closed.
    SocketClosed,
}

/// Registry of the server role.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    start_time: UnixTime,
    /// Packet counters of each data-plane thread.
    packets: Vec<Arc<ReflectorCounters>>,
}

#[derive(Debug)]
struct Client {
    address: IpAddr,
    /// Closes the control connection when cancelled.
    close: CancellationToken,
}

#[derive(Debug, Default)]
struct Inner {
    connections: BTreeMap<u64, ServerConnection>,
    clients: BTreeMap<u64, Client>,
    sessions: BTreeMap<(u64, u64), (ServerSession, Arc<SessionCounters>)>,
    accepted: u64,
    sessions_accepted: u64,
    refused: BTreeMap<i32, u64>,
    sessions_refused: BTreeMap<u8, u64>,
    ended: BTreeMap<i32, u64>,
    /// Latest refusals, newest first.
    latest_refusals: VecDeque<Refusal>,
    sockets: Vec<ServerSocket>,
    keys: KeyCounters,
    irregular_stops: u64,
    /// Stopped sessions that still answer packets.
    draining: usize,
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

    /// Admits a connection if limits and client lists allow it.
    pub(super) fn admit(
        self: &Arc<Self>,
        config: &ServerConfig,
        client: SocketAddr,
        local: SocketAddr,
    ) -> Result<ConnectionEntry, RefusalCause> {
        let mut inner = self.lock();
        let address = client.ip();
        let of_client = inner.clients.values().filter(|other| other.address == address).count();
        let refusal = if !config.allows(address) {
            Some(RefusalCause::NotListed)
        } else if inner.connections.len() >= config.maximum_connections {
            Some(RefusalCause::MaximumConnections)
        } else if of_client >= config.maximum_connections_per_client {
            Some(RefusalCause::MaximumConnectionsPerClient)
        } else {
            None
        };
        if let Some(cause) = refusal {
            *inner.refused.entry(cause.into()).or_default() += 1;
            let detail = match cause {
                RefusalCause::MaximumConnections => {
                    format!("maximum_connections is {}", config.maximum_connections)
                }
                RefusalCause::MaximumConnectionsPerClient => format!(
                    "maximum_connections_per_client is {}",
                    config.maximum_connections_per_client
                ),
                RefusalCause::NotListed | RefusalCause::Unspecified => {
                    format!("{address} is in no client_list")
                }
            };
            inner.refuse(client, cause, 0, detail);
            return Err(cause);
        }
        inner.accepted += 1;
        let id = inner.accepted;
        let close = CancellationToken::new();
        inner.clients.insert(id, Client { address, close: close.clone() });
        inner.connections.insert(
            id,
            ServerConnection {
                id,
                client_address: client.to_string(),
                local_address: local.to_string(),
                state: ServerConnectionState::Setup.into(),
                accept_time: Some(clock::unix().to_proto()),
                ..ServerConnection::default()
            },
        );
        Ok(ConnectionEntry { registry: self.clone(), id, close })
    }

    /// Publishes the state of all sockets.
    pub(super) fn set_sockets(&self, sockets: Vec<ServerSocket>) {
        self.lock().sockets = sockets;
    }

    /// Counts an authentication; `None` when too many clients were waiting.
    pub(super) fn key_used(&self, accepted: Option<bool>) {
        let keys = &mut self.lock().keys;
        match accepted {
            Some(true) => keys.accepted += 1,
            Some(false) => keys.refused += 1,
            None => keys.busy += 1,
        }
    }

    /// Counts a refused session.
    pub(super) fn session_refused(&self, client: SocketAddr, accept: Accept, detail: String) {
        let mut inner = self.lock();
        *inner.sessions_refused.entry(accept.0).or_default() += 1;
        inner.refuse(client, RefusalCause::Unspecified, accept.0, detail);
    }

    /// Counts the end of an admitted connection.
    pub(super) fn ended(&self, cause: EndCause) {
        *self.lock().ended.entry(cause.into()).or_default() += 1;
    }

    /// Closes the connections with these ids; `Err` with the first that is not open.
    pub fn close(&self, ids: &[u64]) -> Result<(), u64> {
        let inner = self.lock();
        if let Some(unknown) = ids.iter().find(|id| !inner.clients.contains_key(id)) {
            return Err(*unknown);
        }
        ids.iter().filter_map(|id| inner.clients.get(id)).for_each(|client| client.close.cancel());
        Ok(())
    }

    /// Returns the ids of connections whose client address is `chosen`.
    pub fn connections_of(&self, chosen: impl Fn(IpAddr) -> bool) -> Vec<u64> {
        let inner = self.lock();
        let chosen = inner.clients.iter().filter(|(_, client)| chosen(client.address));
        chosen.map(|(id, _)| *id).collect()
    }

    /// Counts irregular ends of a connection.
    pub(super) fn closed(&self, error: &ServerError) {
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
            sessions_open: inner.sessions.len() as u32,
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
        let count = |id: u64| inner.sessions.range((id, 0)..=(id, u64::MAX)).count() as u32;
        let with_count = |connection: &ServerConnection| ServerConnection {
            sessions: count(connection.id),
            ..connection.clone()
        };
        inner.connections.values().map(with_count).collect()
    }

    /// Returns the sessions of a connection; of all for 0.
    pub fn sessions(&self, connection: u64) -> Vec<ServerSession> {
        let inner = self.lock();
        let wanted = |id: u64| connection == 0 || id == connection;
        inner
            .sessions
            .iter()
            .filter(|((id, _), _)| wanted(*id))
            .map(|(_, (session, counters))| ServerSession {
                packets_received: counters.received.load(Relaxed),
                packets_reflected: counters.reflected.load(Relaxed),
                last_sequence_received: counters.last_received.load(Relaxed),
                last_sequence_sent: counters.last_sent.load(Relaxed),
                ..session.clone()
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn refuse(&mut self, client: SocketAddr, cause: RefusalCause, accept: u8, detail: String) {
        self.latest_refusals.truncate(MAX_REFUSALS - 1);
        self.latest_refusals.push_front(Refusal {
            time: Some(clock::unix().to_proto()),
            client_address: client.to_string(),
            cause: cause.into(),
            accept_code: accept.into(),
            detail,
        });
    }
}

/// Registry entry of a connection; dropping it removes the connection.
#[derive(Debug)]
pub(super) struct ConnectionEntry {
    registry: Arc<Registry>,
    pub(super) id: u64,
    /// Cancelled when the connection must close.
    pub(super) close: CancellationToken,
}

impl ConnectionEntry {
    pub(super) fn set(&self, state: ServerConnectionState, mode: u32, key_id: &str) {
        if let Some(connection) = self.registry.lock().connections.get_mut(&self.id) {
            connection.state = state.into();
            connection.mode = mode;
            if connection.key_id != key_id {
                key_id.clone_into(&mut connection.key_id);
            }
        }
    }

    /// Admits a session if limits allow it. `ended` receives its end if it is not stopped by the
    /// client.
    pub(super) fn admit_session(
        &self,
        config: &ServerConfig,
        session: ServerSession,
        counters: Arc<SessionCounters>,
        ended: mpsc::Sender<(Sid, SessionEnd)>,
    ) -> Result<SessionEntry, Accept> {
        let mut inner = self.registry.lock();
        let stopped =
            |(session, _): &&(ServerSession, _)| session.state() == ServerSessionState::Draining;
        let own = inner.sessions.range((self.id, 0)..=(self.id, u64::MAX)).map(|(_, own)| own);
        if own.filter(|own| !stopped(own)).count() >= config.maximum_sessions_per_connection {
            return Err(Accept::PERMANENT_RESOURCE_LIMIT);
        }
        let draining = inner.draining;
        if inner.sessions.len() - draining >= config.maximum_sessions
            || draining > config.maximum_sessions.saturating_mul(MAX_DRAINING_FACTOR)
        {
            return Err(Accept::TEMPORARY_RESOURCE_LIMIT);
        }
        inner.sessions_accepted += 1;
        let key = (self.id, inner.sessions_accepted);
        inner.sessions.insert(key, (ServerSession { connection_id: self.id, ..session }, counters));
        let is_reported = AtomicBool::new(false);
        Ok(SessionEntry { registry: self.registry.clone(), key, ended, is_reported })
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        inner.connections.remove(&self.id);
        inner.clients.remove(&self.id);
    }
}

/// Registry entry of a session; dropping it removes the session.
#[derive(Debug)]
pub(super) struct SessionEntry {
    registry: Arc<Registry>,
    key: (u64, u64),
    ended: mpsc::Sender<(Sid, SessionEnd)>,
    /// Set when one of the threads with this session has reported its end.
    is_reported: AtomicBool,
}

impl SessionEntry {
    pub(super) fn set(&self, state: ServerSessionState) {
        let inner = &mut *self.registry.lock();
        if let Some((session, _)) = inner.sessions.get_mut(&self.key) {
            // Counted once for all threads with this session.
            if state == ServerSessionState::Draining
                && session.state() != ServerSessionState::Draining
            {
                inner.draining += 1;
            }
            session.state = state.into();
        }
    }

    /// Publishes the reflector address of the session.
    pub(super) fn set_reflector(&self, reflector: SocketAddr) {
        if let Some((session, _)) = self.registry.lock().sessions.get_mut(&self.key) {
            session.reflector_address = reflector.to_string();
        }
    }

    /// Reports the end of the session to its connection. The queue has room for one notice per
    /// session.
    pub(super) fn report_end(&self, sid: Sid, end: SessionEnd) {
        if !self.is_reported.swap(true, Relaxed) {
            let _ = self.ended.try_send((sid, end));
        }
    }
}

impl Drop for SessionEntry {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        if let Some((session, _)) = inner.sessions.remove(&self.key)
            && session.state() == ServerSessionState::Draining
        {
            inner.draining -= 1;
        }
    }
}
