//! gRPC services: translation between the API and the parts of the agent, and nothing else. Besides
//! the command-line client, the only module that imports tonic.

mod admission;
mod agent;
mod client;
mod codec;
mod config;
mod connection;
mod document_page;
mod error;
mod health;
mod identity;
mod layers;
mod layout;
mod listen;
mod log_limit;
mod page;
mod results;
mod serve;
mod server;
mod settings;
mod statistics;
mod tls;
mod tokens;
mod turns;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use agent::AgentFacts;
pub use listen::{ApiListener, ListenError};
pub use settings::{ApiSettings, RoleRule, TlsSettings};
pub use tls::TlsError;
pub use tokens::TokenError;
pub(crate) use tokens::digest as token_digest;

use crate::{
    control::Control,
    export::ExporterStates,
    model::limits::{MAXIMUM_CALL_OCTETS, MAXIMUM_REQUEST_OCTETS},
    net,
    proto::{ApiStatus, DESCRIPTORS},
    results::Results,
    supervise::Tasks,
};
use admission::{Admission, AdmissionCounters};
use identity::Identities;
use layers::Account;
use serve::Connections;
use services::{
    agent_service_server::AgentServiceServer, client_service_server::ClientServiceServer,
    config_service_server::ConfigServiceServer, results_service_server::ResultsServiceServer,
    server_service_server::ServerServiceServer,
};
use turns::InTurn;

/// Code generated from `proto/`, clients and servers.
#[allow(missing_docs, clippy::pedantic, clippy::nursery, unused_qualifications)]
pub mod services {
    include!(concat!(env!("OUT_DIR"), "/services/twamp.agent.v1.rs"));
}

/// Shared state of all services.
#[derive(Clone, Debug)]
pub struct Context {
    /// Commits the configuration and controls both roles.
    pub control: Control,
    /// Result log with its statistics.
    pub results: Arc<Results>,
    /// Latest state of every exporter.
    pub exporters: Arc<ExporterStates>,
    /// Connections and requests of the API.
    pub load: ApiLoad,
    /// Facts that do not change while the agent runs.
    pub facts: Arc<AgentFacts>,
    /// Ends the streams when it is cancelled.
    pub token: CancellationToken,
}

/// Connections and requests of the API, counted and limited.
#[derive(Clone, Debug)]
pub struct ApiLoad {
    admission: Arc<Admission>,
    account: Account,
}

impl ApiLoad {
    /// Creates the counters and limits for this process.
    #[expect(clippy::new_without_default, reason = "depends on the limits of the process")]
    pub fn new() -> Self {
        Self { admission: Admission::new(net::files_for_api()), account: Account::new() }
    }

    /// Returns the counts as the API shows them.
    pub fn status(&self) -> ApiStatus {
        let AdmissionCounters { open, places, admitted, refused, displaced } =
            self.admission.counters();
        ApiStatus {
            connections_open: open as u32,
            maximum_connections: places as u32,
            connections_accepted: admitted,
            connections_refused: refused,
            connections_displaced: displaced,
            request_octets_in_progress: self.account.octets_in_flight(),
            methods: self.account.methods(),
        }
    }
}

/// Serves the API until the group of tasks ends.
pub fn serve(
    mut listener: ApiListener,
    roles: Vec<RoleRule>,
    context: Context,
    tasks: &Tasks,
) -> Result<(), tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let load = context.load.clone();
    let (limit, longest) = (MAXIMUM_CALL_OCTETS, MAXIMUM_REQUEST_OCTETS);
    let routes = Routes::new(health::service(&context, tasks))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(InTurn::new(
            ConfigServiceServer::new(context.clone()).max_decoding_message_size(longest),
        ))
        .add_service(ClientServiceServer::new(context.clone()).max_decoding_message_size(limit))
        .add_service(ServerServiceServer::new(context.clone()).max_decoding_message_size(limit))
        .add_service(ResultsServiceServer::new(context.clone()).max_decoding_message_size(limit))
        .add_service(AgentServiceServer::new(context).max_decoding_message_size(limit))
        .prepare();
    let ApiLoad { admission, account } = load;
    let identities = Arc::new(Identities::new(roles, listener.tokens.take()));
    let service = layers::layered(routes, account, &identities);
    Connections { service, admission, identities, tasks: tasks.clone() }.accept(listener);
    Ok(())
}
