//! Demonstration: an agent on free loopback ports and a temporary state directory that measures
//! itself, controlled over its own API.

use std::{net::SocketAddr, time::Duration};

use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use crate::{
    agent::{Agent, Options, StartError},
    api::ApiSettings,
    ctl::{Connection, CtlError, Target, TlsFiles, record_line, statistics_table},
    document::{DocumentError, read_config},
    net,
    proto::{
        ApplyConfigRequest, GetStatisticsRequest, StreamRecordsRequest, TestOutcome, record,
        stream_records_request::From as StreamFrom, stream_records_response::Message,
    },
    session::PlaneSettings,
};

/// Failure of the demonstration.
#[derive(Debug, Error)]
pub enum DemoError {
    /// No temporary directory, no free port, or no standard output.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The agent failed to start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A call of the API failed.
    #[error(transparent)]
    Api(#[from] CtlError),
    /// The built-in configuration is invalid.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// No test was completed.
    #[error("no test was completed within {0:?}")]
    NoResults(Duration),
}

/// Runs for `duration` or until `stop`, with output by `print`. Fails when no test was completed.
pub async fn run(
    duration: Duration,
    stop: impl Future<Output = ()>,
    print: impl Fn(&str) -> std::io::Result<()>,
) -> Result<(), DemoError> {
    let directory = tempfile::tempdir()?;
    let port = net::free_port()?;
    let api = ApiSettings {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0)).into()],
        ..ApiSettings::default()
    };
    let options = Options {
        state_dir: directory.path().join("state"),
        api,
        senders: PlaneSettings::default(),
        reflectors: PlaneSettings::default(),
        hardware_timestamp_interfaces: Vec::new(),
        clock_is_synchronised: false,
        bootstrap: None,
    };
    let agent = Agent::start(options).await?;
    let result = show(&agent, port, duration, stop, &print).await;
    agent.stop().await;
    directory.close()?;
    result
}

/// Returns a configuration with a server on `port` and measurements to it with and without
/// TWAMP-Control.
fn configuration(port: u16) -> String {
    format!(
        "server:
  listen: [{{address: 127.0.0.1, port: {port}}}]
  client_list: [{{name: local, prefixes: [127.0.0.0/8]}}]
  light: {{listen: [{{address: 127.0.0.1, port: {port}}}], prefixes: [127.0.0.0/8]}}
client:
  control_connections:
    - name: managed
      target_address: 127.0.0.1
      destination_port: {port}
      test_interval: 0.5s
      test_sessions:
        - {{name: voice, dscp_code_points: ef, data_size: 172, probe_count: 50, probe_interval: 0.02s, loss_timeout: 0.5s}}
        - {{name: bulk, dscp_code_points: af11, data_size: 1400, probe_count: 10, probe_interval: 0.1s, loss_timeout: 0.5s, schedule: POISSON}}
    - name: light
      control_type: LIGHT
      target_address: 127.0.0.1
      test_interval: 0.5s
      test_sessions:
        - {{name: s1, destination_port: {port}, probe_count: 10, probe_interval: 0.1s, loss_timeout: 0.5s}}
"
    )
}

async fn show(
    agent: &Agent,
    port: u16,
    duration: Duration,
    stop: impl Future<Output = ()>,
    print: &impl Fn(&str) -> std::io::Result<()>,
) -> Result<(), DemoError> {
    let address = agent
        .addresses()
        .first()
        .copied()
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::AddrNotAvailable))?;
    let target = Target::Url(format!("http://{address}"));
    let client = Connection::open(&target, &TlsFiles::default()).await.map_err(CtlError::from)?;
    let document = configuration(port);
    print(&format!(
        "The agent is running; its gRPC API listens on {address}. It applies this configuration:\n"
    ))?;
    print(&document)?;
    let config = Some(read_config(&document)?);
    let request =
        ApplyConfigRequest { config, comment: "demo".into(), ..ApplyConfigRequest::default() };
    client.config().apply_config(request).await.map_err(CtlError::from)?;
    print(&format!("Live results for {duration:?}:\n"))?;

    let request = StreamRecordsRequest {
        from: Some(StreamFrom::Earliest(true)),
        ..StreamRecordsRequest::default()
    };
    let stream = client.results().stream_records(request).await.map_err(CtlError::from)?;
    let mut stream = stream.into_inner();
    let end = Instant::now() + duration;
    let mut completed = 0;
    tokio::pin!(stop);
    loop {
        let message = tokio::select! {
            message = timeout_at(end, stream.message()) => message,
            () = &mut stop => break,
        };
        let Ok(message) = message else { break };
        let Some(message) = message.map_err(CtlError::from)? else { break };
        let Some(Message::Batch(batch)) = message.message else { continue };
        for record in &batch.records {
            if let Some(record::Kind::TestResult(result)) = &record.kind {
                completed += u32::from(result.outcome() == TestOutcome::Complete);
            }
            print(&record_line(record))?;
        }
    }
    drop(stream);
    let statistics = client.results().get_statistics(GetStatisticsRequest::default()).await;
    let statistics = statistics.map_err(CtlError::from)?.into_inner().statistics;
    print(&format!("\nStatistics:\n\n{}", statistics_table(&statistics)))?;
    if completed == 0 {
        return Err(DemoError::NoResults(duration));
    }
    let plural = if completed == 1 { "" } else { "s" };
    print(&format!("{completed} test{plural} completed. All temporary files are removed."))?;
    Ok(())
}
