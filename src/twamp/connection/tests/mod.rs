//! The machine in simulated time: scripts of one situation each, a day of outages, and random inputs.

mod script;
mod world;

use std::sync::Arc;

use super::*;
use crate::proto;

/// Returns the configuration of connection "c1" with session "s1", each second a test.
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
