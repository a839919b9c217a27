//! A task of a connection that fails takes nobody with it, is started again, and is counted.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use twamp_agent::{
    model::{ControlConnection, parse_connection},
    net::{NetworkChanges, clock, free_port},
    proto::{self, ConnectionState, EventType, FailureCause, Record, record},
    results::{Filter, Results, page, retention},
    session::{
        Derivation, PlaneSettings,
        client::{ClientContext, ConnectionHandle, Senders},
    },
    store::{ResultStore, StateDirectory},
    supervise::Tasks,
};

fn connection(name: &str) -> ControlConnection {
    let duration = |ms: i64| {
        Some(prost_types::Duration { seconds: ms / 1000, nanos: (ms % 1000) as i32 * 1_000_000 })
    };
    let document = proto::ControlConnection {
        name: name.into(),
        target_address: "127.0.0.1".into(),
        destination_port: Some(free_port().unwrap().into()),
        test_interval: duration(50),
        test_sessions: vec![proto::TestSession {
            name: "s1".into(),
            loss_timeout: duration(50),
            ..proto::TestSession::default()
        }],
        ..proto::ControlConnection::default()
    };
    parse_connection(&document).unwrap()
}

async fn events(results: &Arc<Results>, name: &str, kind: EventType) -> Vec<proto::Event> {
    let all = page(results, &Filter::default(), 0, 1000, false).await.unwrap();
    let of = |record: Record| match record.kind {
        Some(record::Kind::Event(event)) if record.connection == name => Some(event),
        _ => None,
    };
    all.records.into_iter().filter_map(of).filter(|event| event.r#type() == kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_panics_restarts_its_connection_alone() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let keep = retention(&twamp_agent::model::AgentConfig::default());
    let store = ResultStore::open(&state, keep, "agent", clock::now).unwrap();
    let results = Results::open(store, "boot".into(), None).unwrap();
    let (_network, network) = watch::channel(NetworkChanges::default());
    let derivation = Arc::new(Derivation::for_clients());
    let senders = Senders::start(PlaneSettings::default()).unwrap();
    let changes = Arc::default();
    let context = ClientContext { results: results.clone(), derivation, network, senders, changes };
    let tasks = Tasks::new();
    // No document says this: bursts of no probes come to nothing by division.
    let mut broken = connection("broken");
    broken.sessions[0].burst_size = 0;
    let start =
        |config: ControlConnection| ConnectionHandle::start(Arc::new(config), 1, &context, &tasks);
    let (bad, good) = (start(broken), start(connection("good")));
    for _ in 0..200 {
        if bad.snapshot(None).task_restarts >= 2 {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    let snapshot = bad.snapshot(None);
    assert!(snapshot.task_restarts >= 2, "{snapshot:?}");
    assert_eq!(snapshot.outages, 1, "one outage, however often it fails");
    assert_eq!(snapshot.last_loss.as_ref().unwrap().cause(), FailureCause::Panic);
    let detail = &snapshot.last_loss.as_ref().unwrap().detail;
    assert!(detail.contains("the task failed"), "{detail}");
    // The other one goes its way.
    let other = good.snapshot(None);
    assert_eq!((other.task_restarts, other.outages), (0, 1));
    assert_eq!(other.last_loss.unwrap().cause(), FailureCause::Refused);
    assert!(other.attempts_since_success > 10);
    // Another configuration is a new beginning.
    bad.configure(Arc::new(connection("broken")), 2);
    for _ in 0..200 {
        let snapshot = bad.snapshot(None);
        if snapshot.attempts_since_success > 3 && snapshot.state() == ConnectionState::WaitingRetry
        {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bad.snapshot(None).last_failure.unwrap().cause(), FailureCause::Refused);
    let lost = events(&results, "broken", EventType::ConnectionLost).await;
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert!(tasks.end(Duration::from_secs(5)).await);
    tokio::task::spawn_blocking(move || results.close()).await.unwrap();
}
