use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::mpsc;

use super::{
    ConnectionEntry, Registry, SessionEntry, SessionRefusal, SessionRemoval, describe_holders,
};
use crate::{
    model::{ServerConfig, parse},
    proto::{
        AgentConfig, ClientList, EndCause, RefusalCause, ServerConnectionState, ServerSession,
        ServerSessionState,
    },
    wire::codes::Accept,
};

fn config(connections: u32, per_client: Option<u32>, sessions: u32) -> Arc<ServerConfig> {
    let server = crate::proto::ServerConfig {
        client_list: vec![ClientList {
            name: "all".to_owned(),
            prefixes: vec!["192.0.2.0/24".to_owned()],
        }],
        maximum_connections: Some(connections),
        maximum_connections_per_client: per_client,
        maximum_sessions: Some(sessions),
        ..Default::default()
    };
    let document = AgentConfig { server: Some(server), ..AgentConfig::default() };
    parse(&document).unwrap().server.unwrap()
}

fn client(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 40_000))
}

fn admit(
    registry: &Arc<Registry>,
    config: &ServerConfig,
    number: u8,
) -> Result<ConnectionEntry, (RefusalCause, String)> {
    let admitted = registry.admit(config, client(number), client(250));
    admitted.map_err(|refusal| (refusal.cause, refusal.detail))
}

fn run(connection: &ConnectionEntry) {
    assert!(connection.begin_running());
}

fn session(
    connection: &ConnectionEntry,
    config: &ServerConfig,
) -> Result<SessionEntry, SessionRefusal> {
    let ended = mpsc::channel(1).0;
    connection.admit_session(config, ServerSession::default(), Arc::default(), ended)
}

/// A stopped session; the counter counts its removal from its reflector.
fn draining(
    connection: &ConnectionEntry,
    config: &ServerConfig,
    removed: &Arc<AtomicUsize>,
) -> SessionEntry {
    let entry = session(connection, config).unwrap();
    let removed = removed.clone();
    entry.set_removal(SessionRemoval::new(move || {
        removed.fetch_add(1, Relaxed);
    }));
    entry.set(ServerSessionState::Started);
    entry.set(ServerSessionState::Draining);
    entry
}

#[test]
fn one_idle_client_does_not_keep_others_out() {
    let (registry, config) = (Registry::new(Vec::new()), config(20, None, 64));
    let first: Vec<_> = (0..16).map(|_| admit(&registry, &config, 1).unwrap()).collect();
    let (cause, detail) = admit(&registry, &config, 1).unwrap_err();
    assert_eq!(cause, RefusalCause::MaximumConnectionsPerClient);
    assert!(detail.contains("16: 192.0.2.1 has 16"), "{detail}");
    let others: Vec<_> = (2..=9).map(|number| admit(&registry, &config, number).unwrap()).collect();
    // Four connections over the limit: the four that have been idle for longest.
    let closing = |entries: &[ConnectionEntry]| {
        entries.iter().take_while(|entry| entry.close.is_made()).count()
    };
    assert_eq!((closing(&first), closing(&others)), (4, 0));
}

#[tokio::test]
async fn a_running_connection_is_never_displaced() {
    let (registry, config) = (Registry::new(Vec::new()), config(3, Some(3), 64));
    let running = [1, 1, 2].map(|number| admit(&registry, &config, number).unwrap());
    running.iter().for_each(run);
    let (cause, detail) = admit(&registry, &config, 3).unwrap_err();
    assert_eq!(cause, RefusalCause::MaximumConnections);
    assert_eq!(detail, "maximum_connections is 3: held by 192.0.2.1 (2), 192.0.2.2 (1)");
    assert!(running.iter().all(|connection| !connection.close.is_made()));
    // A client that has more than the idle one does not take its place.
    running[2].set(ServerConnectionState::Request, 1, "");
    admit(&registry, &config, 1).unwrap_err();
    let newcomer = admit(&registry, &config, 3).unwrap();
    let (cause, reason) = running[2].close.wait().await;
    assert_eq!(cause, EndCause::Displaced);
    assert!(reason.contains("192.0.2.3"), "{reason}");
    assert!(!running[2].begin_running(), "too late");
    run(&newcomer);
    assert_eq!(registry.status().connections_refused[0].count, 2);
}

