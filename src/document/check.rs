//! Check of a tree against a message of the API. All problems are found in one pass, and values that
//! may be written more briefly are brought into the form of the JSON mapping.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::Value;

use super::{
    duration::{DURATION_FORM, canonical, parse_duration},
    has_secret, is_secret,
    tree::Step,
};

/// Text fields with a code point, which may be written as a number: an alias, six bits or a number.
const CODE_POINTS: [&str; 3] = ["control_dscp", "dscp_code_points", "class_of_service"];
/// Problems that are kept; further ones are counted.
const KEPT: usize = 20;
/// Fields of a message that are listed when an unknown one resembles none of them.
const LISTED_FIELDS: usize = 6;
/// Characters of a value that are shown.
const SHOWN_CHARS: usize = 60;

/// A part of a document that the message does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) path: Vec<Step>,
    pub(super) text: String,
}

/// Problems of a document: the first ones, and the number of all.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub(super) kept: Vec<Problem>,
    pub(super) count: usize,
}

/// Checks a tree, and brings enums and durations into the form of the JSON mapping.
pub(super) fn check(tree: &mut Value, message: &MessageDescriptor) -> Problems {
    let mut check = Check::default();
    check.message(tree, message);
    check.problems
}

#[derive(Default)]
struct Check {
    path: Vec<Step>,
    problems: Problems,
}

impl Check {
    fn at(&mut self, step: Step, check: impl FnOnce(&mut Self)) {
        self.path.push(step);
        check(self);
        self.path.pop();
    }

    fn report(&mut self, text: String) {
        self.problems.count += 1;
        if self.problems.kept.len() < KEPT {
            self.problems.kept.push(Problem { path: self.path.clone(), text });
        }
    }

    /// Reports a value; one that may be a misplaced secret is not shown.
    fn invalid(&mut self, what: &str, value: &Value, may_be_secret: bool, expected: &str) {
        let shown = if may_be_secret { format!("({})", kind(value)) } else { shown(value) };
        let path = path_text(&self.path);
        let place = if path.is_empty() { String::new() } else { format!(" at {path}") };
        self.report(format!("invalid {what} {shown}{place}: expected {expected}"));
    }

