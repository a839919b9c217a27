//! How exporters are, for whoever asks.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    net::clock,
    proto::{ExporterState, ExporterStatus},
};

/// The states of all exporters.
#[derive(Debug, Default)]
pub struct ExporterStates {
    states: Mutex<BTreeMap<String, ExporterStatus>>,
}

impl ExporterStates {
    /// As the API tells them; `newest` is the newest cursor of the log.
    pub fn list(&self, newest: u64) -> Vec<ExporterStatus> {
        let with_lag = |status: &ExporterStatus| {
            let pushes = status.kind != super::PROMETHEUS;
            let lag = if pushes { newest.saturating_sub(status.cursor) } else { 0 };
            ExporterStatus { lag, ..status.clone() }
        };
        self.lock().values().map(with_lag).collect()
    }

    pub(super) fn add(&self, name: &str, kind: &str, inactive: bool) {
        let state = if inactive { ExporterState::Inactive } else { ExporterState::Failing };
        let detail = if inactive { "" } else { "not connected yet" };
        let status = ExporterStatus {
            name: name.to_owned(),
            kind: kind.to_owned(),
            state: state.into(),
            detail: detail.into(),
            since: Some(clock::unix().to_proto()),
            ..ExporterStatus::default()
        };
        self.lock().insert(name.to_owned(), status);
    }

    pub(super) fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    pub(super) fn at(&self, name: &str, cursor: u64) {
        self.update(name, |status| status.cursor = cursor);
    }

    pub(super) fn delivered(&self, name: &str, records: u64, rejected: u64, detail: &str) {
        self.update(name, |status| {
            status.delivered += records - rejected;
            status.rejected += rejected;
        });
        self.set(name, ExporterState::Running, detail);
    }

    pub(super) fn running(&self, name: &str) {
        self.set(name, ExporterState::Running, "");
    }

    pub(super) fn failed(&self, name: &str, detail: &str) {
        self.update(name, |status| status.failures += 1);
        self.set(name, ExporterState::Failing, detail);
    }

    fn set(&self, name: &str, state: ExporterState, detail: &str) {
        self.update(name, |status| {
            if status.state() != state {
                status.since = Some(clock::unix().to_proto());
            }
            status.state = state.into();
            if status.detail != detail {
                detail.clone_into(&mut status.detail);
            }
        });
    }

    fn update(&self, name: &str, update: impl FnOnce(&mut ExporterStatus)) {
        if let Some(status) = self.lock().get_mut(name) {
            update(status);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ExporterStatus>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
