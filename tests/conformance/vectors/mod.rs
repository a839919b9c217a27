//! Octets that others computed or recorded: every one of the reference vectors is checked, by the
//! group that its name says.

mod control;
mod packets;
mod recorded;
mod stamp;
mod times;

use std::sync::OnceLock;

use serde_json::Value;
use twamp_agent::wire::crypto::{SessionKeys, TestKeys};

fn all() -> &'static [Value] {
    static FILE: OnceLock<Value> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        serde_json::from_str(include_str!("../../vectors/vectors.json")).expect("JSON")
    });
    file["vectors"].as_array().expect("a list")
}

pub(crate) fn vector(name: &str) -> &'static Value {
    all().iter().find(|vector| vector["name"] == name).unwrap_or_else(|| panic!("no vector {name}"))
}

pub(crate) fn octets(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().expect("a string")).expect("hexadecimal")
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    octets(value).try_into().expect("the right length")
}

fn number(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().expect("a string"), 16).expect("hexadecimal")
}

fn integer(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

fn session_keys(of: &Value) -> SessionKeys {
    SessionKeys::new(array(&of["aes_session_key"]), array(&of["hmac_session_key"]))
}

fn test_keys(of: &Value) -> TestKeys {
    TestKeys::new(&array(&of["test_aes_key"]), &array(&of["test_hmac_key"]))
}

/// All 88, none left out: a vector of a group that nobody checks fails here.
#[test]
fn every_vector_is_checked() {
    let mut checked = 0;
    for vector in all() {
        let (name, input, output) =
            (vector["name"].as_str().unwrap(), &vector["in"], &vector["out"]);
        let group = name.split('/').next().unwrap();
        match group {
            "pbkdf2" | "token" | "test-keys" => control::keys(name, input, output),
            "server-greeting" | "setup-response" | "server-start" | "control-open"
            | "reflect-octets" => control::open(name, input, output),
            "control-conversation" => control::conversation(input, output),
            "indiv" => control::individual(name, input, output),
            "ntp" | "ntp-diff" | "error-estimate" | "error-estimate-from" => {
                times::check(name, input, output);
            }
            "test" => packets::check(name, input, output),
            "neg" => packets::discarded(name, input, output),
            "captured-perfsonar" => recorded::check(name, input, output),
            // Those of the TLVs and of the metrics are checked where TLVs and metrics are.
            "stamp" if name.starts_with("stamp/tlv/") => {}
            "metrics" => {}
            "stamp" => stamp::check(name, input, output),
            _ => panic!("nobody checks {name}"),
        }
        checked += 1;
    }
    assert_eq!(checked, 88);
}
