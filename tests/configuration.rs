//! The configuration as it is documented: ranges and defaults of the model stand in the comments
//! of the `.proto`, both edges of every range are the edges, and `docs/configuration.md` is made
//! from the same comments. `UPDATE_DOCS=1 cargo test --test configuration` writes it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm
)]

use std::fmt::Write;

use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use twamp_agent::{
    model::{
        limits::{self, Limit},
        parse, warnings,
    },
    proto::{
        AccessId, AccessReport, AccessReturnCode, AgentConfig, AuthenticationMode,
        AvailabilityRule, ClientConfig, ClientList, ControlConnection, ControlType, DESCRIPTORS,
        ExportConfig, Key, KeyChain, LightReflector, ListenAddress, NatsExport, OtlpExport,
        PrometheusExport, RecordFilter, SendAddresses, ServerConfig, StampReflector,
        StampReflectorSession, StampSession, StorageConfig, TestPort, TestPortMode, TestSession,
        Thresholds,
    },
};

type Set = fn(&mut AgentConfig, u64);
type Change = fn(&mut AgentConfig);

struct Numeric {
    message: &'static str,
    field: &'static str,
    path: &'static str,
    limit: &'static Limit,
    set: Set,
    /// Added to the last value that is right to make one that is wrong.
    step: u64,
}

const SECOND: u64 = 1_000_000_000;

fn duration(ns: u64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: (ns / SECOND) as i64, nanos: (ns % SECOND) as i32 })
}

fn connection(config: &mut AgentConfig) -> &mut ControlConnection {
    &mut config.client.as_mut().unwrap().control_connections[0]
}

fn session(config: &mut AgentConfig) -> &mut TestSession {
    &mut connection(config).test_sessions[0]
}

fn thresholds(config: &mut AgentConfig) -> &mut Thresholds {
    session(config).thresholds.get_or_insert_default()
}

fn stamp_connection(config: &mut AgentConfig) -> &mut ControlConnection {
    &mut config.client.as_mut().unwrap().control_connections[1]
}

fn stamp(config: &mut AgentConfig) -> &mut StampSession {
    stamp_connection(config).test_sessions[0].stamp.as_mut().unwrap()
}

fn report(config: &mut AgentConfig) -> &mut AccessReport {
    stamp(config).access_report.as_mut().unwrap()
}

fn stamp_server(config: &mut AgentConfig) -> &mut StampReflector {
    server(config).stamp.as_mut().unwrap()
}

fn server(config: &mut AgentConfig) -> &mut ServerConfig {
    config.server.as_mut().unwrap()
}

