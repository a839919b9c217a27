//! Each field of the configuration has a known effect where it changes while its part runs. The
//! fields are read from the descriptors, so that one that is added without an effect is missed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::collections::BTreeSet;

use prost_reflect::DescriptorPool;
use serde_json::{Value, json};
use twamp_agent::{
    document::read_config,
    model::{SessionControl, changes, parse},
    proto::{Change, ChangeEffect, DESCRIPTORS},
};

use ChangeEffect::{CloseConnections, Listen, Live, Reconnect, Renegotiate, SessionRestart, Stop};

const CONNECTION: &str = "/client/control_connections/0";
const SESSION: &str = "/client/control_connections/0/test_sessions/0";
const SERVER: &str = "/server";

fn base() -> Value {
    json!({
        "client": {"control_connections": [{
            "name": "c",
            "control_type": "MANAGED",
            "target_address": "192.0.2.1",
            "authentication_mode": "ENCRYPTED",
            "key_id": "k",
            "secret": "secret",
            "test_sessions": [{"name": "s", "data_size": 200}],
        }]},
        "server": {
            "listen": [{"address": "192.0.2.1", "port": 862}],
            "client_list": [{"name": "l", "prefixes": ["192.0.2.0/24"]}],
            "authentication_modes": ["NONE", "ENCRYPTED"],
            "key_chains": [{"name": "a", "keys": [{"key_id": "k", "secret": "secret"}]}],
        },
    })
}

/// A connection without negotiation: it alone has the fields of STAMP.
fn stamp_base() -> Value {
    let mut document = base();
    document["client"]["control_connections"][0] = json!({
        "name": "c",
        "control_type": "STAMP",
        "target_address": "192.0.2.1",
        "test_sessions": [{"name": "s", "data_size": 200}],
    });
    document
}

