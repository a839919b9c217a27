//! Tests of the machine in simulated time: single situations, a day of outages, and random inputs.

mod day;
mod random;
mod restarts;
mod server;
mod sessions;
mod world;

use std::sync::Arc;

use super::*;
use crate::proto;
use world::World;

/// Returns the configuration of connection "c1" with session "s1" and a test each second.
pub(super) fn config(change: impl FnOnce(&mut proto::ControlConnection)) -> Arc<ControlConnection> {
    let mut document = proto::ControlConnection {
        name: "c1".into(),
        target_address: "192.0.2.1".into(),
        test_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        test_sessions: vec![session("s1")],
        ..proto::ControlConnection::default()
    };
    change(&mut document);
    Arc::new(crate::model::parse_connection(&document).unwrap())
}

pub(super) fn session(name: &str) -> proto::TestSession {
    proto::TestSession { name: name.into(), ..proto::TestSession::default() }
}

pub(super) fn started(name: &str) -> StartedSession {
    StartedSession {
        name: name.into(),
        sid: None,
        local: "192.0.2.2:2000".parse().unwrap(),
        remote: "192.0.2.1:3000".parse().unwrap(),
    }
}

pub(super) fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub(super) fn three() -> Arc<ControlConnection> {
    config(|c| c.test_sessions = ["s1", "s2", "s3"].map(session).into())
}

fn kinds(world: &World) -> Vec<&'static str> {
    let kind = |(_, event): &(u64, ConnectionEvent)| match event {
        ConnectionEvent::Lost(_) => "lost",
        ConnectionEvent::Restored { .. } => "restored",
        ConnectionEvent::Abandoned { .. } => "abandoned",
        ConnectionEvent::Completed => "completed",
    };
    world.events.iter().map(kind).collect()
}

fn count(world: &World, word: &str) -> usize {
    world.operations.iter().filter(|(operation, _)| *operation == word).count()
}

fn last_names(world: &World, word: &str) -> Vec<String> {
    let mut found = world.operations.iter().rev().filter(|(operation, _)| *operation == word);
    found.next().map(|(_, names)| names.clone()).unwrap_or_default()
}
