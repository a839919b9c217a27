//! gRPC services: translation between the API and the parts of the agent, and nothing else. Besides
//! the command-line client, the only module that imports tonic.

mod admission;
mod agent;
mod client;
mod config;
mod connection;
mod document_page;
mod error;
mod health;
mod listen;
mod page;
mod results;
mod server;
mod settings;
mod statistics;
mod tls;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

pub use agent::AgentFacts;
pub use listen::{ApiListener, ListenError};
pub use settings::{ApiSettings, TlsSettings};
pub use tls::TlsError;

use crate::{
    control::Control, export::ExporterStates, model::limits::MAXIMUM_REQUEST_OCTETS,
    proto::DESCRIPTORS, results::Results, supervise::Tasks,
};
use admission::Admitted;
use services::{
    agent_service_server::AgentServiceServer, client_service_server::ClientServiceServer,
    config_service_server::ConfigServiceServer, results_service_server::ResultsServiceServer,
    server_service_server::ServerServiceServer,
};

/// Code generated from `proto/`, clients and servers.
#[allow(missing_docs, clippy::pedantic, clippy::nursery, unused_qualifications)]
pub mod services {
    include!(concat!(env!("OUT_DIR"), "/services/twamp.agent.v1.rs"));
}

/// Interval of HTTP/2 pings on idle connections, and the time limit of their answer: the stream of
/// a collector that vanished must end.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls of one connection at a time, and data that may be on its way to each. The window of a
/// connection has space for all of them: requests that wait for their turn do not keep out the data
/// of the one whose turn it is.
const STREAMS: u32 = 200;
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
/// Time that open requests have to end when the agent stops.
const DRAIN: Duration = Duration::from_secs(3);

/// Shared state of all services.
#[derive(Clone, Debug)]
pub struct Context {
    /// Commits the configuration and controls both roles.
    pub control: Control,
    /// Result log with its statistics.
    pub results: Arc<Results>,
    /// Latest state of every exporter.
    pub exporters: Arc<ExporterStates>,
    /// Facts that do not change while the agent runs.
    pub facts: Arc<AgentFacts>,
    /// Ends the streams when it is cancelled.
    pub token: CancellationToken,
}

/// Serves the API until the token of the context is cancelled.
pub fn serve(
    listener: ApiListener,
    context: Context,
    tasks: &Tasks,
) -> Result<impl Future<Output = ()> + Send + 'static, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let limit = MAXIMUM_REQUEST_OCTETS;
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(Some(STREAMS))
        .initial_stream_window_size(Some(STREAM_WINDOW_BYTES))
        .initial_connection_window_size(Some(STREAMS * STREAM_WINDOW_BYTES + STREAM_WINDOW_BYTES))
        .add_service(health::service(&context, tasks))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(Admitted::new(
            ConfigServiceServer::new(context.clone()).max_decoding_message_size(limit),
        ))
        .add_service(ClientServiceServer::new(context.clone()).max_decoding_message_size(limit))
        .add_service(ServerServiceServer::new(context.clone()).max_decoding_message_size(limit))
        .add_service(ResultsServiceServer::new(context.clone()).max_decoding_message_size(limit))
        .add_service(AgentServiceServer::new(context.clone()).max_decoding_message_size(limit));
    let token = context.token;
    let incoming = listener.accept(tasks);
    Ok(async move {
        let server = router.serve_with_incoming_shutdown(incoming, token.clone().cancelled_owned());
        tokio::pin!(server);
        let result = tokio::select! {
            result = &mut server => result,
            () = token.cancelled() => match timeout(DRAIN, server).await {
                Ok(result) => result,
                Err(_) => {
                    tracing::warn!("requests still open at shutdown");
                    Ok(())
                }
            },
        };
        if let Err(error) = result {
            tracing::error!(%error, "API failed");
        }
    })
}