/// Field, another value for it and the effect of that.
type Row = (&'static str, Value, ChangeEffect);

fn connection_rows() -> Vec<Row> {
    vec![
        ("description", json!("new"), Live),
        ("labels", json!({"site": "a"}), Live),
        ("inactive", json!(true), Stop),
        ("target_address", json!("192.0.2.2"), Reconnect),
        ("destination_port", json!(10_862), Reconnect),
        ("source_address", json!("192.0.2.3"), Reconnect),
        ("interface", json!("eth1"), Reconnect),
        ("control_dscp", json!("cs6"), Live),
        ("test_count", json!(5), Live),
        ("test_interval", json!("7s"), Live),
        ("test_start", json!("TEST_START_MANUAL"), Live),
        ("tcp_keepidle", json!("7s"), Live),
        ("tcp_keepintvl", json!("7s"), Live),
        ("tcp_keepcnt", json!(7), Live),
        ("connect_timeout", json!("7s"), Live),
        ("test_sessions", json!([{"name": "s", "data_size": 200}, {"name": "t"}]), Renegotiate),
        ("authentication_mode", json!("AUTHENTICATED"), Reconnect),
        ("key_id", json!("other"), Reconnect),
        ("secret", json!("other"), Reconnect),
        ("maximum_key_derivation_count", json!(4096), Live),
        ("extensions", json!({"ptp_timestamps": false}), Reconnect),
        ("retry_backoff_max", json!("60s"), Live),
        ("traps", json!({"test_iteration_done": true}), Live),
        ("moving_average_size", json!(3), Live),
        ("persistent_results", json!(false), Live),
        ("history_size", json!(3), Live),
        ("retention_age", json!("3600s"), Live),
        ("strict_error_estimate", json!(true), Live),
        ("send_addresses", json!("ALWAYS"), Reconnect),
    ]
}

fn session_rows() -> Vec<Row> {
    vec![
        ("name", json!("t"), Renegotiate),
        // It is the only session of its connection.
        ("inactive", json!(true), Stop),
        ("labels", json!({"site": "a"}), Live),
        ("target_address", json!("192.0.2.4"), Renegotiate),
        ("destination_port", json!(20_000), Renegotiate),
        ("source_address", json!("192.0.2.3"), Renegotiate),
        ("source_port", json!(20_001), Renegotiate),
        ("data_size", json!(201), Renegotiate),
        ("data_fill_with_zeros", json!(true), Live),
        ("dscp_code_points", json!("ef"), Renegotiate),
        ("ttl", json!(64), Live),
        ("probe_count", json!(7), Live),
        ("probe_interval", json!("0.5s"), Live),
        ("schedule", json!("POISSON"), Live),
        ("loss_timeout", json!("0.5s"), Live),
        ("store_probes", json!("NONE"), Live),
        ("timestamp_format", json!("PTP"), Renegotiate),
        // Reflected octets are a mode of the control connection.
        ("reflected_octets", json!(8), Reconnect),
        ("thresholds", json!({"total_loss": 3}), Live),
        ("traps", json!({"test_completion": true}), Live),
        ("percentiles", json!([50, 99]), Live),
        ("availability", json!({"loss_percent": 20}), Live),
        ("burst_size", json!(3), Live),
    ]
}

fn server_rows() -> Vec<Row> {
    vec![
        ("inactive", json!(true), Stop),
        ("listen", json!([{"address": "192.0.2.1", "port": 863}]), Listen),
        ("client_list", json!([{"name": "l", "prefixes": ["192.0.2.0/25"]}]), CloseConnections),
        ("server_inactivity_timeout", json!("7s"), Live),
        ("max_connection_duration", json!("7s"), CloseConnections),
        ("maximum_connections", json!(7), Live),
        ("maximum_connections_per_client", json!(7), Live),
        ("maximum_sessions", json!(7), Live),
        ("maximum_sessions_per_connection", json!(7), Live),
        ("tcp_keepidle", json!("7s"), Live),
        ("tcp_keepintvl", json!("7s"), Live),
        ("tcp_keepcnt", json!(7), Live),
        ("test_port", json!({"mode": "SHARED", "shared_port": 20_000}), Listen),
        ("light", json!({"listen": [{"address": "192.0.2.1"}], "prefixes": ["::/0"]}), Live),
        ("refwait", json!("7s"), Live),
        ("authentication_modes", json!(["ENCRYPTED"]), Live),
        (
            "key_chains",
            json!([{"name": "a", "keys": [{"key_id": "k", "secret": "new"}]}]),
            CloseConnections,
        ),
        ("key_derivation_count", json!(4096), Live),
        ("extensions", json!({"ptp_timestamps": false}), Live),
        ("timestamp_format", json!("PTP"), Live),
        (
            "stamp",
            json!({"listen": [{"address": "192.0.2.1", "port": 20_000}], "prefixes": ["::/0"]}),
            Listen,
        ),
        ("maximum_packets_per_second_per_sender", json!(7), Live),
        ("strict_error_estimate", json!(true), Live),
        ("refuse_silently", json!(true), Live),
    ]
}

fn effect(old: &Value, new: &Value, control: SessionControl) -> Vec<ChangeEffect> {
    let config = |document: &Value| {
        let document = read_config(&document.to_string()).unwrap();
        parse(&document).unwrap_or_else(|violations| panic!("{violations:?}"))
    };
    let changes = changes(&config(old), &config(new), &|_| control);
    changes.iter().map(Change::effect).collect()
}

fn with(base: &Value, part: &str, field: &str, value: &Value) -> Value {
    let mut changed = base.clone();
    changed.pointer_mut(part).unwrap()[field] = value.clone();
    changed
}

fn assert_effects(message: &str, part: &str, rows: &[Row], elsewhere: &[&str]) {
    for (field, value, expected) in rows {
        let new = with(&base(), part, field, value);
        assert_ne!(new, base(), "{message}.{field}: not another value");
        let effects = effect(&base(), &new, SessionControl::AllOrNothing);
        assert_eq!(effects, [*expected], "{message}.{field}");
    }
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let message = pool.get_message_by_name(&format!("twamp.agent.v1.{message}")).unwrap();
    let fields: BTreeSet<String> = message.fields().map(|field| field.name().to_owned()).collect();
    let rows = rows.iter().map(|(field, ..)| *field);
    let known: BTreeSet<String> =
        rows.chain(elsewhere.iter().copied()).map(ToOwned::to_owned).collect();
    assert_eq!(fields, known);
}

#[test]
fn each_field_of_a_control_connection_has_an_effect() {
    // Another name is another connection, another type is below, a digest is never compared.
    let elsewhere = ["name", "control_type", "secret_digest"];
    assert_effects("ControlConnection", CONNECTION, &connection_rows(), &elsewhere);
    let renamed = with(&base(), CONNECTION, "name", &json!("d"));
    let effects = effect(&base(), &renamed, SessionControl::AllOrNothing);
    assert_eq!(effects, [ChangeEffect::Start, Stop]);
    let light = with(&stamp_base(), CONNECTION, "control_type", &json!("LIGHT"));
    assert_eq!(effect(&stamp_base(), &light, SessionControl::Individual), [Reconnect]);
}

#[test]
fn each_field_of_a_test_session_has_an_effect() {
    assert_effects("TestSession", SESSION, &session_rows(), &["stamp"]);
    let stamp = with(&stamp_base(), SESSION, "stamp", &json!({"location": true}));
    assert_eq!(effect(&stamp_base(), &stamp, SessionControl::Individual), [SessionRestart]);
}

#[test]
fn each_field_of_the_server_has_an_effect() {
    assert_effects("ServerConfig", SERVER, &server_rows(), &[]);
}

#[test]
fn sessions_are_renegotiated_alone_where_the_server_can() {
    for (field, value, expected) in session_rows() {
        let new = with(&base(), SESSION, field, &value);
        let expected = if expected == Renegotiate { SessionRestart } else { expected };
        let effects = effect(&base(), &new, SessionControl::Individual);
        assert_eq!(effects, [expected], "{field}");
    }
}
