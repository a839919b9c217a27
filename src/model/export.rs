//! The checked configuration of the exporters.

use std::collections::BTreeMap;

use super::{Secret, ZonedAddress};
use crate::proto::RecordFilter;

/// Exporters and the listener for Prometheus.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExportConfig {
    /// Listener for the scrapes of Prometheus.
    pub prometheus: Option<ZonedAddress>,
    /// Exporters that push, by name.
    pub exporters: BTreeMap<String, Exporter>,
}

/// An exporter that pushes records.
#[derive(Clone, Debug, PartialEq)]
pub struct Exporter {
    /// True if the exporter is configured but does not run.
    pub inactive: bool,
    /// Selection of the records that are pushed.
    pub filter: RecordFilter,
    /// CA certificates (PEM) for the peer's certificate; empty for those of the host.
    pub ca_certificates: String,
    /// Token or password that authenticates the agent.
    pub secret: Option<Secret>,
    /// Peer and protocol of the exporter.
    pub target: ExportTarget,
}

/// Peer of an exporter, by protocol.
#[derive(Clone, Debug, PartialEq)]
pub enum ExportTarget {
    /// Push to an OpenTelemetry collector.
    Otlp {
        /// URL of the collector: `http://HOST:PORT` or `https://HOST:PORT`.
        endpoint: String,
        /// True if counters and histograms have the values of each result instead of totals.
        is_delta: bool,
    },
    /// Publication to a NATS JetStream.
    Nats {
        /// `nats://HOST:PORT` or `tls://HOST:PORT`, at least one.
        servers: Vec<String>,
        /// Prefix of all subjects.
        prefix: String,
        /// JetStream stream that is created where it is missing.
        stream: Option<String>,
        /// Encodes records as JSON instead of Protobuf.
        json: bool,
        /// User name for the authentication.
        user: Option<String>,
    },
}

impl Exporter {
    /// Returns the URL of a server that the secret would reach in clear text.
    pub fn unencrypted_server(&self) -> Option<&str> {
        let (servers, encrypted) = match &self.target {
            ExportTarget::Otlp { endpoint, .. } => (std::slice::from_ref(endpoint), "https://"),
            ExportTarget::Nats { servers, .. } => (servers.as_slice(), "tls://"),
        };
        servers.iter().map(String::as_str).find(|server| !server.starts_with(encrypted))
    }
}

impl ExportTarget {
    /// Returns the name of the protocol.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Otlp { .. } => "otlp",
            Self::Nats { .. } => "nats",
        }
    }
}
