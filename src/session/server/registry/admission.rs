//! Admission of connections and sessions against the limits. Clients without running sessions
//! make room for others.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{
    Inner, Registry,
    connections::{CloseRequest, ConnectionEntry, OpenConnection},
    describe_holders,
    sessions::{Session, SessionEnd, SessionEntry},
};
use crate::{
    model::ServerConfig,
    net::clock,
    proto::{EndCause, RefusalCause, ServerConnection, ServerConnectionState, ServerSession},
    time::{Monotonic, NANOS_PER_SECOND},
    twamp::reflector::SessionCounters,
    wire::codes::{Accept, Sid},
};

/// Time after which accepted sessions that were not started may be displaced. A client starts its
/// sessions as soon as the last one is accepted.
const MAX_UNSTARTED_NS: u64 = 30 * NANOS_PER_SECOND;

/// Refusal of a control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::session::server) struct ConnectionRefusal {
    pub(in crate::session::server) cause: RefusalCause,
    /// The limit and its holders.
    pub(in crate::session::server) detail: String,
}

/// Refusal of a test session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::session::server) struct SessionRefusal {
    pub(in crate::session::server) accept: Accept,
    /// Limit that was reached and the clients that hold most of it, or the error of the request.
    pub(in crate::session::server) detail: String,
}

impl SessionRefusal {
    pub(in crate::session::server) fn new(accept: Accept, detail: impl Into<String>) -> Self {
        Self { accept, detail: detail.into() }
    }
}

impl Registry {
    /// Admits a connection if limits and client lists allow it. Counts a refusal.
    pub(in crate::session::server) fn admit(
        self: &Arc<Self>,
        config: &ServerConfig,
        client: SocketAddr,
        local: SocketAddr,
    ) -> Result<ConnectionEntry, ConnectionRefusal> {
        let mut inner = self.lock();
        if let Err(refusal) = inner.make_room(config, client.ip()) {
            drop(inner);
            self.connection_refused(client, &refusal);
            return Err(refusal);
        }
        inner.accepted += 1;
        let id = inner.accepted;
        let close = CloseRequest::default();
        inner.connections.insert(
            id,
            OpenConnection {
                shown: ServerConnection {
                    id,
                    client_address: client.to_string(),
                    local_address: local.to_string(),
                    state: ServerConnectionState::Setup.into(),
                    accept_time: Some(clock::unix().to_proto()),
                    ..ServerConnection::default()
                },
                client: client.ip(),
                close: close.clone(),
                idle_since: Some(clock::monotonic()),
            },
        );
        Ok(ConnectionEntry { registry: self.clone(), id, client: client.ip(), close })
    }

    /// Closes the connections with these ids and ends their draining sessions. Returns the ids of
    /// the closed connections and the number of ended sessions. Fails with the first id that has
    /// neither a connection nor a draining session; then nothing is closed.
    pub fn close(&self, ids: &[u64]) -> Result<(Vec<u64>, usize), u64> {
        let mut inner = self.lock();
        let drains: Vec<u64> = inner.sessions.draining_connections(|_| true).collect();
        let is_known = |id: &u64| inner.connections.contains_key(id) || drains.contains(id);
        if let Some(unknown) = ids.iter().find(|id| !is_known(id)) {
            return Err(*unknown);
        }
        let mut closed = Vec::new();
        for id in ids {
            if let Some(connection) = inner.connections.get(id) {
                let reason = "closed by an operator".to_owned();
                connection.close.make(EndCause::ClosedByOperator, reason);
                closed.push(*id);
            }
        }
        Ok((closed, inner.sessions.end_draining(ids)))
    }

