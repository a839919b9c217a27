//! Where results go of themselves.

use std::{collections::BTreeMap, net::SocketAddr};

use super::Secret;
use crate::proto::RecordFilter;

/// The exporters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExportConfig {
    /// Where Prometheus finds metrics.
    pub prometheus: Option<SocketAddr>,
    /// What is pushed, by name.
    pub exporters: BTreeMap<String, Exporter>,
}

/// One that pushes.
#[derive(Clone, Debug, PartialEq)]
pub struct Exporter {
    /// Kept but not run.
    pub inactive: bool,
    /// Which records.
    pub filter: RecordFilter,
    /// Certificates (PEM) that the other end's is to be signed by; empty for those of the host.
    pub ca_certificates: String,
    /// What the other end knows this agent by.
    pub secret: Option<Secret>,
    /// To whom.
    pub target: ExportTarget,
}

/// To whom results are pushed.
#[derive(Clone, Debug, PartialEq)]
pub enum ExportTarget {
    /// An OpenTelemetry collector.
    Otlp {
        /// `http://HOST:PORT` or `https://HOST:PORT`.
        endpoint: String,
    },
    /// NATS JetStream.
    Nats {
        /// `nats://HOST:PORT` or `tls://HOST:PORT`, at least one.
        servers: Vec<String>,
        /// First part of subjects.
        prefix: String,
        /// Stream that is made where it is not there.
        stream: Option<String>,
        /// Written as JSON.
        json: bool,
        /// User name.
        user: Option<String>,
    },
}

impl ExportTarget {
    /// What it is called.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Otlp { .. } => "otlp",
            Self::Nats { .. } => "nats",
        }
    }
}
