//! Makes the roles follow the committed configuration. Each round compares the complete running
//! configuration with the complete committed one, so a round may skip revisions.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{clients::Clients, committed::Committed};
use crate::{
    model::{ExportConfig, ServerConfig},
    results::Results,
    supervise::Heartbeat,
};

/// Maximum time that the client role waits for the server role to open its sockets.
const SERVER_TIMEOUT: Duration = Duration::from_millis(50);

/// The committed configuration and the roles that follow it.
#[derive(Clone)]
pub(super) struct Reconciler {
    pub(super) committed: watch::Receiver<Committed>,
    pub(super) clients: Arc<Clients>,
    pub(super) server: Arc<watch::Sender<Option<Arc<ServerConfig>>>>,
    pub(super) server_applied: watch::Receiver<Option<Arc<ServerConfig>>>,
    pub(super) results: Arc<Results>,
    pub(super) export: Arc<watch::Sender<Arc<ExportConfig>>>,
    pub(super) token: CancellationToken,
}

impl Reconciler {
    /// Applies each committed configuration until the token is cancelled.
    pub(super) async fn run(mut self, heartbeat: Heartbeat) {
        loop {
            let Committed { revision, config, .. } = self.committed.borrow_and_update().clone();
            self.server.send_if_modified(|running| {
                let differs = *running != config.server;
                running.clone_from(&config.server);
                differs
            });
            // The server role goes first, so that a connection to the server of the same agent
            // succeeds at the first attempt.
            let applied = self.server_applied.wait_for(|applied| *applied == config.server);
            let _ = timeout(SERVER_TIMEOUT, applied).await;
            // Statistics need the configuration before the first result arrives.
            self.results.expect(&config);
            self.clients.apply_config(&config, revision);
            self.results.follow_config(&config);
            self.export.send_if_modified(|running| {
                let differs = *running != config.export;
                running.clone_from(&config.export);
                differs
            });
            loop {
                heartbeat.beat();
                tokio::select! {
                    changed = self.committed.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    () = self.token.cancelled() => return,
                    () = sleep(heartbeat.interval()) => {}
                }
            }
        }
    }
}
