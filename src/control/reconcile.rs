//! Makes the roles follow the committed configuration. Level-triggered: each round compares whole
//! configurations, so a revision that was replaced meanwhile leaves nothing behind.

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

/// Time that the client role waits for the server role to open its sockets.
const SERVER_FIRST: Duration = Duration::from_millis(50);

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
    /// Follows until the token is cancelled.
    pub(super) async fn follow(mut self, heartbeat: Heartbeat) {
        loop {
            let Committed { revision, config, .. } = self.committed.borrow_and_update().clone();
            self.server.send_if_modified(|running| {
                let differs = *running != config.server;
                running.clone_from(&config.server);
                differs
            });
            // A connection to the server of the same agent is accepted at the first attempt.
            let applied = self.server_applied.wait_for(|applied| *applied == config.server);
            let _ = timeout(SERVER_FIRST, applied).await;
            // Statistics need the configuration before the first result arrives.
            self.results.expect(&config);
            self.clients.follow(&config, revision);
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
