//! Plans of sessions: what the configuration says about their statistics.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    model::{AgentConfig, ResultKeeping},
    results::subject::Key,
};

/// Configured statistics of a session.
#[derive(Clone, Debug)]
pub(in crate::results) struct Plan {
    pub(in crate::results) percentiles: Arc<[f64]>,
    pub(in crate::results) loss_timeout_ns: u64,
    pub(in crate::results) moving_average_size: usize,
    pub(in crate::results) keeping: ResultKeeping,
    /// Labels of the records of the session.
    pub(in crate::results) labels: Arc<BTreeMap<String, String>>,
}

impl Plan {
    pub(in crate::results) fn is_persistent(&self) -> bool {
        self.keeping == ResultKeeping::Stored
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            percentiles: Arc::new([]),
            loss_timeout_ns: crate::model::limits::LOSS_TIMEOUT.default,
            moving_average_size: 0,
            keeping: ResultKeeping::Stored,
            labels: Arc::default(),
        }
    }
}

/// Returns the plans of all configured sessions.
pub(in crate::results) fn plans(config: &AgentConfig) -> Arc<HashMap<Key, Plan>> {
    // Most sessions have the same percentiles.
    let mut known: Vec<Arc<[f64]>> = Vec::new();
    let mut percentiles = |wanted: &[f64]| {
        if let Some(same) = known.iter().find(|known| ***known == *wanted) {
            return same.clone();
        }
        known.push(wanted.into());
        known[known.len() - 1].clone()
    };
    let mut plans = HashMap::new();
    for connection in config.connections.values() {
        let plan = Plan {
            moving_average_size: connection.moving_average_size,
            keeping: connection.results,
            ..Plan::default()
        };
        for session in &connection.sessions {
            let plan = Plan {
                percentiles: percentiles(&session.percentiles),
                loss_timeout_ns: session.loss_timeout_ns,
                labels: if session.labels.is_empty() {
                    plan.labels.clone()
                } else {
                    Arc::new(session.labels.clone())
                },
                ..plan.clone()
            };
            plans.insert((connection.name.clone(), session.name.clone()), plan);
        }
        for session in &connection.inactive_sessions {
            plans.insert((connection.name.clone(), session.clone()), plan.clone());
        }
    }
    Arc::new(plans)
}

/// Configured statistics of all sessions, set before the first result arrives.
#[derive(Debug, Default)]
pub(in crate::results) struct Plans {
    known: RwLock<Option<Arc<HashMap<Key, Plan>>>>,
}

impl Plans {
    pub(in crate::results) fn set(&self, plans: Arc<HashMap<Key, Plan>>) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(plans);
    }

    pub(super) fn all(&self) -> Option<Arc<HashMap<Key, Plan>>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the plan of a session; a default plan for an unknown session.
    pub(in crate::results) fn for_session(&self, key: &Key) -> Plan {
        self.all().and_then(|plans| plans.get(key).cloned()).unwrap_or_default()
    }

    /// Returns true if a session is no longer configured. Its connection may still report the end
    /// of its last test.
    pub(super) fn is_removed(&self, key: &Key) -> bool {
        self.all().is_some_and(|plans| !plans.contains_key(key))
    }
}
