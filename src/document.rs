//! YAML and JSON form of the messages of the API: the JSON mapping of proto3 with the names of the
//! `.proto`. Values of enums may be written without their prefix, durations in any unit.

mod check;
mod differences;
mod duration;
mod tree;

use std::{fmt::Write, sync::OnceLock};

use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, MessageDescriptor, SerializeOptions,
};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

pub use check::similar;
pub use differences::differences;
pub use duration::{DURATION_FORM, parse_duration};

use crate::proto::{self, DESCRIPTORS};
use check::Problems;

/// Bytes of text that are read once more, in total, to find the positions of problems.
const POSITION_BYTES: usize = 64 << 20;

/// A text that cannot be read as the message.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct DocumentError(String);

impl DocumentError {
    /// Returns the error of an empty document.
    pub(crate) fn empty() -> Self {
        Self("the document is empty: to remove everything, write {}".into())
    }

    /// Returns all problems, with their positions in the text.
    fn from_problems(problems: Problems, text: &str) -> Self {
        let located = (POSITION_BYTES / text.len().max(1)).max(1);
        let left_out = problems.count - problems.kept.len();
        let mut found: Vec<_> = problems
            .kept
            .into_iter()
            .enumerate()
            .map(|(index, problem)| {
                let is_located = index < located;
                let position = is_located.then(|| tree::position(text, &problem.path)).flatten();
                (position.unwrap_or((usize::MAX, 0)), problem.text)
            })
            .collect();
        found.sort_by_key(|(position, _)| *position);
        let mut lines: Vec<String> = found
            .into_iter()
            .map(|(position, text)| match position {
                (usize::MAX, _) => text,
                (line, column) => format!("line {line}, column {column}: {text}"),
            })
            .collect();
        if let [line] = lines.as_mut_slice() {
            return Self(std::mem::take(line));
        }
        if left_out > 0 {
            lines.push(format!("and {left_out} more"));
        }
        Self(format!("{} problems\n  {}", problems.count, lines.join("\n  ")))
    }
}

/// Reads a configuration in YAML or JSON.
pub fn read_config(text: &str) -> Result<proto::AgentConfig, DocumentError> {
    let mut tree = tree::parse(text)?;
    let descriptor = descriptor("AgentConfig")?;
    let problems = check::check(&mut tree, &descriptor);
    if problems.count > 0 {
        return Err(DocumentError::from_problems(problems, text));
    }
    // The check leaves no error here; one that it missed might show a secret.
    let failed = || DocumentError("the document is not a configuration".into());
    let message = DynamicMessage::deserialize(descriptor, tree).map_err(|_| failed())?;
    message.transcode_to().map_err(|_| failed())
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
        for (text, expected) in [
            (
                "client:\n  control_conections: []\n",
                "line 2, column 3: unknown field \"control_conections\" at client: \
                 did you mean control_connections?",
            ),
            (
                "client: {control_connections: [{name: 5}]}",
                "line 1, column 33: invalid value 5 at client.control_connections[0].name: \
                 expected text, in quotes",
            ),
            (
                "storage:\n  retention_age: 5 weeks\n",
                "line 2, column 3: invalid duration \"5 weeks\" at storage.retention_age: \
                 expected a number with a unit, such as 20ms, 1.5s or 1m30s",
            ),
            (
                "storage: {retention_bytes: abc}",
                "line 1, column 11: invalid number \"abc\" at storage.retention_bytes: \
                 expected a whole number from 0 to 18446744073709551615",
            ),
            (
                "client: {control_connections: [{control_type: LIGTH}]}",
                "line 1, column 33: invalid value \"LIGTH\" at \
                 client.control_connections[0].control_type: \
                 expected MANAGED, LIGHT or STAMP, did you mean LIGHT?",
            ),
            (
                "client: {control_connections: {name: a}}",
                "line 1, column 10: invalid value (mapping) at client.control_connections: \
                 expected a list",
            ),
            (
                "server: {inactive: 'yes'}",
                "line 1, column 10: invalid value \"yes\" at server.inactive: \
                 expected true or false",
            ),
            (
                "client: {control_connections: [{labels: {a: 1}}]}",
                "line 1, column 42: invalid value 1 at client.control_connections[0].labels.a: \
                 expected text, in quotes",
            ),
            ("clients: {}", "line 1, column 1: unknown field \"clients\": did you mean client?"),
            (
                "whatever: {}",
                "line 1, column 1: unknown field \"whatever\": \
                 expected client, server, storage or export",
            ),
            (
                "hello",
                "line 1, column 1: invalid value (string): expected a mapping of fields, such as client",
            ),
        ] {
            assert_eq!(read_config(text).unwrap_err().to_string(), expected);
        }
        let error = read_config("client: [").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert_eq!(read_config("").unwrap(), proto::AgentConfig::default());
        assert_eq!(read_config("client: ~").unwrap(), proto::AgentConfig::default());
    }

    #[test]
    fn all_problems_are_reported_in_their_order() {
        let text = "server:\n  lisen: []\n  inactiv: true\nclient:\n  control_connections:\n  \
                    - {nme: a, test_interval: 5}\n";
        let error = read_config(text).unwrap_err().to_string();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines[0], "4 problems", "{error}");
        for (line, expected) in [
            (1, "line 2, column 3: unknown field \"lisen\" at server: did you mean listen?"),
            (2, "line 3, column 3: unknown field \"inactiv\" at server: did you mean inactive?"),
            (3, "line 6, column 6: unknown field \"nme\" at client.control_connections[0]"),
            (4, "line 6, column 14: invalid duration 5 at client.control_connections[0]."),
        ] {
            assert!(lines[line].trim_start().starts_with(expected), "{error}");
        }
        let many: Vec<String> = (0..100_000).map(|n| format!("field{n}: 1")).collect();
        let error = read_config(&many.join("\n")).unwrap_err().to_string();
        assert!(error.starts_with("100000 problems\n") && error.ends_with("and 99980 more"));
        assert_eq!(error.lines().count(), 22);
    }

    #[test]
    fn durations_may_have_any_unit() {
        let read = |interval: &str| {
            let text = format!("client: {{control_connections: [{{test_interval: {interval}}}]}}");
            let config = read_config(&text).unwrap();
            config.client.unwrap().control_connections[0].test_interval.unwrap()
        };
        assert_eq!(read("1m30s"), prost_types::Duration { seconds: 90, nanos: 0 });
        assert_eq!(read("20ms"), prost_types::Duration { seconds: 0, nanos: 20_000_000 });
        assert_eq!(read("\"0.02s\""), read("20ms"));
    }

    #[test]
    fn code_points_need_no_quotes() {
        for (written, read) in [("46", "46"), ("101110", "101110"), ("ef", "ef"), ("'46'", "46")] {
            let text = format!(
                "client: {{control_connections: [{{control_dscp: {written}, test_sessions: \
                 [{{dscp_code_points: {written}, stamp: {{class_of_service: {written}}}}}]}}]}}"
            );
            let connection = read_config(&text).unwrap().client.unwrap().control_connections;
            let session = &connection[0].test_sessions[0];
            let stamp = session.stamp.as_ref().unwrap();
            assert_eq!(connection[0].control_dscp, read);
            assert_eq!(session.dscp_code_points, read);
            assert_eq!(stamp.class_of_service, read);
        }
        for wrong in ["-1", "4.5", "true"] {
            let text = format!("client: {{control_connections: [{{control_dscp: {wrong}}}]}}");
            assert!(read_config(&text).is_err(), "{wrong}");
        }
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
