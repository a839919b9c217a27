//! Differences between two documents, field by field.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{model::limits::MAXIMUM_FIELD_CHANGES, proto::FieldChange};

/// Bytes of a value that are shown.
const SHOWN_OCTETS: usize = 200;
/// Fields that identify the items of a list, where they have one.
const NAMES: [&str; 2] = ["name", "key_id"];

/// Returns the fields that differ, in the order of their paths, up to `MAXIMUM_FIELD_CHANGES`.
pub fn differences(before: &Value, after: &Value) -> Vec<FieldChange> {
    let mut found = Vec::new();
    compare(String::new(), Some(before), Some(after), &mut found);
    found
}

fn compare(
    path: String,
    before: Option<&Value>,
    after: Option<&Value>,
    found: &mut Vec<FieldChange>,
) {
    if before == after || found.len() >= MAXIMUM_FIELD_CHANGES {
        return;
    }
    match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                let dot = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{dot}{name}");
                compare(path, before.get(name), after.get(name), found);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => {
            match (by_name(before), by_name(after)) {
                (Some(before_parts), Some(after_parts)) => {
                    compare_parts(&path, &before_parts, &after_parts, found);
                }
                _ => {
                    for index in 0..before.len().max(after.len()) {
                        let path = format!("{path}[{index}]");
                        compare(path, before.get(index), after.get(index), found);
                    }
                }
            }
        }
        _ => found.push(FieldChange { path, before: shown(before), after: shown(after) }),
    }
}

type Parts<'a> = Vec<(&'a str, &'a Value)>;

fn compare_parts(path: &str, before: &Parts<'_>, after: &Parts<'_>, found: &mut Vec<FieldChange>) {
    let part = |parts: &Parts<'_>, name| {
        parts.iter().find(|(own, _)| *own == name).map(|(_, part)| (*part).clone())
    };
    let names: BTreeSet<&str> = before.iter().chain(after).map(|(name, _)| *name).collect();
    let count = found.len();
    for name in names {
        let (before, after) = (part(before, name), part(after, name));
        compare(format!("{path}[{name}]"), before.as_ref(), after.as_ref(), found);
    }
    if found.len() == count {
        // The lists hold the same items in another order.
        let order =
            |parts: &Parts<'_>| parts.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        found.push(FieldChange { path: path.into(), before: order(before), after: order(after) });
    }
}

/// Returns the items of a list by name, if each has a name of its own.
fn by_name(list: &[Value]) -> Option<Parts<'_>> {
    let named = |part| Some((name_of(part)?, part));
    let parts: Parts<'_> = list.iter().map(named).collect::<Option<_>>()?;
    let names: BTreeSet<&str> = parts.iter().map(|(name, _)| *name).collect();
    (names.len() == parts.len()).then_some(parts)
}

fn name_of(part: &Value) -> Option<&str> {
    NAMES.iter().find_map(|name| part.get(name)?.as_str())
}

fn shown(value: Option<&Value>) -> String {
    let text = value.map(Value::to_string).unwrap_or_default();
    match text
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= SHOWN_OCTETS)
        .last()
    {
        Some(end) if end < text.len() => format!("{}...", &text[..end]),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    fn lines(before: &Value, after: &Value) -> Vec<String> {
        let line =
            |change: FieldChange| format!("{}: {} -> {}", change.path, change.before, change.after);
        differences(before, after).into_iter().map(line).collect()
    }

    #[test]
    fn parts_are_compared_by_name_and_the_rest_by_place() {
        let before = json!({
            "name": "c1", "ports": [1, 2],
            "test_sessions": [{"name": "a", "ttl": 5}, {"name": "b"}, {"name": "gone"}],
        });
        let after = json!({
            "name": "c1", "ports": [1, 3, 4], "interval": "1s",
            "test_sessions": [{"name": "b"}, {"name": "a", "ttl": 6}],
        });
        assert_eq!(
            lines(&before, &after),
            [
                "interval:  -> \"1s\"",
                "ports[1]: 2 -> 3",
                "ports[2]:  -> 4",
                "test_sessions[a].ttl: 5 -> 6",
                "test_sessions[gone]: {\"name\":\"gone\"} -> ",
            ]
        );
        assert!(lines(&before, &before).is_empty());
    }

    #[test]
    fn another_order_is_a_difference_and_long_values_are_cut() {
        let list = |names: &[&str]| json!({"l": names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()});
        assert_eq!(lines(&list(&["a", "b"]), &list(&["b", "a"])).len(), 1);
        let long = json!({"text": "ä".repeat(500)});
        assert!(differences(&json!({}), &long)[0].after.len() <= SHOWN_OCTETS + 3);
        let many: Map<String, Value> = (0..500).map(|n| (format!("f{n}"), json!(n))).collect();
        assert_eq!(differences(&json!({}), &Value::Object(many)).len(), MAXIMUM_FIELD_CHANGES);
    }
}
