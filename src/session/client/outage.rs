//! Outages: a pair of events each, however many attempts lie between.

use super::{Tools, connection::Driver, failure::Failure, sender::Command};
use crate::{
    model::{ControlConnection, ControlType},
    net::clock,
    proto::{Event, EventType, FailureCause, Word},
    results::{Results, Subject},
    time::duration_to_proto,
};

impl Driver {
    /// Begins an outage or counts a further attempt; whether it is final.
    pub(super) async fn lost(&mut self, failure: Failure, started: bool) -> bool {
        let now = clock::now();
        let (begins, attempts) = self.course.lost(&failure, started, now);
        if begins {
            self.status.outage_begins(&failure, now);
            self.event(EventType::ConnectionLost, |event| {
                event.cause = failure.cause.into();
                event.accept_code = failure.accept_code.into();
                event.detail.clone_from(&failure.detail);
            });
        }
        if attempts > 0 {
            self.status.attempt_failed(&failure, attempts, now);
        }
        tracing::debug!(
            connection = self.config.name,
            cause = failure.cause.word(),
            detail = failure.detail,
            attempts,
            "not connected"
        );
        for index in 0..self.sessions.len() {
            self.tell(index, Command::Down(failure.cause, attempts)).await;
        }
        // What has no control connection has none that breaks.
        let managed = self.config.control_type == ControlType::Managed;
        started && managed && self.config.test_count != 0
    }

    /// An outage that nobody waits to be over.
    pub(super) fn abandon(&mut self) {
        if let Some(outage) = self.course.ended() {
            let length_ns = clock::monotonic().since_ns(outage.since);
            self.event(EventType::ConnectionAbandoned, |event| {
                event.cause = outage.failure.cause.into();
                event.accept_code = outage.failure.accept_code.into();
                event.attempts = outage.attempts;
                event.duration = Some(duration_to_proto(length_ns));
                event.start_time = Some(outage.began.to_proto());
            });
        }
        self.status.outage_ends(clock::now());
    }

    pub(super) fn event(&self, kind: EventType, fill: impl FnOnce(&mut Event)) {
        event(&self.config, &self.results, kind, fill);
    }
}

/// The task of a connection failed: an outage of that connection, and of no other.
pub(super) fn failed(
    config: &ControlConnection,
    Tools { status, results, .. }: &Tools,
    text: &str,
    last: bool,
) {
    let failure = Failure::new(FailureCause::Panic, format!("the task failed: {text}"));
    tracing::error!(connection = config.name, text, last, "task failed");
    if status.open_outage().is_none() {
        event(config, results, EventType::ConnectionLost, |event| {
            event.cause = failure.cause.into();
            event.detail.clone_from(&failure.detail);
        });
    }
    status.outage_begins(&failure, clock::now());
    status.task_failed(last, clock::now());
}

fn event(
    config: &ControlConnection,
    results: &Results,
    kind: EventType,
    fill: impl FnOnce(&mut Event),
) {
    let mut event = Event { r#type: kind.into(), ..Event::default() };
    fill(&mut event);
    let subject = Subject::new(&config.name, "", config.labels.clone(), config.results);
    results.event(subject, event, clock::now().unix);
}
