//! Conversion of the events of a connection to records.

use crate::{
    model::ControlConnection,
    proto::{Event, EventType},
    results::{Results, Subject},
    time::{UnixTime, duration_to_proto},
    twamp::connection::{ConnectionEvent, Failure, Outage},
};

/// Records an event of a connection.
pub(super) fn record(
    results: &Results,
    config: &ControlConnection,
    event: &ConnectionEvent,
    now: UnixTime,
) {
    let event = match event {
        ConnectionEvent::Lost(failure) => {
            Event { detail: failure.detail.clone(), ..caused(EventType::ConnectionLost, failure) }
        }
        ConnectionEvent::Restored { outage, length_ns } => {
            ended(EventType::ConnectionRestored, outage, *length_ns)
        }
        ConnectionEvent::Abandoned { outage, length_ns } => {
            ended(EventType::ConnectionAbandoned, outage, *length_ns)
        }
        ConnectionEvent::Completed => {
            Event { r#type: EventType::ConnectionCompleted.into(), ..Event::default() }
        }
    };
    let subject = Subject::new(&config.name, "", config.labels.clone(), config.results);
    results.event(subject, event, now);
}

fn caused(kind: EventType, failure: &Failure) -> Event {
    Event {
        r#type: kind.into(),
        cause: failure.cause.into(),
        accept_code: failure.accept_code.into(),
        ..Event::default()
    }
}

fn ended(kind: EventType, outage: &Outage, length_ns: u64) -> Event {
    Event {
        attempts: outage.attempts,
        duration: Some(duration_to_proto(length_ns)),
        start_time: Some(outage.began.to_proto()),
        ..caused(kind, &outage.failure)
    }
}
