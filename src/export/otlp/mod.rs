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

/// Connection to an OpenTelemetry collector.
pub(super) struct OtlpSink {
    endpoint: String,
    ca_certificates: String,
    secret: Option<Secret>,
    agent_id: String,
    channel: Option<Channel>,
    begun: Option<Begun>,
}

/// Progress of a batch that has to be sent again.
struct Begun {
    /// Its first and last cursor.
    batch: (u64, u64),
    /// Calls that were taken.
    calls: usize,
    taken: Taken,
}

impl OtlpSink {
    pub(super) fn new(endpoint: String, exporter: &Exporter, agent_id: String) -> Self {
        Self {
            endpoint,
            ca_certificates: exporter.ca_certificates.clone(),
            secret: exporter.secret.clone(),
            agent_id,
            channel: None,
            begun: None,
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

/// Content of one call.
enum Call<'a> {
    Metrics(&'a [&'a Record]),
    Logs(Vec<LogRecord>),
}

impl Sink for OtlpSink {
    async fn send(&mut self, records: &[Record]) -> Result<Taken, SendFailure> {
        let is_result = |record: &&Record| {
            matches!(
                record.kind,
                Some(record::Kind::TestResult(_) | record::Kind::IntervalResult(_))
            )
        };
        let results: Vec<&Record> = records.iter().filter(is_result).collect();
        let mut calls: Vec<Call<'_>> =
            results.chunks(RESULTS_OF_A_CALL).map(Call::Metrics).collect();
        let logs: Vec<LogRecord> =
            records.iter().filter(|record| !is_result(record)).flat_map(logs::of).collect();
        let mut logs = logs.into_iter().peekable();
        while logs.peek().is_some() {
            calls.push(Call::Logs(logs.by_ref().take(LOGS_OF_A_CALL).collect()));
        }
        // The same records again: what was taken of them is not sent twice, for sums would double.
        let batch = records.first().zip(records.last()).map(|(a, b)| (a.cursor, b.cursor));
        if self.begun.as_ref().map(|begun| begun.batch) != batch {
            self.begun = batch.map(|batch| Begun { batch, calls: 0, taken: Taken::default() });
        }
        let done = self.begun.as_ref().map_or(0, |begun| begun.calls);
        for call in calls.into_iter().skip(done) {
            let (taken, all) = match call {
                Call::Metrics(results) => {
                    (self.send_metrics(metrics::of(results)).await?, results.len())
                }
                Call::Logs(logs) => {
                    let all = logs.len();
                    (self.send_logs(logs).await?, all)
                }
            };
            if let Some(begun) = &mut self.begun {
                begun.calls += 1;
                begun.taken.rejected += taken.rejected.min(all as u64);
                if !taken.detail.is_empty() {
                    begun.taken.detail = taken.detail;
                }
            }
        }
        Ok(self.begun.take().map(|begun| begun.taken).unwrap_or_default())
    }
}

/// Counts permanent errors as refused, others are retried. After partial success nothing may be
/// sent again (OTLP specification).
fn taken(answer: Result<(i64, String), Status>) -> Result<Taken, SendFailure> {
    match answer {
        Ok((rejected, detail)) => {
            Ok(Taken { rejected: u64::try_from(rejected).unwrap_or(0), detail })
        }
        Err(status) if matches!(status.code(), Code::InvalidArgument | Code::Unimplemented) => {
            let detail = if status.code() == Code::Unimplemented {
                "it takes no such kind: leave it out by `filter`".to_owned()
            } else {
                format!("refused: {}", status.message())
            };
            Ok(Taken { rejected: u64::MAX, detail })
        }
        Err(status) => {
            let mut text = format!("{:?}: {}", status.code(), status.message());
            // The error of the operating system is the last in the chain.
            let mut cause: &dyn Error = &status;
            while let Some(source) = cause.source() {
                cause = source;
            }
            text += &format!(": {cause}");
            Err(SendFailure(text))
        }
    }
}
