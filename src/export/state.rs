//! States of the exporters.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{
    model::limits::PROMETHEUS_NAME,
    net::clock,
    proto::{ExporterState, ExporterStatus},
};

/// Longest detail that is kept: collectors send texts of any length.
const MAX_DETAIL_CHARS: usize = 1024;

/// States of all exporters, by name.
#[derive(Debug, Default)]
pub struct ExporterStates {
    /// State of each exporter with the number of its latest run.
    states: Mutex<BTreeMap<String, (u64, ExporterStatus)>>,
    runs: AtomicU64,
}

/// Handle with which one run of an exporter updates its state. Updates by an earlier run are ignored.
#[derive(Clone, Debug)]
pub(super) struct Run {
    states: Arc<ExporterStates>,
    name: String,
    number: u64,
}

impl ExporterStates {
    /// Returns the states as messages of the API; `newest` is the latest cursor of the log.
    pub fn list(&self, newest: u64) -> Vec<ExporterStatus> {
        let with_lag = |(_, status): &(u64, ExporterStatus)| {
            let pushes = status.kind != PROMETHEUS_NAME;
            let lag = if pushes { newest.saturating_sub(status.cursor) } else { 0 };
            ExporterStatus { lag, ..status.clone() }
        };
        self.lock().values().map(with_lag).collect()
    }

    pub(super) fn begin(self: &Arc<Self>, name: &str, kind: &str, inactive: bool) -> Run {
        let state = if inactive { ExporterState::Inactive } else { ExporterState::Failing };
        let detail = if inactive { "" } else { "not connected yet" };
        let status = ExporterStatus {
            name: name.to_owned(),
            kind: kind.to_owned(),
            state: state.into(),
            detail: detail.into(),
            state_start_time: Some(clock::unix().to_proto()),
            ..ExporterStatus::default()
        };
        let number = self.runs.fetch_add(1, Relaxed);
        self.lock().insert(name.to_owned(), (number, status));
        Run { states: self.clone(), name: name.to_owned(), number }
    }

    pub(super) fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (u64, ExporterStatus)>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    /// Returns the name of the exporter.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Sets the cursor up to which every record is delivered.
    pub(super) fn set_cursor(&self, cursor: u64) {
        self.update(|status| status.cursor = cursor);
    }

    pub(super) fn record_delivery(&self, records: u64, rejected: u64, detail: &str) {
        let mut kept = None;
        self.update(|status| {
            status.delivered += records - rejected;
            status.rejected += rejected;
            // Later batches without a rejection do not remove the reason of the latest rejection;
            // only a failure of delivery does.
            let is_running = status.state() == ExporterState::Running;
            kept = (rejected == 0 && is_running).then(|| status.detail.clone());
        });
        self.set(ExporterState::Running, kept.as_deref().unwrap_or(detail));
    }

    pub(super) fn set_running(&self) {
        self.set(ExporterState::Running, "");
    }

    pub(super) fn record_failure(&self, detail: &str) {
        self.update(|status| status.failures += 1);
        self.set(ExporterState::Failing, detail);
    }

    fn set(&self, state: ExporterState, detail: &str) {
        self.update(|status| {
            if status.state() != state {
                status.state_start_time = Some(clock::unix().to_proto());
            }
            status.state = state.into();
            let end = detail.char_indices().nth(MAX_DETAIL_CHARS);
            let detail = end.map_or(detail, |(end, _)| &detail[..end]);
            if status.detail != detail {
                detail.clone_into(&mut status.detail);
            }
        });
    }

    fn update(&self, update: impl FnOnce(&mut ExporterStatus)) {
        if let Some((number, status)) = self.states.lock().get_mut(&self.name)
            && *number == self.number
        {
            update(status);
        }
    }
}
