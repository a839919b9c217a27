//! An OpenTelemetry collector, by OTLP over gRPC.

mod logs;
mod metrics;
mod values;

use std::{error::Error, time::Duration};

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
        metrics::v1::{ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient},
    },
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{Metric, ResourceMetrics, ScopeMetrics},
};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::ship::{SendFailure, Sink, Taken};
use crate::{
    model::{Exporter, Secret},
    proto::{Record, record},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Results of tests in one call, and logs: collectors take 4 MiB by default.
const RESULTS_OF_A_CALL: usize = 200;
const LOGS_OF_A_CALL: usize = 2_000;

/// A collector.
pub(super) struct OtlpSink {
    endpoint: String,
    ca_certificates: String,
    secret: Option<Secret>,
    agent_id: String,
    channel: Option<Channel>,
}

impl OtlpSink {
    pub(super) fn new(endpoint: String, exporter: &Exporter, agent_id: String) -> Self {
        Self {
            endpoint,
            ca_certificates: exporter.ca_certificates.clone(),
            secret: exporter.secret.clone(),
            agent_id,
            channel: None,
        }
    }

    /// The channel connects by itself, and again.
    fn channel(&mut self) -> Result<Channel, String> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let failed = |error: tonic::transport::Error| error.to_string();
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone())
            .map_err(failed)?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        if self.endpoint.starts_with("https://") {
            let tls = ClientTlsConfig::new();
            let tls = if self.ca_certificates.is_empty() {
                tls.with_native_roots()
            } else {
                tls.ca_certificate(Certificate::from_pem(&self.ca_certificates))
            };
            endpoint = endpoint.tls_config(tls).map_err(failed)?;
        }
        let channel = endpoint.connect_lazy();
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, String> {
        let mut request = Request::new(message);
        if let Some(secret) = &self.secret {
            let mut value = MetadataValue::<Ascii>::try_from(secret.octets())
                .map_err(|_| "the secret is no value of a header".to_owned())?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }

    async fn send_metrics(&mut self, metrics: Vec<Metric>) -> Result<Taken, SendFailure> {
        let channel = self.channel().map_err(SendFailure)?;
        let (resource, scope) = (values::resource(&self.agent_id), values::scope());
        let message = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(resource),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope),
                    metrics,
                    ..ScopeMetrics::default()
                }],
                ..ResourceMetrics::default()
            }],
        };
        let request = self.request(message).map_err(SendFailure)?;
        let answer = MetricsServiceClient::new(channel).export(request).await;
        taken(answer.map(|answer| {
            let partial = answer.into_inner().partial_success.unwrap_or_default();
            (partial.rejected_data_points, partial.error_message)
        }))
    }

    async fn send_logs(&mut self, log_records: Vec<LogRecord>) -> Result<Taken, SendFailure> {
        let channel = self.channel().map_err(SendFailure)?;
        let (resource, scope) = (values::resource(&self.agent_id), values::scope());
        let message = ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(resource),
                scope_logs: vec![ScopeLogs {
                    scope: Some(scope),
                    log_records,
                    ..ScopeLogs::default()
                }],
                ..ResourceLogs::default()
            }],
        };
        let request = self.request(message).map_err(SendFailure)?;
        let answer = LogsServiceClient::new(channel).export(request).await;
        taken(answer.map(|answer| {
            let partial = answer.into_inner().partial_success.unwrap_or_default();
            (partial.rejected_log_records, partial.error_message)
        }))
    }
}

impl Sink for OtlpSink {
    async fn send(&mut self, records: &[Record]) -> Result<Taken, SendFailure> {
        let is_result = |record: &&Record| {
            matches!(
                record.kind,
                Some(record::Kind::TestResult(_) | record::Kind::IntervalResult(_))
            )
        };
        let mut all = Taken::default();
        let mut add = |taken: Taken| {
            all.rejected += taken.rejected;
            if !taken.detail.is_empty() {
                all.detail = taken.detail;
            }
        };
        let results: Vec<&Record> = records.iter().filter(is_result).collect();
        for results in results.chunks(RESULTS_OF_A_CALL) {
            add(self.send_metrics(metrics::of(results)).await?);
        }
        let logs: Vec<LogRecord> =
            records.iter().filter(|record| !is_result(record)).flat_map(logs::of).collect();
        let mut logs = logs.into_iter().peekable();
        while logs.peek().is_some() {
            add(self.send_logs(logs.by_ref().take(LOGS_OF_A_CALL).collect()).await?);
        }
        Ok(all)
    }
}

/// What will not be taken however often it is sent counts as refused; the rest is tried again. With
/// partial success nothing is to be sent again (OTLP specification).
fn taken(answer: Result<(i64, String), Status>) -> Result<Taken, SendFailure> {
    match answer {
        Ok((rejected, detail)) => {
            Ok(Taken { rejected: u64::try_from(rejected).unwrap_or(0), detail })
        }
        Err(status) if status.code() == Code::InvalidArgument => {
            Ok(Taken { rejected: u64::MAX, detail: format!("refused: {}", status.message()) })
        }
        Err(status) => {
            let mut text = format!("{:?}: {}", status.code(), status.message());
            // What the system said stands last.
            let mut cause: &dyn Error = &status;
            while let Some(source) = cause.source() {
                cause = source;
            }
            text += &format!(": {cause}");
            Err(SendFailure(text))
        }
    }
}
