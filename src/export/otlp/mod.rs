//! Exporter to an OpenTelemetry collector: OTLP over gRPC.

mod cumulative;
mod logs;
mod metrics;
mod peers;
mod values;

use std::{error::Error, time::Duration};

use hyper_util::rt::TokioIo;
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
use tower::service_fn;

use super::ship::{Accepted, SendFailure, Sink};
use crate::{
    model::{Exporter, Secret, split_url_zone},
    net::tcp,
    proto::{Record, record},
};
use cumulative::Totals;
pub use peers::FindPeer;
use peers::Peers;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Results and log records in one call: collectors accept 4 MiB by default.
const MAX_RESULTS_PER_CALL: usize = 200;
const MAX_LOGS_PER_CALL: usize = 2_000;

/// Connection to an OpenTelemetry collector.
pub(super) struct OtlpSink {
    endpoint: String,
    ca_certificates: String,
    secret: Option<Secret>,
    agent_id: String,
    peers: Peers,
    /// Totals of cumulative metrics; `None` if deltas are sent.
    totals: Option<Totals>,
    channel: Option<Channel>,
    progress: Option<Progress>,
}

/// Progress of a batch that consists of several calls and may have to be retried.
struct Progress {
    /// First and last cursor of the batch.
    batch: (u64, u64),
    /// Number of calls that were accepted.
    calls: usize,
    accepted: Accepted,
}

impl OtlpSink {
    pub(super) fn new(
        endpoint: String,
        is_delta: bool,
        exporter: &Exporter,
        agent_id: String,
        find_peer: FindPeer,
    ) -> Self {
        Self {
            endpoint,
            ca_certificates: exporter.ca_certificates.clone(),
            secret: exporter.secret.clone(),
            agent_id,
            peers: Peers::new(find_peer),
            totals: (!is_delta).then(Totals::default),
            channel: None,
            progress: None,
        }
    }

    /// Returns the channel, which connects and reconnects by itself.
    fn channel(&mut self) -> Result<Channel, String> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let failed = |error: tonic::transport::Error| error.to_string();
        // The type of URLs has no zones (RFC 6874); the address is connected to here.
        let (url, zoned) = match split_url_zone(&self.endpoint) {
            Some((url, zoned)) => (url, Some(zoned)),
            None => (self.endpoint.clone(), None),
        };
        let mut endpoint = Endpoint::from_shared(url)
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
        let channel = match zoned {
            None => endpoint.connect_lazy(),
            Some(zoned) => endpoint.connect_with_connector_lazy(service_fn(move |_| {
                let zoned = zoned.clone();
                async move { tcp::connect_zoned(&zoned).await.map(TokioIo::new) }
            })),
        };
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, String> {
        let mut request = Request::new(message);
        if let Some(secret) = &self.secret {
            let mut value = MetadataValue::<Ascii>::try_from(secret.octets())
                .map_err(|_| "the secret is not a valid header value".to_owned())?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }

    async fn send_metrics(&mut self, metrics: Vec<Metric>) -> Result<Accepted, SendFailure> {
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
        convert_answer(answer.map(|answer| {
            let partial = answer.into_inner().partial_success.unwrap_or_default();
            (partial.rejected_data_points, partial.error_message)
        }))
    }

    async fn send_logs(&mut self, log_records: Vec<LogRecord>) -> Result<Accepted, SendFailure> {
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
        convert_answer(answer.map(|answer| {
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
    async fn send(&mut self, records: &[Record]) -> Result<Accepted, SendFailure> {
        let is_result = |record: &&Record| {
            matches!(
                record.kind,
                Some(record::Kind::TestResult(_) | record::Kind::IntervalResult(_))
            )
        };
        let results: Vec<&Record> = records.iter().filter(is_result).collect();
        let mut calls: Vec<Call<'_>> =
            results.chunks(MAX_RESULTS_PER_CALL).map(Call::Metrics).collect();
        let logs: Vec<LogRecord> = records
            .iter()
            .filter(|record| !is_result(record))
            .flat_map(|record| logs::from_record(record, &mut self.peers))
            .collect();
        let mut logs = logs.into_iter().peekable();
        while logs.peek().is_some() {
            calls.push(Call::Logs(logs.by_ref().take(MAX_LOGS_PER_CALL).collect()));
        }
        // A retry skips the calls that were accepted: sending them twice would double sums.
        let batch = records.first().zip(records.last()).map(|(a, b)| (a.cursor, b.cursor));
        if self.progress.as_ref().map(|progress| progress.batch) != batch {
            self.progress =
                batch.map(|batch| Progress { batch, calls: 0, accepted: Accepted::default() });
        }
        let done = self.progress.as_ref().map_or(0, |progress| progress.calls);
        for call in calls.into_iter().skip(done) {
            let (accepted, all) = match call {
                Call::Metrics(results) => {
                    let mut metrics = metrics::from_records(results, &mut self.peers);
                    let pending = self.totals.as_ref().map(|t| t.accumulate(&mut metrics));
                    let accepted = self.send_metrics(metrics).await?;
                    if let Some((totals, pending)) = self.totals.as_mut().zip(pending) {
                        totals.commit(pending);
                    }
                    (accepted, results.len())
                }
                Call::Logs(logs) => {
                    let all = logs.len();
                    (self.send_logs(logs).await?, all)
                }
            };
            if let Some(progress) = &mut self.progress {
                progress.calls += 1;
                progress.accepted.rejected += accepted.rejected.min(all as u64);
                if !accepted.detail.is_empty() {
                    progress.accepted.detail = accepted.detail;
                }
            }
        }
        Ok(self.progress.take().map(|progress| progress.accepted).unwrap_or_default())
    }
}

/// Converts the answer of a call. Permanent errors reject its records, other errors are retried.
/// After partial success nothing may be sent again (OTLP specification).
fn convert_answer(answer: Result<(i64, String), Status>) -> Result<Accepted, SendFailure> {
    match answer {
        Ok((rejected, detail)) => {
            Ok(Accepted { rejected: u64::try_from(rejected).unwrap_or(0), detail })
        }
        Err(status) if matches!(status.code(), Code::InvalidArgument | Code::Unimplemented) => {
            let detail = if status.code() == Code::Unimplemented {
                "the collector does not accept this kind of record: exclude it by `filter`"
                    .to_owned()
            } else {
                format!("rejected: {}", status.message())
            };
            Ok(Accepted { rejected: u64::MAX, detail })
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