#[test]
fn sessions_that_drain_keep_nobody_out_and_end_in_order() {
    let (registry, config) = (Registry::new(Vec::new()), config(64, Some(64), 4));
    let removed = Arc::new(AtomicUsize::new(0));
    let greedy = admit(&registry, &config, 1).unwrap();
    let kept: Vec<_> = (0..50).map(|_| draining(&greedy, &config, &removed)).collect();
    let status = registry.status();
    assert_eq!((status.sessions_open, status.sessions_draining), (0, 5), "a client's own limit");
    assert_eq!(removed.load(Relaxed), 45);
    assert!(registry.sessions(0).len() == 5, "the oldest have ended");
    let others: Vec<_> = (2..=5).map(|number| admit(&registry, &config, number).unwrap()).collect();
    let more: Vec<_> = others
        .iter()
        .flat_map(|other| [0; 4].map(|_| draining(other, &config, &removed)))
        .collect();
    assert!(registry.status().sessions_draining <= 13, "three times maximum_sessions, and one");
    let other = admit(&registry, &config, 9).unwrap();
    let open: Vec<_> = (0..4).map(|_| session(&other, &config).unwrap()).collect();
    let refusal = session(&other, &config).unwrap_err();
    assert_eq!(refusal.accept, Accept::TEMPORARY_RESOURCE_LIMIT);
    assert_eq!(refusal.detail, "maximum_sessions is 4: held by 192.0.2.9 (4)");
    drop((kept, more, open));
    let status = registry.status();
    assert_eq!((status.sessions_open, status.sessions_draining), (0, 0));
}

#[test]
fn an_operator_ends_sessions_that_drain() {
    let (registry, config) = (Registry::new(Vec::new()), config(64, None, 64));
    let removed = Arc::new(AtomicUsize::new(0));
    let (gone, open) = (admit(&registry, &config, 1), admit(&registry, &config, 2));
    let (gone, open) = (gone.unwrap(), open.unwrap());
    let _kept = [&gone, &gone, &open].map(|of| draining(of, &config, &removed));
    let address = client(1).ip();
    drop(gone);
    assert_eq!(registry.connections_of(|client| client == address), [1]);
    assert_eq!(registry.connections_of(|_| true), [1, 2]);
    assert_eq!(registry.close(&[1, 7]), Err(7));
    assert_eq!(registry.close(&[1]), Ok((Vec::new(), 2)));
    assert_eq!(registry.close(&[1]), Err(1), "nothing is left of it");
    assert_eq!(registry.close(&[2]), Ok((vec![2], 1)));
    assert_eq!((removed.load(Relaxed), registry.status().sessions_draining), (3, 0));
}

#[test]
fn a_session_without_its_connection_is_orphaned_unless_it_drains() {
    let (registry, config) = (Registry::new(Vec::new()), config(64, None, 64));
    let connection = admit(&registry, &config, 1).unwrap();
    let (ended, has_ended) = mpsc::channel(1);
    let admit = || {
        let session = ServerSession::default();
        connection.admit_session(&config, session, Arc::default(), ended.clone()).unwrap()
    };
    let (accepted, stopped) = (admit(), admit());
    stopped.set(ServerSessionState::Draining);
    assert!(!accepted.is_orphaned());
    drop(has_ended);
    assert!(accepted.is_orphaned() && !stopped.is_orphaned());
}

#[test]
fn the_holders_of_a_limit_are_named() {
    let clients = [5, 1, 1, 2, 3, 4, 1, 2].map(|number| client(number).ip());
    assert_eq!(
        describe_holders(clients.into_iter()),
        "192.0.2.1 (3), 192.0.2.2 (2), 192.0.2.3 (1) and 2 others"
    );
}