    fn message(&mut self, value: &mut Value, message: &MessageDescriptor) {
        let Value::Object(fields) = value else {
            let expected = format!("a mapping of fields, such as {}", field_names(message, 1));
            return self.invalid("value", value, has_secret(message), &expected);
        };
        for (name, value) in fields {
            let field =
                message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name));
            let step = Step::Field(name.clone());
            match field {
                Some(field) => self.at(step, |check| check.field(value, &field)),
                None => {
                    let text = self.unknown_field(name, message);
                    self.at(step, |check| check.report(text));
                }
            }
        }
    }

    fn unknown_field(&self, name: &str, message: &MessageDescriptor) -> String {
        let path = path_text(&self.path);
        let place = if path.is_empty() { String::new() } else { format!(" at {path}") };
        let hint = match similar(name, message.fields().map(|field| field.name().to_owned())) {
            Some(similar) => format!(": did you mean {similar}?"),
            None if message.fields().len() <= LISTED_FIELDS => {
                format!(": expected {}", field_names(message, LISTED_FIELDS))
            }
            None => String::new(),
        };
        format!("unknown field {:?}{place}{hint}", cut(name))
    }

    fn field(&mut self, value: &mut Value, field: &FieldDescriptor) {
        // An empty value stands for the default, as in the JSON mapping.
        if value.is_null() {
            return;
        }
        if field.is_map() {
            self.texts(value, may_be_secret(field));
        } else if !field.is_list() {
            self.single(value, field);
        } else if let Value::Array(values) = value {
            for (index, value) in values.iter_mut().enumerate() {
                self.at(Step::Index(index), |check| check.single(value, field));
            }
        } else {
            self.invalid("value", value, may_be_secret(field), "a list");
        }
    }

    /// Checks a mapping of texts, such as labels.
    fn texts(&mut self, value: &Value, may_be_secret: bool) {
        let Value::Object(entries) = value else {
            return self.invalid("value", value, may_be_secret, "a mapping of texts");
        };
        for (key, value) in entries.iter().filter(|(_, value)| !value.is_string()) {
            let step = Step::Field(key.clone());
            self.at(step, |check| check.invalid("value", value, may_be_secret, text(value)));
        }
    }

    fn single(&mut self, value: &mut Value, field: &FieldDescriptor) {
        let may_be_secret = may_be_secret(field);
        let kind = field.kind();
        if let Kind::Message(message) = &kind {
            if message.full_name() != "google.protobuf.Duration" {
                return self.message(value, message);
            }
            match value.as_str().and_then(parse_duration) {
                Some(duration) => *value = canonical(&duration).into(),
                None => self.invalid("duration", value, may_be_secret, DURATION_FORM),
            }
        } else if let Kind::Enum(of) = &kind {
            self.enumeration(value, of);
        } else if kind == Kind::String && !value.is_string() {
            // As the documentation shows them: `dscp_code_points: 46`.
            match value.as_u64().filter(|_| CODE_POINTS.contains(&field.name())) {
                Some(digits) => *value = digits.to_string().into(),
                None => self.invalid("value", value, may_be_secret, text(value)),
            }
        } else if kind == Kind::Bool && !value.is_boolean() {
            self.invalid("value", value, may_be_secret, "true or false");
        } else if kind == Kind::Uint32 {
            self.number(value, u32::MAX.into(), may_be_secret);
        } else if kind == Kind::Uint64 {
            self.number(value, u64::MAX, may_be_secret);
        }
    }

    fn number(&mut self, value: &Value, maximum: u64, may_be_secret: bool) {
        let number = match value {
            Value::Number(number) => number.as_u64().or_else(|| {
                let number = number.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0)?;
                (number < u64::MAX as f64).then_some(number as u64)
            }),
            Value::String(text) => text.parse().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        if number.is_none_or(|number| number > maximum) {
            let expected = format!("a whole number from 0 to {maximum}");
            self.invalid("number", value, may_be_secret, &expected);
        }
    }

    /// Completes the prefix of an enum value: `LIGHT` stands for `CONTROL_TYPE_LIGHT`.
    fn enumeration(&mut self, value: &mut Value, of: &EnumDescriptor) {
        let unspecified = of.default_value();
        let prefix = unspecified.name().trim_end_matches("UNSPECIFIED");
        if let Value::String(text) = value {
            if of.get_value_by_name(text).is_some() {
                return;
            }
            if of.get_value_by_name(&format!("{prefix}{text}")).is_some() {
                return text.insert_str(0, prefix);
            }
        }
        if value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) {
            return;
        }
        let names: Vec<String> = of
            .values()
            .map(|value| value.name().trim_start_matches(prefix).to_owned())
            .filter(|name| name != "UNSPECIFIED")
            .collect();
        let given = value.as_str().unwrap_or_default().to_uppercase();
        let hint = similar(&given, names.iter().cloned());
        let hint = hint.map_or_else(String::new, |name| format!(", did you mean {name}?"));
        self.invalid("value", value, false, &format!("{}{hint}", list(&names)));
    }
}

/// Returns the names of up to `count` fields.
fn field_names(message: &MessageDescriptor, count: usize) -> String {
    let names: Vec<String> =
        message.fields().take(count).map(|field| field.name().to_owned()).collect();
    list(&names)
}

fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [name] => name.clone(),
        [names @ .., last] => format!("{} or {last}", names.join(", ")),
    }
}

/// Returns the name that most resembles `name`, if it could be a typing error.
pub fn similar(name: &str, names: impl Iterator<Item = String>) -> Option<String> {
    let allowed = name.chars().count().div_ceil(3);
    names
        .map(|other| (strsim::osa_distance(name, &other), other))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

fn may_be_secret(field: &FieldDescriptor) -> bool {
    is_secret(field) || field.kind().as_message().is_some_and(has_secret)
}

/// Describes the text expected in place of a value, which may only lack its quotes.
fn text(value: &Value) -> &'static str {
    if value.is_number() || value.is_boolean() { "text, in quotes" } else { "text" }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "sequence",
        Value::Object(_) => "mapping",
    }
}

fn shown(value: &Value) -> String {
    if value.is_array() || value.is_object() {
        return format!("({})", kind(value));
    }
    cut(&value.to_string())
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Formats a path as error messages have it: `client.control_connections[0].name`.
fn path_text(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) if text.is_empty() => text += &cut(name),
            Step::Field(name) => text += &format!(".{}", cut(name)),
            Step::Index(index) => text += &format!("[{index}]"),
        }
    }
    text
}
