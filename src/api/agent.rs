//! `AgentService`: identity, state, clock and store of the agent.

use tonic::{Request, Response, Status};

use super::{Context, layers::caller, services::agent_service_server::AgentService};
use crate::{
    model::limits::MAXIMUM_REQUEST_OCTETS,
    net::{HardwareState, clock, hardware_states},
    proto::{ClockState, GetAgentRequest, GetAgentResponse, HardwareClock, StoreStatus},
    time::{Now, duration_to_proto},
};

/// Facts about the agent that do not change while it runs.
#[derive(Clone, Debug)]
pub struct AgentFacts {
    /// Time at which the agent started.
    pub started: Now,
    /// Name of the host.
    pub host_name: String,
}

/// Capabilities of this version, as the API lists them.
const CAPABILITIES: [&str; 15] = [
    "control/light",
    "control/managed",
    "control/stamp",
    "extension/dscp-ecn-monitoring",
    "extension/individual-session-control",
    "extension/ptp-timestamps",
    "extension/reflect-octets",
    "extension/symmetrical-size",
    "mode/authenticated",
    "mode/control-only-encrypted",
    "mode/encrypted",
    "mode/unauthenticated",
    "server/light",
    "server/managed",
    "server/stamp",
];

#[tonic::async_trait]
impl AgentService for Context {
    async fn get_agent(
        &self,
        request: Request<GetAgentRequest>,
    ) -> Result<Response<GetAgentResponse>, Status> {
        let clock = clock::state();
        let store = self.results.state().borrow().clone();
        let troubles = [self.control.damage(), store.detail.clone()];
        let healthy = troubles.iter().all(String::is_empty);
        // Results lost at the start stay listed, although the fault is over.
        let lost = self.results.damage().to_owned();
        let details = troubles.into_iter().chain([lost]).filter(|detail| !detail.is_empty());
        let detail = details.collect::<Vec<_>>().join("; ");
        let uptime_ns = clock::monotonic().since_ns(self.facts.started.monotonic);
        Ok(Response::new(GetAgentResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            agent_id: self.results.agent_id().into(),
            boot_id: self.results.boot_id().into(),
            start_time: Some(self.facts.started.unix.to_proto()),
            uptime: Some(duration_to_proto(uptime_ns)),
            host_name: self.facts.host_name.clone(),
            revision: self.control.committed_revision(),
            applied_revision: self.control.applied_revision(),
            clock: Some(ClockState {
                synchronised: clock.synchronised,
                error_estimate_ns: clock.error_ns,
            }),
            store: Some(StoreStatus {
                healthy,
                detail,
                earliest_cursor: store.earliest,
                latest_cursor: store.newest,
                records: store.records,
                live_bytes: store.live_bytes,
                disk_bytes: store.disk_bytes,
                records_dropped: self.results.dropped(),
                age_retention_suspended: store.keep_all_until.map(|until| {
                    duration_to_proto(until.since_ns(clock::now_since_boot().monotonic))
                }),
            }),
            capabilities: CAPABILITIES.map(String::from).to_vec(),
            maximum_request_bytes: MAXIMUM_REQUEST_OCTETS as u64,
            exporters: self.exporters.list(store.newest),
            host_changes: self.results.host_changes(),
            api: Some(self.load.status()),
            caller: caller(request.extensions()),
            hardware_clocks: hardware_states().into_iter().map(hardware_clock).collect(),
        }))
    }
}

fn hardware_clock(HardwareState { interface, detail, error_ns }: HardwareState) -> HardwareClock {
    HardwareClock { interface, error: detail, error_estimate_ns: error_ns }
}
