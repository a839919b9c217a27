//! Exporters: records are pushed from the log to collectors, each by its own consumer, and
//! statistics are offered on a metrics page for Prometheus.

mod limits;
mod nats;
mod otlp;
mod prometheus;
mod ship;
mod state;
mod tls;

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

pub use otlp::FindPeer;
pub use prometheus::Sources;
pub use state::ExporterStates;

use crate::{
    model::{
        ExportConfig, ExportTarget, Exporter, ZonedAddress,
        limits::{EXPORT_CONSUMER, PROMETHEUS_NAME as PROMETHEUS},
    },
    results::{Filter, Results},
    supervise::{Heartbeat, RestartPolicy, Tasks, keep_alive},
};
use nats::NatsSink;
use otlp::OtlpSink;
use ship::{Shipment, ship};

/// Returns the name of the consumer of an exporter.
pub fn consumer(name: &str) -> String {
    format!("{EXPORT_CONSUMER}{name}")
}

/// Exporters of the committed configuration.
#[derive(Debug)]
pub struct Exporters {
    results: Arc<Results>,
    states: Arc<ExporterStates>,
    sources: Sources,
    tasks: Tasks,
    running: BTreeMap<String, (Exporter, Tasks)>,
    page: Option<(ZonedAddress, Tasks)>,
}

impl Exporters {
    /// Creates the set without any exporter.
    pub fn new(results: Arc<Results>, sources: Sources, tasks: &Tasks) -> Self {
        Self {
            results,
            states: sources.states.clone(),
            sources,
            tasks: tasks.clone(),
            running: BTreeMap::new(),
            page: None,
        }
    }

    /// Starts and stops exporters as the configuration changes, until the agent stops.
    pub async fn follow(mut self, mut config: watch::Receiver<Arc<ExportConfig>>) {
        let token = self.tasks.token();
        loop {
            let desired = config.borrow_and_update().clone();
            self.apply(&desired).await;
            tokio::select! {
                changed = config.changed() => if changed.is_err() {
                    return;
                },
                () = token.cancelled() => return,
            }
        }
    }

    async fn apply(&mut self, desired: &ExportConfig) {
        let obsolete: Vec<String> = self
            .running
            .iter()
            .filter(|(name, (old, _))| desired.exporters.get(*name) != Some(old))
            .map(|(name, _)| name.clone())
            .collect();
        for name in obsolete {
            if let Some((_, tasks)) = self.running.remove(&name) {
                tasks.token().cancel();
            }
            if !desired.exporters.contains_key(&name) {
                self.states.remove(&name);
                if let Err(error) = self.results.delete_consumer(&consumer(&name)).await {
                    tracing::warn!(%error, exporter = name, "failed to delete consumer position");
                }
            }
        }
        for (name, exporter) in &desired.exporters {
            if !self.running.contains_key(name) {
                let tasks = self.start(name, exporter);
                self.running.insert(name.clone(), (exporter.clone(), tasks));
            }
        }
        if self.page.as_ref().map(|(address, _)| address) != desired.prometheus.as_ref() {
            if let Some((_, tasks)) = self.page.take() {
                tasks.token().cancel();
                self.states.remove(PROMETHEUS);
            }
            if let Some(address) = desired.prometheus.clone() {
                let tasks = self.tasks.child();
                let (sources, token) = (self.sources.clone(), tasks.token());
                let run = self.states.begin(PROMETHEUS, PROMETHEUS, false);
                tasks.spawn("metrics", prometheus::serve(address.clone(), sources, run, token));
                self.page = Some((address, tasks));
            }
        }
    }

    fn start(&self, name: &str, exporter: &Exporter) -> Tasks {
        let tasks = self.tasks.child();
        let state = self.states.begin(name, exporter.target.kind(), exporter.inactive);
        if exporter.inactive {
            return tasks;
        }
        let (results, exporter, token) = (self.results.clone(), exporter.clone(), tasks.token());
        let find_peer = self.sources.peer.clone();
        let failing = state.clone();
        let failed = move |text: &str, last: bool| {
            tracing::error!(exporter = failing.name(), error = text, last, "exporter failed");
            let outcome = if last { "not restarted" } else { "restarting" };
            failing.record_failure(&format!("failed, {outcome}: {text}"));
        };
        let run = move |heartbeat: Heartbeat| {
            let shipment = Shipment {
                run: state.clone(),
                filter: Filter::new(exporter.filter.clone()).unwrap_or_default(),
                results: results.clone(),
                token: token.clone(),
                heartbeat,
            };
            run(shipment, exporter.clone(), find_peer.clone())
        };
        tasks.spawn("exporter", keep_alive(tasks.token(), RestartPolicy::default(), run, failed));
        tasks
    }
}

async fn run(shipment: Shipment, exporter: Exporter, find_peer: FindPeer) {
    let agent_id = shipment.results.agent_id().to_owned();
    match &exporter.target {
        ExportTarget::Otlp { endpoint, is_delta } => {
            let endpoint = endpoint.clone();
            let sink = OtlpSink::new(endpoint, *is_delta, &exporter, agent_id, find_peer);
            ship(shipment, sink).await;
        }
        ExportTarget::Nats { servers, prefix, stream, json, user } => {
            let results = shipment.results.clone();
            let sink = NatsSink::new(
                servers.clone(),
                format!("{prefix}.{agent_id}"),
                stream.as_ref().map(|stream| (stream.clone(), format!("{prefix}.>"))),
                *json,
                user.clone(),
                &exporter,
                &results,
            );
            ship(shipment, sink).await;
        }
    }
}