fn good() -> AgentConfig {
    AgentConfig {
        client: Some(ClientConfig {
            control_connections: vec![
                ControlConnection {
                    name: "c1".into(),
                    target_address: "192.0.2.1".into(),
                    test_sessions: vec![TestSession { name: "s1".into(), ..Default::default() }],
                    ..Default::default()
                },
                ControlConnection {
                    name: "c2".into(),
                    target_address: "192.0.2.1".into(),
                    control_type: ControlType::Stamp.into(),
                    test_sessions: vec![TestSession {
                        name: "s1".into(),
                        stamp: Some(Box::new(StampSession {
                            access_report: Some(AccessReport {
                                access_id: AccessId::AccessId3gpp.into(),
                                return_code: AccessReturnCode::Available.into(),
                                ..Default::default()
                            }),
                            ..Default::default()
                        })),
                        ..Default::default()
                    }],
                    ..Default::default()
                },
            ],
        }),
        server: Some(ServerConfig {
            listen: vec![ListenAddress::default()],
            client_list: vec![ClientList { name: "all".into(), prefixes: vec!["::/0".into()] }],
            light: Some(LightReflector { prefixes: vec!["::/0".into()], ..Default::default() }),
            stamp: Some(StampReflector {
                listen: vec![ListenAddress { port: Some(863), ..Default::default() }],
                sessions: vec![StampReflectorSession {
                    prefix: "192.0.2.0/24".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        }),
        storage: Some(StorageConfig::default()),
        export: Some(ExportConfig {
            prometheus: Some(PrometheusExport::default()),
            otlp: vec![OtlpExport {
                name: "o1".into(),
                endpoint: "http://collector.example:4317".into(),
                ..Default::default()
            }],
            nats: vec![NatsExport {
                name: "n1".into(),
                servers: vec!["nats://[2001:db8::1]:4222".into()],
                ..Default::default()
            }],
        }),
    }
}

fn otlp(config: &mut AgentConfig) -> &mut OtlpExport {
    &mut config.export.as_mut().unwrap().otlp[0]
}

fn nats(config: &mut AgentConfig) -> &mut NatsExport {
    &mut config.export.as_mut().unwrap().nats[0]
}

fn rule(config: &mut AgentConfig) -> &mut AvailabilityRule {
    session(config).availability.get_or_insert_default()
}

macro_rules! fields {
    ($($message:literal $field:literal $path:literal $limit:ident $step:expr, $set:expr;)*) => {
        vec![$(Numeric {
            message: $message,
            field: $field,
            path: $path,
            limit: &limits::$limit,
            set: $set,
            step: $step,
        }),*]
    };
}

const C: &str = "client.control_connections[0]";

fn numeric_fields() -> Vec<Numeric> {
    fields! {
        "ControlConnection" "destination_port" "C.destination_port" PORT 1, |c, v| connection(c).destination_port = Some(v as u32);
        "ControlConnection" "test_count" "C.test_count" TEST_COUNT 1, |c, v| connection(c).test_count = v;
        "ControlConnection" "test_interval" "C.test_interval" TEST_INTERVAL 1, |c, v| connection(c).test_interval = duration(v);
        "ControlConnection" "tcp_keepidle" "C.tcp_keepidle" TCP_KEEPIDLE SECOND, |c, v| connection(c).tcp_keepidle = duration(v);
        "ControlConnection" "tcp_keepintvl" "C.tcp_keepintvl" TCP_KEEPINTVL SECOND, |c, v| connection(c).tcp_keepintvl = duration(v);
        "ControlConnection" "tcp_keepcnt" "C.tcp_keepcnt" TCP_KEEPCNT 1, |c, v| connection(c).tcp_keepcnt = Some(v as u32);
        "ControlConnection" "connect_timeout" "C.connect_timeout" CONNECT_TIMEOUT 1, |c, v| connection(c).connect_timeout = duration(v);
        "TestSession" "destination_port" "C.test_sessions[0].destination_port" PORT 1, |c, v| session(c).destination_port = Some(v as u32);
        "TestSession" "source_port" "C.test_sessions[0].source_port" PORT 1, |c, v| session(c).source_port = Some(v as u32);
        "TestSession" "data_size" "C.test_sessions[0].data_size" DATA_SIZE 1, |c, v| session(c).data_size = Some(v as u32);
        "TestSession" "ttl" "C.test_sessions[0].ttl" TTL 1, |c, v| session(c).ttl = Some(v as u32);
        "TestSession" "probe_count" "C.test_sessions[0].probe_count" PROBE_COUNT 1, |c, v| session(c).probe_count = Some(v as u32);
        "TestSession" "burst_size" "C.test_sessions[0].burst_size" BURST_SIZE 1, |c, v| session(c).burst_size = Some(v as u32);
        "TestSession" "probe_interval" "C.test_sessions[0].probe_interval" PROBE_INTERVAL 1, |c, v| session(c).probe_interval = duration(v);
        "TestSession" "loss_timeout" "C.test_sessions[0].loss_timeout" LOSS_TIMEOUT 1, |c, v| session(c).loss_timeout = duration(v);
        "ControlConnection" "maximum_key_derivation_count" "C.maximum_key_derivation_count" MAXIMUM_KEY_DERIVATION_COUNT 1, |c, v| connection(c).maximum_key_derivation_count = Some(v as u32);
        "TestSession" "reflected_octets" "C.test_sessions[0].reflected_octets" REFLECTED_OCTETS 1, |c, v| session(c).reflected_octets = Some(v as u32);
        "StampSession" "ssid" "client.control_connections[1].test_sessions[0].stamp.ssid" SSID 1, |c, v| stamp(c).ssid = Some(v as u32);
        "AccessReport" "retransmission_interval" "client.control_connections[1].test_sessions[0].stamp.access_report.retransmission_interval" RETRANSMISSION_INTERVAL 1, |c, v| report(c).retransmission_interval = duration(v);
        "AccessReport" "retransmissions" "client.control_connections[1].test_sessions[0].stamp.access_report.retransmissions" RETRANSMISSIONS 1, |c, v| report(c).retransmissions = Some(v as u32);
        "StampReflectorSession" "port" "server.stamp.sessions[0].port" PORT 1, |c, v| stamp_server(c).sessions[0].port = Some(v as u32);
        "StampReflectorSession" "ssid" "server.stamp.sessions[0].ssid" SERVER_SSID 1, |c, v| stamp_server(c).sessions[0].ssid = Some(v as u32);
        "ServerConfig" "key_derivation_count" "server.key_derivation_count" KEY_DERIVATION_COUNT 1, |c, v| server(c).key_derivation_count = Some(v as u32);
        "ServerConfig" "server_inactivity_timeout" "server.server_inactivity_timeout" SERVER_INACTIVITY_TIMEOUT 1, |c, v| server(c).server_inactivity_timeout = duration(v);
        "ServerConfig" "max_connection_duration" "server.max_connection_duration" MAX_CONNECTION_DURATION 1, |c, v| server(c).max_connection_duration = duration(v);
        "ServerConfig" "maximum_connections" "server.maximum_connections" SERVER_CONNECTIONS 1, |c, v| server(c).maximum_connections = Some(v as u32);
        "ServerConfig" "maximum_connections_per_client" "server.maximum_connections_per_client" SERVER_CONNECTIONS_PER_CLIENT 1, |c, v| server(c).maximum_connections_per_client = Some(v as u32);
        "ServerConfig" "maximum_sessions" "server.maximum_sessions" SERVER_SESSIONS 1, |c, v| server(c).maximum_sessions = Some(v as u32);
        "ServerConfig" "maximum_sessions_per_connection" "server.maximum_sessions_per_connection" SERVER_SESSIONS_PER_CONNECTION 1, |c, v| server(c).maximum_sessions_per_connection = Some(v as u32);
        "ServerConfig" "tcp_keepidle" "server.tcp_keepidle" TCP_KEEPIDLE SECOND, |c, v| server(c).tcp_keepidle = duration(v);
        "ServerConfig" "tcp_keepintvl" "server.tcp_keepintvl" TCP_KEEPINTVL SECOND, |c, v| server(c).tcp_keepintvl = duration(v);
        "ServerConfig" "tcp_keepcnt" "server.tcp_keepcnt" TCP_KEEPCNT 1, |c, v| server(c).tcp_keepcnt = Some(v as u32);
        "ServerConfig" "refwait" "server.refwait" REFWAIT 1, |c, v| server(c).refwait = duration(v);
        "ListenAddress" "port" "server.listen[0].port" PORT 1, |c, v| server(c).listen[0].port = Some(v as u32);
        "ControlConnection" "retry_backoff_max" "C.retry_backoff_max" RETRY_BACKOFF_MAX 1, |c, v| connection(c).retry_backoff_max = duration(v);
        "Thresholds" "successive_loss" "C.test_sessions[0].thresholds.successive_loss" SUCCESSIVE_LOSS 1, |c, v| thresholds(c).successive_loss = Some(v as u32);
        "Thresholds" "total_loss" "C.test_sessions[0].thresholds.total_loss" TOTAL_LOSS 1, |c, v| thresholds(c).total_loss = Some(v as u32);
        "Thresholds" "rtt" "C.test_sessions[0].thresholds.rtt" DELAY_THRESHOLD 1, |c, v| thresholds(c).rtt = duration(v);
        "Thresholds" "max_rtt" "C.test_sessions[0].thresholds.max_rtt" DELAY_THRESHOLD 1, |c, v| thresholds(c).max_rtt = duration(v);
        "Thresholds" "jitter_rtt" "C.test_sessions[0].thresholds.jitter_rtt" DELAY_THRESHOLD 1, |c, v| thresholds(c).jitter_rtt = duration(v);
        "Thresholds" "std_dev_rtt" "C.test_sessions[0].thresholds.std_dev_rtt" DELAY_THRESHOLD 1, |c, v| thresholds(c).std_dev_rtt = duration(v);
        "Thresholds" "egress_time" "C.test_sessions[0].thresholds.egress_time" DELAY_THRESHOLD 1, |c, v| thresholds(c).egress_time = duration(v);
        "Thresholds" "jitter_egress" "C.test_sessions[0].thresholds.jitter_egress" DELAY_THRESHOLD 1, |c, v| thresholds(c).jitter_egress = duration(v);
        "Thresholds" "std_dev_egress" "C.test_sessions[0].thresholds.std_dev_egress" DELAY_THRESHOLD 1, |c, v| thresholds(c).std_dev_egress = duration(v);
        "Thresholds" "ingress_time" "C.test_sessions[0].thresholds.ingress_time" DELAY_THRESHOLD 1, |c, v| thresholds(c).ingress_time = duration(v);
        "Thresholds" "jitter_ingress" "C.test_sessions[0].thresholds.jitter_ingress" DELAY_THRESHOLD 1, |c, v| thresholds(c).jitter_ingress = duration(v);
        "Thresholds" "std_dev_ingress" "C.test_sessions[0].thresholds.std_dev_ingress" DELAY_THRESHOLD 1, |c, v| thresholds(c).std_dev_ingress = duration(v);
        "Thresholds" "clear_percent" "C.test_sessions[0].thresholds.clear_percent" CLEAR_PERCENT 1, |c, v| thresholds(c).clear_percent = Some(v as u32);
        "Thresholds" "clear_after_tests" "C.test_sessions[0].thresholds.clear_after_tests" CLEAR_AFTER 1, |c, v| thresholds(c).clear_after_tests = Some(v as u32);
        "ControlConnection" "moving_average_size" "C.moving_average_size" MOVING_AVERAGE_SIZE 1, |c, v| connection(c).moving_average_size = Some(v as u32);
        "ControlConnection" "history_size" "C.history_size" HISTORY_SIZE 1, |c, v| connection(c).history_size = Some(v as u32);
        "ControlConnection" "retention_age" "C.retention_age" CONNECTION_RETENTION_AGE 1, |c, v| {
            connection(c).retention_age = duration(v);
            c.storage.as_mut().unwrap().retention_age = duration(v.clamp(60_000_000_000, 366 * 86_400_000_000_000));
        };
        "AvailabilityRule" "probes_per_interval" "C.test_sessions[0].availability.probes_per_interval" AVAILABILITY_PROBES 1, |c, v| rule(c).probes_per_interval = Some(v as u32);
        "AvailabilityRule" "loss_percent" "C.test_sessions[0].availability.loss_percent" AVAILABILITY_LOSS_PERCENT 1, |c, v| rule(c).loss_percent = Some(v as u32);
        "AvailabilityRule" "consecutive_intervals" "C.test_sessions[0].availability.consecutive_intervals" AVAILABILITY_INTERVALS 1, |c, v| rule(c).consecutive_intervals = Some(v as u32);
        "AvailabilityRule" "consecutive_high_loss_intervals" "C.test_sessions[0].availability.consecutive_high_loss_intervals" AVAILABILITY_HIGH_LOSS 1, |c, v| {
            rule(c).consecutive_intervals = Some(1000);
            rule(c).consecutive_high_loss_intervals = Some(v as u32);
        };
        "PrometheusExport" "port" "export.prometheus.port" PROMETHEUS_PORT 1, |c, v| c.export.as_mut().unwrap().prometheus.as_mut().unwrap().port = Some(v as u32);
        "LightReflector" "maximum_packets_per_second" "server.light.maximum_packets_per_second" PACKETS_PER_SECOND 1, |c, v| server(c).light.as_mut().unwrap().maximum_packets_per_second = Some(v as u32);
        "ServerConfig" "maximum_packets_per_second_per_sender" "server.maximum_packets_per_second_per_sender" PACKETS_PER_SECOND 1, |c, v| server(c).maximum_packets_per_second_per_sender = Some(v as u32);
        "StorageConfig" "retention_age" "storage.retention_age" RETENTION_AGE 1, |c, v| c.storage.as_mut().unwrap().retention_age = duration(v);
        "StorageConfig" "retention_bytes" "storage.retention_bytes" RETENTION_OCTETS 1, |c, v| c.storage.as_mut().unwrap().retention_bytes = Some(v);
        "StorageConfig" "maximum_disk_bytes" "storage.maximum_disk_bytes" DISK_OCTETS 1, |c, v| c.storage.as_mut().unwrap().maximum_disk_bytes = Some(v);
    }
}

fn wrong_fields(config: &AgentConfig) -> Vec<String> {
    parse(config).err().unwrap_or_default().into_iter().map(|v| v.field).collect()
}

#[test]
fn every_range_ends_where_it_is_said_to_end() {
    parse(&good()).unwrap();
    for field in numeric_fields() {
        let path = field.path.replacen('C', C, usize::from(field.path.starts_with('C')));
        let (lowest, highest) = (*field.limit.range.start(), *field.limit.range.end());
        for value in [lowest, highest] {
            let mut config = good();
            (field.set)(&mut config, value);
            assert_eq!(wrong_fields(&config), Vec::<String>::new(), "{path} = {value}");
        }
        let below = lowest.checked_sub(field.step);
        for value in below.into_iter().chain([highest + field.step]) {
            let mut config = good();
            (field.set)(&mut config, value);
            let violations = parse(&config).unwrap_err();
            assert_eq!(violations.len(), 1, "{path} = {value}: {violations:?}");
            assert_eq!(violations[0].field, path, "{path} = {value}");
            let told = &violations[0].description;
            assert!(told.contains(field.limit.words), "{path} = {value}: {told}");
        }
    }
}

#[test]
fn durations_that_are_none_are_refused() {
    for (seconds, nanos) in [(-1, 0), (0, -1), (1, 1_000_000_000), (i64::MAX, 0), (-1, 5)] {
        let mut config = good();
        connection(&mut config).test_interval = Some(prost_types::Duration { seconds, nanos });
        assert_eq!(wrong_fields(&config), [format!("{C}.test_interval")], "{seconds} {nanos}");
    }
    let mut config = good();
    connection(&mut config).retry_backoff_max = duration(SECOND - 1);
    assert_eq!(wrong_fields(&config), [format!("{C}.retry_backoff_max")], "below test_interval");
    let mut config = good();
    connection(&mut config).tcp_keepidle = duration(1_500_000_000);
    assert_eq!(wrong_fields(&config), [format!("{C}.tcp_keepidle")], "whole seconds");
}

fn keyed(config: &mut AgentConfig) {
    let connection = connection(config);
    connection.authentication_mode = AuthenticationMode::Encrypted.into();
    connection.key_id = "alice".into();
    connection.secret = "correct horse".into();
}

fn key(key_id: &str, secret: &str) -> Key {
    Key { key_id: key_id.into(), secret: secret.into(), ..Default::default() }
}

fn chains(config: &mut AgentConfig, keys: Vec<Key>) {
    server(config).key_chains = vec![KeyChain { name: "ops".into(), keys }];
}

#[test]
fn sizes_follow_from_what_a_probe_carries() {
    let size = |change: Change, connection: &str| {
        let mut config = good();
        change(&mut config);
        parse(&config).unwrap().connections[connection].sessions[0].data_size
    };
    assert_eq!(size(|_| {}, "c1"), 60);
    assert_eq!(size(keyed, "c1"), 112);
    assert_eq!(size(|_| {}, "c2"), 44 + 8);
    let authenticated: Change = |c| {
        stamp_connection(c).authentication_mode = AuthenticationMode::Authenticated.into();
        stamp_connection(c).secret = "s".into();
    };
    assert_eq!(size(authenticated, "c2"), 112 + 8 + 20, "and signed");
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_other_field_is_checked() {
    let cases: Vec<(&str, Change)> = vec![
        ("C.name", |c| connection(c).name = "a b".into()),
        ("C.name", |c| connection(c).name = "x".repeat(65)),
        ("C.description", |c| connection(c).description = "x".repeat(1025)),
        ("C.labels", |c| connection(c).labels = [("k".repeat(600), "v".repeat(600))].into()),
        ("C.control_type", |c| connection(c).control_type = 77),
        ("C.target_address", |c| connection(c).target_address = String::new()),
        ("C.target_address", |c| connection(c).target_address = "not a host!".into()),
        ("C.source_address", |c| connection(c).source_address = "host.example".into()),
        ("C.interface", |c| connection(c).interface = "x".repeat(16)),
        ("C.control_dscp", |c| connection(c).control_dscp = "64".into()),
        ("C.test_start", |c| connection(c).test_start = -1),
        ("C.test_sessions", |c| connection(c).test_sessions.clear()),
        ("C.test_sessions[1].name", |c| {
            let again = session(c).clone();
            connection(c).test_sessions.push(again);
        }),
        ("C.test_sessions[0].name", |c| session(c).name = String::new()),
        ("C.test_sessions[0].target_address", |c| session(c).target_address = "-".into()),
        ("C.test_sessions[0].source_address", |c| session(c).source_address = "1.2.3".into()),
        ("C.test_sessions[0].dscp_code_points", |c| session(c).dscp_code_points = "ef1".into()),
        ("C.test_sessions[0].schedule", |c| session(c).schedule = 9),
        ("C.test_sessions[0].store_probes", |c| session(c).store_probes = 9),
        ("C.destination_port", |c| {
            connection(c).control_type = ControlType::Light.into();
            connection(c).destination_port = Some(862);
        }),
        ("C.target_address", |c| connection(c).target_address = "fe80::1%eth0".into()),
        ("C.source_address", |c| connection(c).source_address = "fe80::1%eth0".into()),
        ("C.send_addresses", |c| connection(c).send_addresses = 9),
        ("C.send_addresses", |c| {
            connection(c).control_type = ControlType::Light.into();
            connection(c).send_addresses = SendAddresses::Always.into();
        }),
        ("C.authentication_mode", |c| connection(c).authentication_mode = 9),
        ("C.key_id", |c| {
            keyed(c);
            connection(c).key_id = String::new();
        }),
        ("C.key_id", |c| {
            keyed(c);
            connection(c).key_id = "k".repeat(81);
        }),
        ("C.key_id", |c| connection(c).key_id = "without a mode".into()),
        ("C.secret", |c| {
            keyed(c);
            connection(c).secret = String::new();
        }),
        ("C.secret", |c| {
            keyed(c);
            connection(c).secret = "x".repeat(257);
        }),
        ("C.secret", |c| {
            keyed(c);
            connection(c).secret = "two\nlines".into();
        }),
        ("C.secret", |c| connection(c).secret = "without a mode".into()),
        ("C.secret_digest", |c| {
            keyed(c);
            connection(c).secret = String::new();
            connection(c).secret_digest = "00".into();
        }),
        ("C.test_sessions[0].data_size", |c| {
            keyed(c);
            session(c).data_size = Some(47);
        }),
        ("C.test_sessions[0].stamp", |c| session(c).stamp = Some(Box::default())),
        ("C.test_sessions[0].timestamp_format", |c| session(c).timestamp_format = 9),
        ("C.authentication_mode", |c| {
            keyed(c);
            connection(c).key_id = String::new();
            connection(c).control_type = ControlType::Light.into();
        }),
        ("S.authentication_mode", |c| {
            stamp_connection(c).authentication_mode = AuthenticationMode::Encrypted.into();
            stamp_connection(c).secret = "s".into();
        }),
        ("S.secret", |c| {
            stamp_connection(c).authentication_mode = AuthenticationMode::Authenticated.into();
        }),
        ("S.secret", |c| stamp(c).sign_tlvs = true),
        ("S.test_sessions[0].stamp.class_of_service", |c| {
            stamp(c).class_of_service = "gold".into();
        }),
        ("S.test_sessions[0].stamp.access_report.access_id", |c| report(c).access_id = 0),
        ("S.test_sessions[0].stamp.access_report.return_code", |c| report(c).return_code = 3),
        ("S.test_sessions[0].data_size", |c| {
            stamp_connection(c).test_sessions[0].data_size = Some(51);
        }),
        ("S.test_sessions[0].data_size", |c| {
            // Three octets more than the least: too few for Extra Padding.
            stamp_connection(c).test_sessions[0].data_size = Some(44 + 8 + 3);
        }),
        ("S.test_sessions[0].reflected_octets", |c| {
            stamp_connection(c).test_sessions[0].reflected_octets = Some(4);
        }),
        ("server.authentication_modes[1]", |c| server(c).authentication_modes = vec![1, 1]),
        ("server.key_chains", |c| server(c).authentication_modes = vec![3]),
        ("server.key_chains[0].keys", |c| chains(c, Vec::new())),
        ("server.key_chains[0].keys[0].secret", |c| chains(c, vec![key("a", "")])),
        ("server.key_chains[0].keys[1].secret", |c| {
            chains(c, vec![key("a", "same"), key("a", "same")]);
        }),
        ("server.key_chains[0].keys[2].key_id", |c| {
            chains(c, vec![key("a", "1"), key("a", "2"), key("a", "3")]);
        }),
        ("server.key_derivation_count", |c| server(c).key_derivation_count = Some(3000)),
        ("server.timestamp_format", |c| server(c).timestamp_format = 9),
        ("server.stamp.listen", |c| stamp_server(c).listen.clear()),
        ("server.stamp.prefixes", |c| stamp_server(c).sessions.clear()),
        ("server.stamp.sessions[0].prefix", |c| stamp_server(c).sessions[0].prefix = "x".into()),
        ("server.stamp.keys", |c| {
            stamp_server(c).authentication_mode = AuthenticationMode::Authenticated.into();
        }),
        ("server.stamp.keys", |c| {
            stamp_server(c).keys = vec![key("a", "1"), key("b", "2"), key("c", "3")];
        }),
        ("server.stamp.authentication_mode", |c| {
            stamp_server(c).authentication_mode = AuthenticationMode::Encrypted.into();
        }),
        ("server.listen[0].address", |c| server(c).listen[0].address = "host".into()),
        ("server.client_list", |c| server(c).client_list.clear()),
        ("server.client_list[0].name", |c| server(c).client_list[0].name = "a b".into()),
        ("server.client_list[0].prefixes", |c| server(c).client_list[0].prefixes.clear()),
        ("server.client_list[0].prefixes[0]", |c| {
            server(c).client_list[0].prefixes = vec!["10.0.0.0/33".into()];
        }),
        ("server.light.prefixes", |c| server(c).light.as_mut().unwrap().prefixes.clear()),
        ("server.test_port.mode", |c| {
            server(c).test_port = Some(TestPort { mode: 9, ..Default::default() });
        }),
        ("server.test_port.range_min", |c| {
            let mode = TestPortMode::Range.into();
            let (range_min, range_max) = (Some(0), Some(5000));
            server(c).test_port = Some(TestPort { mode, shared_port: None, range_min, range_max });
        }),
        ("C.test_sessions[0].percentiles[0]", |c| session(c).percentiles = vec![0.0]),
        ("C.retention_age", |c| {
            connection(c).retention_age = duration(7 * 86_400_000_000_001);
        }),
        ("C.test_sessions[0].percentiles[1]", |c| session(c).percentiles = vec![50.0, 100.1]),
        ("C.test_sessions[0].percentiles[1]", |c| session(c).percentiles = vec![50.0, 50.0]),
        ("C.test_sessions[0].percentiles[0]", |c| session(c).percentiles = vec![f64::NAN]),
        ("C.test_sessions[0].percentiles", |c| {
            session(c).percentiles = (1..12).map(f64::from).collect();
        }),
        ("C.test_sessions[0].availability.consecutive_high_loss_intervals", |c| {
            *rule(c) = AvailabilityRule {
                consecutive_intervals: Some(5),
                consecutive_high_loss_intervals: Some(5),
                ..Default::default()
            };
        }),
        ("export.prometheus.address", |c| {
            c.export.as_mut().unwrap().prometheus.as_mut().unwrap().address = "here".into();
        }),
        ("export.otlp[0].name", |c| otlp(c).name = "x".repeat(51)),
        ("export.otlp[0].name", |c| otlp(c).name = "prometheus".into()),
        ("export.otlp[0].endpoint", |c| otlp(c).endpoint = "collector:4317".into()),
        ("export.otlp[0].endpoint", |c| otlp(c).endpoint = "grpc://collector:4317".into()),
        ("export.otlp[0].endpoint", |c| otlp(c).endpoint = "http://collector".into()),
        ("export.otlp[0].endpoint", |c| otlp(c).endpoint = "http://a b:1".into()),
        ("export.otlp[0].endpoint", |c| otlp(c).endpoint = "http://[\n]:4317".into()),
        ("export.otlp[0].endpoint", |c| otlp(c).endpoint = "http://[::1%lo]:4317".into()),
        ("export.otlp[0].endpoint", |c| otlp(c).endpoint = "http://a..b:4317".into()),
        ("export.otlp[0].endpoint", |c| otlp(c).endpoint = "http://-a:4317".into()),
        ("export.otlp[0].endpoint", |c| otlp(c).endpoint = "http://a:4317\r\nHost: b".into()),
        ("export.nats[0].servers[0]", |c| nats(c).servers[0] = "nats://a\r\nPUB x:4222".into()),
        ("export.otlp[0].filter.kinds[0]", |c| {
            otlp(c).filter = Some(RecordFilter { kinds: vec![0], ..Default::default() });
        }),
        ("export.otlp[0].filter.kinds[0]", |c| {
            otlp(c).filter = Some(RecordFilter { kinds: vec![77], ..Default::default() });
        }),
        ("export.otlp[0].ca_certificates", |c| otlp(c).ca_certificates = "none".into()),
        ("export.otlp[0].ca_certificates", |c| otlp(c).ca_certificates = "x".repeat(65_537)),
        ("export.otlp[0].temporality", |c| otlp(c).temporality = 3),
        ("export.otlp[0].secret", |c| otlp(c).secret = "two\nlines".into()),
        ("export.otlp[0].secret_digest", |c| otlp(c).secret_digest = "00".into()),
        ("export.nats[0].name", |c| nats(c).name = "o1".into()),
        ("export.nats[0].servers", |c| nats(c).servers.clear()),
        ("export.nats[0].servers[0]", |c| nats(c).servers[0] = "http://host:4222".into()),
        ("export.nats[0].subject_prefix", |c| nats(c).subject_prefix = "a..b".into()),
        ("export.nats[0].subject_prefix", |c| nats(c).subject_prefix = "a.>".into()),
        ("export.nats[0].stream", |c| nats(c).stream = "a.b".into()),
        ("export.nats[0].format", |c| nats(c).format = 9),
        ("export.nats[0].user", |c| nats(c).user = "u".repeat(257)),
        ("export.nats[0].secret", |c| nats(c).secret = "x".repeat(4097)),
        ("server.test_port", |c| {
            let mode = TestPortMode::Range.into();
            let (range_min, range_max) = (Some(5000), Some(4999));
            server(c).test_port = Some(TestPort { mode, shared_port: None, range_min, range_max });
        }),
    ];
    for (path, change) in cases {
        let path = path.replacen('C', C, usize::from(path.starts_with("C.")));
        let second = "client.control_connections[1]";
        let path = path.replacen('S', second, usize::from(path.starts_with("S.")));
        let mut config = good();
        change(&mut config);
        assert_eq!(
            wrong_fields(&config),
            std::slice::from_ref(&path),
            "{path}: {:?}",
            parse(&config)
        );
    }
}

#[test]
fn counts_of_things_end_where_they_are_said_to_end() {
    let mut config = good();
    let sessions = |count: usize| -> Vec<TestSession> {
        (0..count).map(|i| TestSession { name: format!("s{i}"), ..Default::default() }).collect()
    };
    connection(&mut config).test_sessions = sessions(limits::MAXIMUM_SESSIONS_PER_CONNECTION);
    parse(&config).unwrap();
    connection(&mut config).test_sessions = sessions(limits::MAXIMUM_SESSIONS_PER_CONNECTION + 1);
    assert_eq!(wrong_fields(&config), [format!("{C}.test_sessions")]);

    let mut config = good();
    let exporters = |count: usize| -> Vec<OtlpExport> {
        let one = otlp(&mut good()).clone();
        // One is the other kind.
        (1..count).map(|i| OtlpExport { name: format!("e{i}"), ..one.clone() }).collect()
    };
    config.export.as_mut().unwrap().otlp = exporters(limits::MAXIMUM_EXPORTERS);
    parse(&config).unwrap();
    config.export.as_mut().unwrap().otlp = exporters(limits::MAXIMUM_EXPORTERS + 1);
    assert_eq!(wrong_fields(&config), ["export"]);

    let mut config = good();
    let connections = |count: usize| -> Vec<ControlConnection> {
        let one = connection(&mut good()).clone();
        (0..count).map(|i| ControlConnection { name: format!("c{i}"), ..one.clone() }).collect()
    };
    let client = |count| Some(ClientConfig { control_connections: connections(count) });
    config.client = client(limits::MAXIMUM_CONNECTIONS);
    parse(&config).unwrap();
    config.client = client(limits::MAXIMUM_CONNECTIONS + 1);
    assert_eq!(wrong_fields(&config), ["client.control_connections"]);
}

fn pool() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTORS).unwrap()
}

fn message(pool: &DescriptorPool, name: &str) -> MessageDescriptor {
    pool.get_message_by_name(&format!("twamp.agent.v1.{name}")).unwrap()
}

/// The comment above an element of the `.proto`.
fn comment(file: &prost_reflect::FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref().unwrap();
    let location = info.location.iter().find(|location| location.path == path);
    let text = location.map(|location| location.leading_comments().trim().to_owned());
    text.unwrap_or_default().lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

fn field_comment(field: &FieldDescriptor) -> String {
    comment(&field.parent_message().parent_file(), field.path())
}

#[test]
fn the_proto_says_what_the_model_does() {
    let pool = pool();
    for field in numeric_fields() {
        let descriptor = message(&pool, field.message).get_field_by_name(field.field).unwrap();
        let comment = field_comment(&descriptor);
        let (name, words) = (field.field, field.limit.words);
        assert!(comment.contains(words), "{}.{name}: {words:?} in {comment:?}", field.message);
        let default = field.limit.default;
        let shown = |unit: u64, name: &str| -> Option<String> {
            default.is_multiple_of(unit).then(|| format!("efault {}{name}", default / unit))
        };
        // Some have a default in words: of the connection, or any free one.
        let in_words = [
            "C.connect_timeout",
            "C.test_sessions[0].destination_port",
            "C.test_sessions[0].source_port",
            "client.control_connections[1].test_sessions[0].stamp.ssid",
            "server.stamp.sessions[0].port",
            "server.stamp.sessions[0].ssid",
            "C.test_sessions[0].availability.consecutive_high_loss_intervals",
            "C.retention_age",
            "storage.maximum_disk_bytes",
        ];
        if in_words.contains(&field.path) {
            assert!(comment.contains("efault"), "{name}");
            continue;
        }
        let candidates = [
            shown(1, ""),
            shown(1_000_000, " ms"),
            shown(SECOND, " s"),
            shown(60 * SECOND, " min"),
            shown(3600 * SECOND, " h"),
            shown(86_400 * SECOND, " days"),
            (default == 1 << 30).then(|| "efault 1 GiB (1073741824)".to_owned()),
        ];
        let comment = comment.replace("Default: ", "Default ");
        let told = candidates.iter().flatten().any(|candidate| comment.contains(candidate));
        assert!(told, "{}.{name}: default {default} in {comment:?}", field.message);
    }
}

#[test]
fn the_disk_quota_follows_the_retention() {
    use twamp_agent::model::limits::default_disk_octets;
    let parsed = |bytes| {
        let storage = StorageConfig { retention_bytes: bytes, ..StorageConfig::default() };
        let config = AgentConfig { storage: Some(storage), ..AgentConfig::default() };
        parse(&config).unwrap().storage.maximum_disk_bytes
    };
    assert_eq!(parsed(None), (3 << 30) + (256 << 20));
    assert_eq!(parsed(Some(1 << 20)), default_disk_octets(1 << 20));
    let text = field_comment(
        &message(&pool(), "StorageConfig").get_field_by_name("maximum_disk_bytes").unwrap(),
    );
    assert!(text.contains("Default three times retention_bytes plus 256 MiB"), "{text}");
}

/// Messages of the configuration, each before those that it holds.
fn messages(pool: &DescriptorPool) -> Vec<MessageDescriptor> {
    let mut found = vec![message(pool, "AgentConfig")];
    let mut next = 0;
    while let Some(message) = found.get(next).cloned() {
        for field in message.fields() {
            if let Kind::Message(inner) = field.kind()
                && inner.package_name() == "twamp.agent.v1"
                && !field.is_map()
                && !found.contains(&inner)
            {
                found.push(inner);
            }
        }
        next += 1;
    }
    found
}

fn type_name(field: &FieldDescriptor) -> String {
    let of = |kind: Kind| match kind {
        Kind::Message(message) if message.full_name() == "google.protobuf.Duration" => {
            "duration".to_owned()
        }
        Kind::Message(message) => {
            format!("[{0}](#{1})", message.name(), message.name().to_lowercase())
        }
        Kind::Enum(values) => {
            let unspecified = values.default_value();
            let prefix = unspecified.name().trim_end_matches("UNSPECIFIED").to_owned();
            let names = values.values().filter(|value| value.number() != 0);
            let names: Vec<String> =
                names.map(|value| format!("`{}`", &value.name()[prefix.len()..])).collect();
            names.join(", ")
        }
        Kind::String => "text".into(),
        Kind::Bool => "true or false".into(),
        _ => "number".into(),
    };
    if field.is_map() {
        "map of text to text".into()
    } else if field.is_list() {
        format!("list of {}", of(field.kind()))
    } else {
        of(field.kind())
    }
}

#[test]
fn the_reference_is_made_from_the_proto() {
    let mut text = String::from(
        "# Configuration\n\n\
         One document, [AgentConfig](#agentconfig), in YAML or JSON: the JSON mapping of proto3\n\
         with the names below. `twampctl apply -f FILE` makes it the configuration of an agent,\n\
         `twamp-agent check FILE` checks it without one. Durations have units\n\
         (`20ms`, `1.5s`, `1m30s`). Values of enumerations may be written short (`LIGHT`) or in full\n\
         (`CONTROL_TYPE_LIGHT`). What is left out has its default.\n\n\
         This file is made from the comments in `proto/twamp/agent/v1/config.proto` by\n\
         `UPDATE_DOCS=1 cargo test --test configuration`; a test keeps the two equal, and another\n\
         holds ranges and defaults against the program.\n",
    );
    for message in messages(&pool()) {
        let about = comment(&message.parent_file(), message.path());
        write!(text, "\n## {}\n\n{about}\n\n", message.name()).unwrap();
        text += "| field | type | |\n|---|---|---|\n";
        for field in message.fields() {
            let about = field_comment(&field).replace('|', "\\|");
            assert!(!about.is_empty(), "{} has no comment", field.full_name());
            writeln!(text, "| `{}` | {} | {about} |", field.name(), type_name(&field)).unwrap();
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        stored == text,
        "docs/configuration.md is old: UPDATE_DOCS=1 cargo test --test configuration"
    );
}

#[test]
fn every_field_and_method_of_the_api_has_a_comment() {
    let pool = pool();
    let ours = |package: &str| package == "twamp.agent.v1";
    let mut missing = Vec::new();
    for message in pool.all_messages().filter(|m| ours(m.package_name())) {
        if message.is_map_entry() {
            continue;
        }
        for field in message.fields() {
            if field_comment(&field).is_empty() {
                missing.push(field.full_name().to_owned());
            }
        }
    }
    for service in pool.services().filter(|s| ours(s.package_name())) {
        for method in service.methods() {
            if comment(&service.parent_file(), method.path()).is_empty() {
                missing.push(method.full_name().to_owned());
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn settings_without_effect_and_secrets_in_clear_are_warned_of() {
    let mut document = good();
    let warned = |document: &AgentConfig| {
        let config = parse(document).unwrap();
        warnings(&config, u64::MAX).join("\n")
    };
    otlp(&mut document).secret = "token".into();
    otlp(&mut document).endpoint = "http://collector.example:4317".into();
    connection(&mut document).history_size = Some(7);
    connection(&mut document).persistent_results = Some(true);
    let text = warned(&document);
    assert!(text.contains("the secret is sent unencrypted to http://collector.example"), "{text}");
    assert!(text.contains("history_size has no effect"), "{text}");
    otlp(&mut document).endpoint = "https://collector.example:4317".into();
    connection(&mut document).persistent_results = Some(false);
    let text = warned(&document);
    assert!(!text.contains("http://collector") && !text.contains("history_size"), "{text}");
}
