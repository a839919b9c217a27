//! Accuracy of reported values against known ones: on a path without length, and through a relay
//! that records its delays.

use std::{net::SocketAddr, thread, time::Duration};

use twamp_agent::{
    api::services::results_service_client::ResultsServiceClient, net::free_port, proto,
    session::PlaneSettings,
};

use super::{Running, duration, light, relay::Relay, start};

/// Starts an agent that reflects on a port and measures over these connections.
fn with_reflector(port: u16, connections: Vec<proto::ControlConnection>) -> proto::AgentConfig {
    let listen = proto::ListenAddress {
        address: "127.0.0.1".into(),
        port: Some(port.into()),
        ..Default::default()
    };
    let server = proto::LightReflector {
        listen: vec![listen],
        prefixes: vec!["127.0.0.0/8".into()],
        stateful: true,
        ..Default::default()
    };
    proto::AgentConfig {
        client: Some(proto::ClientConfig { control_connections: connections }),
        server: Some(proto::ServerConfig { light: Some(server), ..Default::default() }),
        ..Default::default()
    }
}

/// Returns all probes of a connection, as the agent reports them.
async fn probes_of(running: &Running, connection: &str) -> Vec<proto::ProbeResult> {
    let mut results =
        ResultsServiceClient::connect(running.endpoint.clone()).await.expect("the API");
    let (mut probes, mut after_cursor) = (Vec::new(), 0);
    loop {
        let filter =
            proto::RecordFilter { connections: vec![connection.into()], ..Default::default() };
        let filter = Some(filter);
        let request = proto::ListRecordsRequest { after_cursor, filter, ..Default::default() };
        let records = results.list_records(request).await.expect("records").into_inner().records;
        let Some(last) = records.last() else { return probes };
        after_cursor = last.cursor;
        for record in records {
            if let Some(proto::record::Kind::ProbeResults(batch)) = record.kind {
                probes.extend(batch.probes);
            }
        }
    }
}

/// Measures a path without length.
pub(super) async fn idle_loopback() {
    let port = free_port().expect("a free port");
    let session = proto::TestSession {
        probe_count: Some(500),
        probe_interval: duration(Duration::from_millis(10)),
        store_probes: proto::StoreProbes::All.into(),
        ..proto::TestSession::default()
    };
    let connections = vec![light("c".into(), port, &session, 1)];
    let running = start(with_reflector(port, connections), PlaneSettings::default()).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    let probes = probes_of(&running, "c").await;
    running.agent.stop().await;
    let rtts = probes.iter().filter_map(|probe| probe.rtt_ns).collect();
    println!("twamp-agent: {}", spread("RTT", rtts));
    beside_irtt();
}

/// Count and distribution of values, nanoseconds.
fn spread(what: &str, mut values: Vec<i64>) -> String {
    values.sort_unstable();
    let at = |part: f64| values[((values.len() - 1) as f64 * part) as usize] as f64 / 1e3;
    format!(
        "{} probes, {what} min {:.1} us, median {:.1} us, p99 {:.1} us",
        values.len(),
        at(0.0),
        at(0.5),
        at(0.99)
    )
}

/// Measures a path whose delays a relay records, with periodic and Poisson streams at the same
/// time.
pub(super) async fn known_delays(length: Duration) {
    let port = free_port().expect("a free port");
    let reflector = SocketAddr::from(([127, 0, 0, 1], port));
    let streams = [("periodic", proto::Schedule::Periodic), ("Poisson", proto::Schedule::Poisson)];
    let interval = Duration::from_millis(10);
    let relays = streams.map(|_| Relay::start(reflector, Duration::from_millis(10)));
    let connections = streams.iter().zip(&relays).map(|((name, schedule), relay)| {
        let session = proto::TestSession {
            probe_count: Some((length.as_nanos() / interval.as_nanos()) as u32),
            probe_interval: duration(interval),
            schedule: (*schedule).into(),
            store_probes: proto::StoreProbes::All.into(),
            ..proto::TestSession::default()
        };
        let connection = light((*name).into(), relay.address.port(), &session, 1);
        proto::ControlConnection { test_count: 1, ..connection }
    });
    let config = with_reflector(port, connections.collect());
    let running = start(config, PlaneSettings::default()).await;
    tokio::time::sleep(length * 5 / 4 + Duration::from_secs(2)).await;
    for ((name, _), relay) in streams.iter().zip(relays) {
        let (probes, held) = (probes_of(&running, name).await, relay.end());
        let beyond = |probe: &proto::ProbeResult| {
            let (there, back) = held.get(&probe.sequence)?;
            Some(probe.rtt_ns? - (there + back).cast_signed())
        };
        let beyond = probes.iter().filter_map(beyond).collect();
        println!("{name:<10}{}", spread("RTT beyond the log:", beyond));
    }
    running.agent.stop().await;
}

/// Runs irtt from Debian if it is installed.
fn beside_irtt() {
    use std::process::{Command, Stdio};
    let port = free_port().expect("a free port");
    let bind = format!("127.0.0.1:{port}");
    let server = Command::new("irtt")
        .args(["server", "-b", &bind])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut server) = server else { return println!("irtt: not installed") };
    thread::sleep(Duration::from_millis(300));
    let client =
        Command::new("irtt").args(["client", "-q", "-i", "10ms", "-d", "5s", &bind]).output();
    let _ = server.kill();
    let _ = server.wait();
    let text = client.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text.unwrap_or_default();
    let line =
        line.lines().find(|line| line.trim_start().starts_with("RTT")).unwrap_or("no answer");
    println!("irtt: min, mean, median, max, stddev: {}", line.trim());
}