    /// Returns the ids of the connections from chosen client addresses, including closed
    /// connections with draining sessions.
    pub fn connections_of(&self, is_chosen: impl Fn(IpAddr) -> bool) -> Vec<u64> {
        let inner = self.lock();
        let open = inner.connections.iter().filter(|(_, connection)| is_chosen(connection.client));
        let open = open.map(|(id, _)| *id);
        let mut ids: Vec<u64> =
            open.chain(inner.sessions.draining_connections(&is_chosen)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl Inner {
    /// Returns the connections that are not about to close.
    fn open_connections(&self) -> impl Iterator<Item = &OpenConnection> + Clone {
        self.connections.values().filter(|connection| !connection.close.is_made())
    }

    /// Makes room for a connection of a client, or refuses it.
    fn make_room(&self, config: &ServerConfig, client: IpAddr) -> Result<(), ConnectionRefusal> {
        if !config.allows(client) {
            let detail = format!("{client} is in no client_list");
            return Err(ConnectionRefusal { cause: RefusalCause::NotListed, detail });
        }
        let own = self.open_connections().filter(|connection| connection.client == client).count();
        let maximum = config.maximum_connections_per_client;
        if own >= maximum {
            let detail = format!("maximum_connections_per_client is {maximum}: {client} has {own}");
            let cause = RefusalCause::MaximumConnectionsPerClient;
            return Err(ConnectionRefusal { cause, detail });
        }
        let maximum = config.maximum_connections;
        if self.open_connections().count() < maximum {
            return Ok(());
        }
        let Some(idle) = self.displaceable(own) else {
            let holders =
                describe_holders(self.open_connections().map(|connection| connection.client));
            let detail = format!("maximum_connections is {maximum}: held by {holders}");
            return Err(ConnectionRefusal { cause: RefusalCause::MaximumConnections, detail });
        };
        let reason = format!(
            "no session runs, and {client} needs a connection: maximum_connections is {maximum}"
        );
        idle.close.make(EndCause::Displaced, reason);
        Ok(())
    }

    /// Returns the connection to displace for a client with `own` connections. It has no running
    /// session, belongs to the client with the most connections, and has been idle for longest.
    /// That client must have at least `own` connections.
    fn displaceable(&self, own: usize) -> Option<&OpenConnection> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        self.open_connections().for_each(|open| *counts.entry(open.client).or_default() += 1);
        let idle = self.open_connections().filter_map(|open| Some((open, open.idle_since?)));
        let ranked =
            idle.map(|(open, since)| (counts[&open.client], std::cmp::Reverse(since), open));
        let first = ranked.max_by_key(|(count, since, _)| (*count, *since))?;
        (first.0 >= own).then_some(first.2)
    }

    /// Returns the number of sessions that are not stopped, except those of connections that are
    /// about to close.
    fn open_sessions(&self) -> usize {
        let closing = self.connections.values().filter(|connection| connection.close.is_made());
        let sessions =
            closing.flat_map(|connection| self.sessions.of_connection(connection.shown.id));
        self.sessions.open() - sessions.filter(|session| !session.is_draining()).count()
    }

    /// Closes the connection that has held accepted sessions for longest without starting any,
    /// except connection `except`. Returns false if there is none.
    fn displace_unstarted(&self, except: u64, now: Monotonic) -> bool {
        let unstarted = self.open_connections().filter_map(|open| {
            let since = open.idle_since?;
            let sessions =
                self.sessions.of_connection(open.shown.id).filter(|session| !session.is_draining());
            let latest = sessions.map(|session| session.accepted).max()?.max(since);
            (open.shown.id != except && now.since_ns(latest) >= MAX_UNSTARTED_NS)
                .then_some((latest, open))
        });
        let Some((_, open)) = unstarted.min_by_key(|(latest, _)| *latest) else { return false };
        let reason = "its sessions were not started, and maximum_sessions is reached".to_owned();
        open.close.make(EndCause::Displaced, reason);
        true
    }
}

impl ConnectionEntry {
    /// Admits a session if limits allow it. `ended` receives its end unless the client stops it.
    pub(in crate::session::server) fn admit_session(
        &self,
        config: &ServerConfig,
        session: ServerSession,
        counters: Arc<SessionCounters>,
        ended: mpsc::Sender<(Sid, SessionEnd)>,
    ) -> Result<SessionEntry, SessionRefusal> {
        let now = clock::monotonic();
        let mut inner = self.registry.lock();
        let own = inner.sessions.of_connection(self.id).filter(|own| !own.is_draining()).count();
        let maximum = config.maximum_sessions_per_connection;
        if own >= maximum {
            let detail = format!("maximum_sessions_per_connection is {maximum}");
            return Err(SessionRefusal::new(Accept::PERMANENT_RESOURCE_LIMIT, detail));
        }
        inner.sessions.limit_draining(self.client, config.maximum_sessions);
        let maximum = config.maximum_sessions;
        let is_full = inner.sessions.open() >= maximum && inner.open_sessions() >= maximum;
        if is_full && !inner.displace_unstarted(self.id, now) {
            let open = inner.sessions.all().filter(|session| !session.is_draining());
            let holders = describe_holders(open.map(|session| session.client));
            let detail = format!("maximum_sessions is {maximum}: held by {holders}");
            return Err(SessionRefusal::new(Accept::TEMPORARY_RESOURCE_LIMIT, detail));
        }
        let shown = ServerSession { connection_id: self.id, ..session };
        let key = inner.sessions.insert(self.id, Session::new(shown, counters, self.client, now));
        Ok(SessionEntry::new(self.registry.clone(), key, ended))
    }
}
