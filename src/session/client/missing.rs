//! Sessions that do not run though others of their connection do: when they are tried again, and what
//! is told of them.

use std::time::Duration;

use super::{
    attempt::Established,
    connect::{MOST_PATIENCE, PATIENCE, Turn},
    connection::Driver,
    failure::Failure,
    open::{Declined, Opened},
    running::SOON_NS,
    sender::Command,
};
use crate::{model::SessionControl, net::clock, proto::FailureCause, time::Monotonic};

/// A session that does not run though others do.
#[derive(Debug, Default)]
pub(super) struct Tried {
    /// How often it was declined.
    tries: u64,
    /// Why, the last time.
    failure: Failure,
}

impl Tried {
    /// The server was not asked: to ask again disturbs nobody.
    fn is_local(&self) -> bool {
        self.failure.cause != FailureCause::Rejected
    }

    /// Nobody answered for its name.
    fn is_slow(&self) -> bool {
        self.failure.cause == FailureCause::Dns
    }
}

impl Driver {
    /// Opens sessions that do not run though others do, which nobody has to wait for: another change
    /// comes first.
    pub(super) async fn open_missing(
        &mut self,
        control: &mut Established,
    ) -> Result<Vec<Opened>, Failure> {
        let mut names = self.missing();
        let asked_ns = clock::monotonic().since_ns(self.asked_together);
        if self.status.session_control() == SessionControl::AllOrNothing && asked_ns < SOON_NS {
            // To ask the server the others would have to stop for a moment.
            names.retain(|name| self.declined.get(name).is_some_and(Tried::is_local));
        }
        let (config, turn) = (self.config.clone(), self.turn());
        let turn = Turn { patience: self.patience(), ..turn };
        let opening = control.open(&config, &names, turn, true);
        let Some(opened) = self.unless_wanted(opening).await else { return Ok(Vec::new()) };
        let (opened, declined) = opened?;
        self.sessions_declined(declined).await;
        Ok(opened)
    }

    /// With those whose names were not answered for, the longest.
    pub(super) fn patience(&self) -> Duration {
        let slow = self.declined.values().filter(|tried| tried.is_slow());
        let tries = slow.map(|tried| tried.tries).max().unwrap_or(0);
        PATIENCE * tries.saturating_add(1).min(MOST_PATIENCE.into()) as u32
    }

    /// Names of the sessions that an attempt asks for: those whose names were not answered for come
    /// behind the others.
    pub(super) fn in_time(&self) -> Vec<String> {
        let is_slow = |name: &str| self.declined.get(name).is_some_and(Tried::is_slow);
        let names = || self.config.sessions.iter().map(|session| session.name.clone());
        let in_time: Vec<String> = names().filter(|name| !is_slow(name)).collect();
        if in_time.is_empty() { names().collect() } else { in_time }
    }

    /// When sessions are tried again that do not run though the others do.
    pub(super) fn missing_due(&self) -> Option<Monotonic> {
        let missing = self.missing();
        let is_local = |name: &String| self.declined.get(name).is_none_or(Tried::is_local);
        let together = self.status.session_control() == SessionControl::AllOrNothing;
        // There all have to be asked for anew with them.
        let least_ns = if together && !missing.iter().any(is_local) { SOON_NS } else { 0 };
        let due = clock::monotonic().plus_ns(self.config.test_interval_ns.max(least_ns));
        (!missing.is_empty()).then_some(due)
    }

    /// Sessions that do not run though their connection does: what they cannot measure is told.
    pub(super) async fn sessions_declined(&mut self, declined: Vec<Declined>) {
        if declined.is_empty() {
            return;
        }
        for Declined { name, failure } in declined {
            let tried = self.declined.entry(name.clone()).or_default();
            tried.tries += 1;
            let command = Command::Down(failure.cause, tried.tries);
            if tried.failure != failure {
                let detail = &failure.detail;
                tracing::warn!(connection = self.config.name, detail, "not started");
                tried.failure = failure;
            }
            if let Some(index) = self.sessions.iter().position(|session| session.name == name) {
                self.tell(index, command).await;
            }
        }
        let names = self.config.sessions.iter().map(|session| &session.name);
        let all = names.filter_map(|name| {
            let failure = self.declined.get(name)?.failure.clone();
            Some(Declined { name: name.clone(), failure })
        });
        self.status.sessions_failed(&all.collect::<Vec<_>>(), clock::now());
    }

    /// Names of sessions that are configured and do not run.
    pub(super) fn missing(&self) -> Vec<String> {
        let names = self.config.sessions.iter().map(|session| &session.name);
        names.filter(|name| !self.running.contains_key(*name)).cloned().collect()
    }
}
