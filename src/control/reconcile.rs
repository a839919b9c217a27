//! Makes what runs follow what is committed. Level-triggered: each round compares the whole of
//! both, so a revision that came and went in between leaves nothing behind.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Clients, Committed};
use crate::{model::ServerConfig, results::Results};

/// How long the client role waits for the server role.
const SERVER_FIRST: Duration = Duration::from_millis(50);

pub(super) async fn follow(
    mut committed: watch::Receiver<Committed>,
    clients: Arc<Clients>,
    server: watch::Sender<Option<Arc<ServerConfig>>>,
    mut server_applied: watch::Receiver<Option<Arc<ServerConfig>>>,
    results: Arc<Results>,
    token: CancellationToken,
) {
    loop {
        let Committed { revision, config } = committed.borrow_and_update().clone();
        server.send_if_modified(|running| {
            let differs = *running != config.server;
            running.clone_from(&config.server);
            differs
        });
        // An agent that measures to itself finds its server open.
        let applied = server_applied.wait_for(|applied| *applied == config.server);
        let _ = timeout(SERVER_FIRST, applied).await;
        clients.follow(&config, revision);
        results.follow_config(&config);
        tokio::select! {
            changed = committed.changed() => if changed.is_err() {
                return;
            },
            () = token.cancelled() => return,
        }
    }
}
