//! Vectors computed or recorded by other implementations: each reference vector is checked
//! according to its group.

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

/// Checks one vector according to its group; false if this suite does not check the group.
fn check(vector: &Value) -> bool {
    let (name, input, output) = (vector["name"].as_str().unwrap(), &vector["in"], &vector["out"]);
    match name.split('/').next().unwrap() {
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
        // TLV and metric vectors are checked by their own modules.
        "stamp" if name.starts_with("stamp/tlv/") => {}
        "metrics" => {}
        "stamp" => stamp::check(name, input, output),
        _ => return false,
    }
    true
}

fn check_all(prefix: &str, count: usize) {
    let of_group =
        all().iter().filter(|vector| vector["name"].as_str().unwrap().starts_with(prefix));
    assert_eq!(of_group.map(|vector| assert!(check(vector))).count(), count, "{prefix}");
}

/// All 88 vectors: one of an unchecked group fails here.
#[test]
fn every_vector_is_checked() {
    let unchecked: Vec<&Value> = all().iter().filter(|vector| !check(vector)).collect();
    assert!(unchecked.is_empty(), "nobody checks {unchecked:?}");
    assert_eq!(all().len(), 88);
}

#[test]
fn conformance_015_tokens() {
    check_all("token/", 2);
    check_all("pbkdf2/", 6);
}

#[test]
fn conformance_026_027_028_029_the_encrypted_conversation() {
    check_all("control-conversation/", 1);
}

#[test]
fn conformance_026_027_028_029_recorded_conversations() {
    check_all("captured-perfsonar/", 6);
}

#[test]
fn conformance_069_071_072_073_085_089_packets() {
    check_all("test/", 17);
}

#[test]
fn conformance_070_keys_of_test_packets() {
    check_all("test-keys", 2);
}

#[test]
fn conformance_074_077_092_packets_to_be_discarded() {
    check_all("neg/", 4);
}

#[test]
fn conformance_114_115_121_stamp_packets() {
    check_all("stamp/", 9);
}
