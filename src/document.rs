//! YAML and JSON form of the messages of the API: the JSON mapping of proto3 with the names of the
//! `.proto`. In YAML and JSON alike, values of enums may be written without their prefix.

mod differences;

use std::{fmt::Write, sync::OnceLock};

use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions,
};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

pub use differences::differences;

use crate::proto::{self, DESCRIPTORS};

/// A text that cannot be read as the message.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct DocumentError(String);

impl DocumentError {
    /// Returns the error of an empty document.
    pub(crate) fn empty() -> Self {
        Self("there is nothing in it; to remove everything say {}".into())
    }
}

/// Reads a configuration in YAML or JSON.
pub fn read_config(text: &str) -> Result<proto::AgentConfig, DocumentError> {
    let deserializer = serde_yaml_ng::Deserializer::from_str(text);
    // An empty text is an empty document.
    let value: Option<Value> =
        serde_path_to_error::deserialize(deserializer).map_err(|error| at_path(&error))?;
    let mut value = value.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let descriptor = descriptor("AgentConfig")?;
    complete_enums(&mut value, &descriptor);
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(&value, &mut track);
    let message = DynamicMessage::deserialize(descriptor, deserializer);
    let message = message.map_err(|error| {
        DocumentError(match track.path().to_string().as_str() {
            "." => error.to_string(),
            path => format!("{path}: {}", without_secret(path, error.to_string())),
        })
    })?;
    message.transcode_to().map_err(|error| DocumentError(error.to_string()))
}

fn at_path<E: std::error::Error>(error: &serde_path_to_error::Error<E>) -> DocumentError {
    match error.path().to_string().as_str() {
        "." | "?" => DocumentError(error.inner().to_string()),
        path => {
            let error = without_secret(path, error.inner().to_string());
            DocumentError(format!("{path}: {error}"))
        }
    }
}

/// Removes the value from an error where it may be a misplaced secret.
fn without_secret(path: &str, error: String) -> String {
    let may_be = descriptor("AgentConfig").map_or(true, |root| may_have_secret(path, root));
    let Some((start, found)) = error.split_once(": ").filter(|_| may_be) else { return error };
    let Some((found, expected)) = found.rsplit_once(", expected ") else { return error };
    let kind = found.split(' ').next().unwrap_or_default();
    format!("{start}: {kind}, expected {expected}")
}

/// Returns whether a path leads to a secret, to a message with secrets or to an unknown field.
fn may_have_secret(path: &str, root: MessageDescriptor) -> bool {
    let mut kind = Kind::Message(root);
    let names = path.split('.').map(|name| name.split('[').next().unwrap_or_default());
    for name in names.filter(|name| !name.is_empty()) {
        let Kind::Message(message) = &kind else { return false };
        let Some(field) = message.get_field_by_name(name) else { return true };
        if is_secret(&field) {
            return true;
        }
        kind = field.kind();
    }
    matches!(kind, Kind::Message(message) if has_secret(&message))
}

fn has_secret(message: &MessageDescriptor) -> bool {
    message.fields().any(|field| {
        let part = field.kind().as_message().cloned();
        is_secret(&field) || part.is_some_and(|part| has_secret(&part))
    })
}

fn is_secret(field: &FieldDescriptor) -> bool {
    let option = field.options();
    option.get_field_by_name("debug_redact").is_some_and(|value| value.as_bool() == Some(true))
}

/// Returns bytes in hexadecimal, lower case.
pub fn hexadecimal(octets: &[u8]) -> String {
    octets.iter().fold(String::with_capacity(2 * octets.len()), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    })
}

/// Selection of the fields to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fields {
    /// All fields, with their defaults.
    All,
    /// Only fields that are set.
    Given,
}

/// Converts a message to a JSON value; `name` is that of the message in the `.proto`.
pub fn to_value(
    message: &impl Message,
    name: &str,
    fields: Fields,
) -> Result<Value, DocumentError> {
    let mut dynamic = DynamicMessage::new(descriptor(name)?);
    let failed = |error: &dyn std::error::Error| DocumentError(error.to_string());
    dynamic.transcode_from(message).map_err(|error| failed(&error))?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(fields == Fields::Given);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| failed(&error))
}

