//! State of a connection that outlives the process: its outage, its completion and a manual stop.

use std::sync::{Arc, Mutex};

use crate::{
    net::clock,
    proto,
    results::Results,
    session::lock,
    store::{PersistedCompletion, PersistedConnection, PersistedOutage, PersistedStop},
    time::{Now, UnixTime},
    twamp::connection::{Failure, Outage, Remembered},
};

/// Access to the persisted state of one connection until its removal. The driver writes the outage
/// and the completion; requests write the manual stop.
#[derive(Debug)]
pub(super) struct Persistence {
    connection: String,
    results: Arc<Results>,
    /// True if the connection is no longer configured. Another connection of the same name may be
    /// configured since.
    is_removed: Mutex<bool>,
}

impl Persistence {
    pub(super) fn new(connection: &str, results: Arc<Results>) -> Self {
        Self { connection: connection.to_owned(), results, is_removed: Mutex::default() }
    }

    pub(super) fn read(&self) -> PersistedConnection {
        self.results.persisted_connection(&self.connection)
    }

    /// Returns the persisted state with which the machine begins.
    pub(super) fn read_remembered(&self, now: Now) -> Remembered {
        let PersistedConnection { outage, completed, stopped: _, past_outages, past_outages_ns } =
            self.read();
        Remembered {
            outage: outage.map(|outage| resume_outage(outage, now)),
            completed: completed.map(|completed| completed.test_count),
            past_outages,
            past_outages_ns,
        }
    }

    pub(super) fn remember(&self, remembered: &Remembered, now: UnixTime) {
        self.update(|state| {
            state.outage = remembered.outage.as_ref().map(persisted_outage);
            state.completed = remembered
                .completed
                .map(|test_count| PersistedCompletion { time_unix_ns: now.0, test_count });
            state.past_outages = remembered.past_outages;
            state.past_outages_ns = remembered.past_outages_ns;
        });
    }

    /// Persists an outage that began while no machine runs.
    pub(super) fn set_outage(&self, outage: &Outage) {
        self.update(|state| state.outage = Some(persisted_outage(outage)));
    }

    /// Persists a manual stop, unless the connection is already stopped.
    pub(super) fn stop(&self, identity: &str) {
        self.update(|state| {
            state.stopped.get_or_insert_with(|| PersistedStop {
                time_unix_ns: clock::unix().0,
                identity: identity.to_owned(),
            });
        });
    }

    /// Ends a manual stop or completion for a start by hand; returns true if there was one.
    pub(super) fn start(&self) -> bool {
        self.update(|state| (state.stopped, state.completed) = (None, None))
    }

    /// Ends a manual stop for a change of the configuration.
    pub(super) fn end_stop(&self) {
        self.update(|state| state.stopped = None);
    }

    /// Marks the connection as removed: nothing is written for it any more.
    pub(super) fn remove(&self) {
        *lock(&self.is_removed) = true;
    }

    pub(super) fn is_removed(&self) -> bool {
        *lock(&self.is_removed)
    }

    fn update(&self, change: impl FnOnce(&mut PersistedConnection)) -> bool {
        let is_removed = lock(&self.is_removed);
        !*is_removed && self.results.persist_connection(&self.connection, change)
    }
}

fn persisted_outage(outage: &Outage) -> PersistedOutage {
    PersistedOutage {
        since_unix_ns: outage.began.0,
        cause: outage.failure.cause.into(),
        accept_code: outage.failure.accept_code.into(),
        detail: outage.failure.detail.clone(),
        attempts: outage.attempts,
    }
}

fn resume_outage(outage: PersistedOutage, now: Now) -> Outage {
    let cause = proto::FailureCause::try_from(outage.cause).unwrap_or_default();
    let failure = Failure {
        accept_code: u8::try_from(outage.accept_code).unwrap_or_default(),
        ..Failure::new(cause, outage.detail)
    };
    Outage::resume(failure, UnixTime(outage.since_unix_ns), outage.attempts, now)
}
