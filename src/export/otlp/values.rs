//! Attributes and resource of OTLP messages.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
};

use crate::proto::Record;

/// Keys of the attributes of a peer, which labels must not use.
pub(super) const PEER_KEYS: [&str; 4] =
    ["server.address", "server.port", "network.transport", "network.type"];

pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

pub(super) fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

pub(super) fn boolean(key: &str, value: bool) -> KeyValue {
    attribute(key, Value::BoolValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// Returns the names of connection and session, and the labels, as attributes.
pub(super) fn record_attributes(record: &Record) -> Vec<KeyValue> {
    let names = [("twamp.connection", &record.connection), ("twamp.session", &record.session)];
    let names = names.into_iter().filter(|(_, name)| !name.is_empty());
    let labels = record.labels.iter().map(|(key, value)| {
        // Attributes must not occur twice, so labels get a prefix if their name is reserved for the
        // agent or looks like a label with that prefix.
        let prefixes = ["twamp.", "label."];
        let is_reserved = prefixes.iter().any(|prefix| key.starts_with(prefix));
        if is_reserved || PEER_KEYS.contains(&key.as_str()) {
            text(&format!("label.{key}"), value)
        } else {
            text(key, value)
        }
    });
    names.map(|(key, name)| text(key, name)).chain(labels).collect()
}

pub(super) fn resource(agent_id: &str) -> Resource {
    let attributes = vec![
        text("service.name", "twamp-agent"),
        text("service.instance.id", agent_id),
        text("service.version", env!("CARGO_PKG_VERSION")),
    ];
    Resource { attributes, ..Resource::default() }
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "twamp-agent".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_attribute_occurs_twice_whatever_labels_are_called() {
        let labels = [
            "site",
            "twamp.connection",
            "twamp.cursor",
            "label.site",
            "label.twamp.cursor",
            "server.port",
        ];
        let record = Record {
            connection: "c".into(),
            session: "s".into(),
            labels: labels.iter().map(|key| ((*key).to_owned(), "v".to_owned())).collect(),
            ..Record::default()
        };
        let attributes = record_attributes(&record);
        let keys: Vec<&str> = attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        let expected = [
            "twamp.connection",
            "twamp.session",
            "label.label.site",
            "label.label.twamp.cursor",
            "label.server.port",
            "site",
            "label.twamp.connection",
            "label.twamp.cursor",
        ];
        assert_eq!(keys, expected);
    }
}