/// Converts a message to YAML.
pub fn to_yaml(value: &impl Serialize) -> Result<String, DocumentError> {
    serde_yaml_ng::to_string(value).map_err(|error| DocumentError(error.to_string()))
}

fn descriptor(name: &str) -> Result<MessageDescriptor, DocumentError> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).ok())
        .as_ref()
        .and_then(|pool| pool.get_message_by_name(&format!("twamp.agent.v1.{name}")))
        .ok_or_else(|| DocumentError(format!("no message is named {name}")))
}

/// Writes `LIGHT` as `CONTROL_TYPE_LIGHT`, where the first is no value and the second is one.
fn complete_enums(value: &mut Value, descriptor: &MessageDescriptor) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        let field =
            descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name));
        let Some(field) = field else { continue };
        let values: &mut [Value] = match value {
            Value::Array(values) if field.is_list() => values,
            single @ (Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_)) => std::slice::from_mut(single),
        };
        let kind = field.kind();
        if let Kind::Message(descriptor) = &kind
            && !field.is_map()
        {
            values.iter_mut().for_each(|value| complete_enums(value, descriptor));
        }
        if let Kind::Enum(descriptor) = &kind {
            let unspecified = descriptor.default_value();
            let prefix = unspecified.name().trim_end_matches("UNSPECIFIED");
            for value in values {
                if let Value::String(text) = value
                    && descriptor.get_value_by_name(&format!("{prefix}{text}")).is_some()
                {
                    text.insert_str(0, prefix);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
server:
  listen: [{address: 127.0.0.1, port: 18862}]
  client_list: [{name: local, prefixes: ["127.0.0.0/8", "::1/128"]}]
client:
  control_connections:
    - name: c1
      control_type: MANAGED
      test_start: TEST_START_MANUAL
      target_address: 127.0.0.1
      destination_port: 18862
      test_interval: 1s
      test_sessions: [{name: s1, probe_count: 10, probe_interval: 0.05s, dscp_code_points: ef}]
"#;

    #[test]
    fn reads_yaml_with_short_and_long_enums() {
        let config = read_config(EXAMPLE).unwrap();
        let connection = &config.client.as_ref().unwrap().control_connections[0];
        assert_eq!(connection.control_type(), proto::ControlType::Managed);
        assert_eq!(connection.test_start(), proto::TestStart::Manual);
        assert_eq!(connection.test_sessions[0].probe_interval.unwrap().nanos, 50_000_000);
        crate::model::parse(&config).unwrap();
    }

    #[test]
    fn what_is_written_reads_back() {
        let config = read_config(EXAMPLE).unwrap();
        let value = to_value(&config, "AgentConfig", Fields::Given).unwrap();
        assert_eq!(read_config(&to_yaml(&value).unwrap()).unwrap(), config);
        assert_eq!(read_config(&value.to_string()).unwrap(), config);
    }

    #[test]
    fn errors_say_where_and_what() {
        let error = read_config("client:\n  control_conections: []\n").unwrap_err().to_string();
        assert!(error.contains("client") && error.contains("control_conections"), "{error}");
        let error = read_config("client: {control_connections: [{name: 5}]}").unwrap_err();
        assert!(error.to_string().contains("client.control_connections[0].name"), "{error}");
        let error = read_config("client: [").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        let error = read_config("storage: {retention_age: 5 weeks}").unwrap_err().to_string();
        assert!(error.contains("storage.retention_age"), "{error}");
        assert_eq!(read_config("").unwrap(), proto::AgentConfig::default());
    }

    #[test]
    fn errors_do_not_tell_secrets() {
        for (text, kind) in [
            ("server: {key_chains: [{name: a, keys: ['4711, expected']}]}", "string"),
            ("server: {key_chains: [{name: a, keys: [{key_id: a, secret: 4711}]}]}", "integer"),
            ("server: {key_chains: [{name: a, keys: [{key_id: a, secret: [4711]}]}]}", "sequence"),
            ("client: {control_connections: [{name: a, secret: 4711}]}", "integer"),
            ("server: {key_chains: '4711'}", "string"),
        ] {
            let error = read_config(text).unwrap_err().to_string();
            assert!(!error.contains("4711"), "{error}");
            assert!(error.contains(kind), "{error}");
        }
    }
}
