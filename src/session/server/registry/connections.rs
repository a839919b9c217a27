//! Open control connections and the requests to close them.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use tokio_util::sync::CancellationToken;

use super::Registry;
use crate::{
    net::clock,
    proto::{EndCause, ServerConnection, ServerConnectionState},
    time::Monotonic,
};

/// A control connection that was admitted.
#[derive(Debug)]
pub(super) struct OpenConnection {
    pub(super) shown: ServerConnection,
    pub(super) client: IpAddr,
    pub(super) close: CloseRequest,
    /// Time since which no session has been running; `None` while sessions run.
    pub(super) idle_since: Option<Monotonic>,
}

/// Request to close a connection, with its cause. Only the first request counts.
#[derive(Clone, Debug, Default)]
pub(in crate::session::server) struct CloseRequest {
    token: CancellationToken,
    cause: Arc<OnceLock<(EndCause, String)>>,
}

impl CloseRequest {
    pub(super) fn make(&self, cause: EndCause, reason: String) {
        let _ = self.cause.set((cause, reason));
        self.token.cancel();
    }

    pub(super) fn is_made(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits for the request.
    pub(in crate::session::server) async fn wait(&self) -> (EndCause, String) {
        self.token.cancelled().await;
        self.cause.get().cloned().unwrap_or_default()
    }
}

/// Registry entry of a connection; dropping it removes the connection.
#[derive(Debug)]
pub(in crate::session::server) struct ConnectionEntry {
    pub(super) registry: Arc<Registry>,
    pub(super) id: u64,
    pub(super) client: IpAddr,
    /// Made when the connection must close.
    pub(in crate::session::server) close: CloseRequest,
}

impl ConnectionEntry {
    pub(in crate::session::server) fn set(
        &self,
        state: ServerConnectionState,
        mode: u32,
        key_id: &str,
    ) {
        if let Some(connection) = self.registry.lock().connections.get_mut(&self.id) {
            let shown = &mut connection.shown;
            shown.mode = mode;
            if shown.key_id != key_id {
                key_id.clone_into(&mut shown.key_id);
            }
            if shown.state() != state {
                shown.state = state.into();
                let is_running = state == ServerConnectionState::Running;
                connection.idle_since = (!is_running).then(clock::monotonic);
            }
        }
    }

    /// Marks sessions as running before they start, so that the connection is not displaced.
    /// Returns false when it is being closed.
    pub(in crate::session::server) fn begin_running(&self) -> bool {
        let mut inner = self.registry.lock();
        let connection = inner.connections.get_mut(&self.id);
        connection.is_some_and(|connection| {
            connection.shown.state = ServerConnectionState::Running.into();
            connection.idle_since = None;
            !connection.close.is_made()
        })
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.registry.lock().connections.remove(&self.id);
    }
}
