//! Tree of a text in YAML or JSON, and the positions of its parts. Both are bounded: deep nesting,
//! repeated keys and aliases that multiply are errors.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Number, Value};

use super::DocumentError;

/// Brackets that may be open: the parser takes time by their square. It reads half as many levels.
const MAXIMUM_OPEN_BRACKETS: usize = 256;
/// Size of the tree with all aliases replaced, each value counted with its text and `VALUE_BYTES`.
const MAXIMUM_TREE_BYTES: usize = 256 << 20;
const VALUE_BYTES: usize = 32;
/// Field whose keys are no fields.
const LABELS: &str = "labels";

/// One step on the way from the root to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Field(String),
    Index(usize),
}

/// Line and column of a part, from 1.
pub(super) type Position = (usize, usize);

/// Parses a text; an empty one is an empty mapping.
pub(super) fn parse(text: &str) -> Result<Value, DocumentError> {
    check_nesting(text)?;
    let (remaining, trail) = (Cell::new(MAXIMUM_TREE_BYTES), RefCell::default());
    let deserializer = serde_yaml_ng::Deserializer::from_str(text);
    let value = Tree { remaining: &remaining, trail: &trail }.deserialize(deserializer);
    let value = value.map_err(|error| {
        let Trail { path, is_repeated } = &*trail.borrow();
        // The error has the position of the second key.
        match is_repeated.then(|| position(text, path)).flatten() {
            Some((line, column)) => {
                DocumentError(format!("{error}, first at line {line} column {column}"))
            }
            None => DocumentError(error.to_string()),
        }
    })?;
    Ok(if value.is_null() { Value::Object(Map::new()) } else { value })
}

fn check_nesting(text: &str) -> Result<(), DocumentError> {
    let mut open = 0_usize;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MAXIMUM_OPEN_BRACKETS {
            let line = text[..index].matches('\n').count() + 1;
            return Err(DocumentError(format!("line {line}: too many nested brackets")));
        }
    }
    Ok(())
}

/// Way to the value that is read, or to a key that its mapping has already.
#[derive(Default)]
struct Trail {
    path: Vec<Step>,
    is_repeated: bool,
}

/// Builds the tree within `remaining` bytes.
#[derive(Clone, Copy)]
struct Tree<'a> {
    remaining: &'a Cell<usize>,
    trail: &'a RefCell<Trail>,
}

impl Tree<'_> {
    /// Reads a value that is one step away.
    fn step<T>(self, step: Step, read: impl FnOnce() -> T) -> T {
        self.trail.borrow_mut().path.push(step);
        let value = read();
        // After an error nobody reads on.
        if !self.trail.borrow().is_repeated {
            self.trail.borrow_mut().path.pop();
        }
        value
    }

    fn reserve<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        let remaining = self.remaining.get().checked_sub(bytes + VALUE_BYTES);
        self.remaining.set(remaining.ok_or_else(|| E::custom("the document is too large"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a list or a plain value")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.reserve(0).map(|()| value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.reserve(0).map(|()| value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.reserve(0).map(|()| value.into())
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.reserve(0).map(|()| Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.reserve(value.len()).map(|()| value.into())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.reserve(0).map(|()| Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.reserve(0)?;
        let mut values = Vec::new();
        loop {
            let step = Step::Index(values.len());
            let Some(value) = self.step(step, || items.next_element_seed(self))? else { break };
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.reserve(0)?;
        let mut fields = Map::new();
        while let Some(key) = entries.next_key_seed(NewKey(&fields, self.trail))? {
            self.reserve(key.len())?;
            let step = Step::Field(key.clone());
            let value = self.step(step, || entries.next_value_seed(self))?;
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

/// Reads a key that the mapping does not have yet.
struct NewKey<'a>(&'a Map<String, Value>, &'a RefCell<Trail>);

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<String, E> {
        let mut trail = self.1.borrow_mut();
        // Keys of labels are names of their own; all others are fields, in one of two spellings.
        let are_fields = trail.path.last() != Some(&Step::Field(LABELS.to_owned()));
        let mut spellings = vec![key.to_owned()];
        if are_fields {
            let snake = snake_case(key);
            spellings.extend([camel_case(&snake), snake]);
        }
        let known = spellings.into_iter().find(|spelling| self.0.contains_key(spelling));
        let Some(known) = known else { return Ok(key.to_owned()) };
        let message = match known == key {
            true => format!("field {key:?} is given twice"),
            false => format!("field {key:?} is given twice, also as {known:?}"),
        };
        trail.path.push(Step::Field(known));
        trail.is_repeated = true;
        Err(E::custom(message))
    }
}

/// Returns the name of a field as the `.proto` spells it; JSON may spell it in camel case.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn camel_case(snake: &str) -> String {
    let mut words = snake.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel
}

/// Returns the position of the key, or of the list item, that a path leads to.
pub(super) fn position(text: &str, path: &[Step]) -> Option<Position> {
    let is_found = Cell::new(false);
    let walk = Walk { path, is_found: &is_found };
    let error = walk.deserialize(serde_yaml_ng::Deserializer::from_str(text)).err()?;
    let location = error.location().filter(|_| is_found.get())?;
    Some((location.line(), location.column()))
}

/// Follows a path, and fails where it ends: errors have positions, values have none.
struct Walk<'a> {
    path: &'a [Step],
    is_found: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.is_found.set(self.path.is_empty());
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the way to go on")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let [Step::Index(index), rest @ ..] = self.path else {
            return Err(A::Error::custom("end"));
        };
        for _ in 0..*index {
            items.next_element::<IgnoredAny>()?;
        }
        items.next_element_seed(Walk { path: rest, ..self })?;
        Err(A::Error::custom("end"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let [Step::Field(name), rest @ ..] = self.path else {
            return Err(A::Error::custom("end"));
        };
        let key = WantedKey { name, is_last: rest.is_empty(), is_found: self.is_found };
        while let Some(is_wanted) = entries.next_key_seed(key)? {
            if is_wanted {
                entries.next_value_seed(Walk { path: rest, ..self })?;
                break;
            }
            entries.next_value::<IgnoredAny>()?;
        }
        Err(A::Error::custom("end"))
    }
}

#[derive(Clone, Copy)]
struct WantedKey<'a> {
    name: &'a str,
    is_last: bool,
    is_found: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for WantedKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for WantedKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        if key == self.name && self.is_last {
            self.is_found.set(true);
            return Err(E::custom("end"));
        }
        Ok(key == self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_keys_and_items() {
        let text = "a:\n  - b: 1\n    c: {d: 2}\n  - [x, y]\n";
        let field = |name: &str| Step::Field(name.into());
        let item = Step::Index;
        for (path, expected) in [
            (vec![field("a")], Some((1, 1))),
            (vec![field("a"), item(0)], Some((2, 5))),
            (vec![field("a"), item(0), field("c"), field("d")], Some((3, 9))),
            (vec![field("a"), item(1), item(1)], Some((4, 9))),
            (vec![field("b")], None),
            (vec![field("a"), field("b")], None),
            (vec![field("a"), item(7)], None),
        ] {
            assert_eq!(position(text, &path), expected, "{path:?}");
        }
    }

    #[test]
    fn hostile_texts_are_refused_quickly() {
        let parse = |text: &str| parse(text).unwrap_err().to_string();
        assert!(parse(&"[".repeat(1 << 20)).contains("line 1: too many nested brackets"));
        assert!(parse(&"[".repeat(200)).contains("recursion limit"));
        assert!(parse(&"- ".repeat(2_000)).contains("recursion limit"));
        let line =
            |n: u32| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
        let laughs: String = (1..9).map(line).collect();
        assert!(parse(&format!("a0: &a0 [x]\n{laughs}")).contains("repetition limit"));
        let many = vec!["*a"; 100].join(", ");
        let long = format!("a: &a [{}]\nb: [{many}]", vec!["x"; 100_000].join(","));
        assert!(parse(&long).contains("the document is too large"));
        let both = "field \"a\" is given twice at line 3 column 1, first at line 1 column 1";
        assert_eq!(parse("a: 1\nb: 2\na: 3\n"), both);
        let both = "a[1]: field \"c\" is given twice at line 5 column 5, first at line 4 column 5";
        assert_eq!(parse("a:\n  - b: 1\n  -\n    c: 1\n    c: 2\n"), both);
        let both = "a: field \"b\" is given twice at line 1 column 14, first at line 1 column 8";
        assert_eq!(parse(r#"{"a": {"b":1,"b":2}}"#), both);
    }

    #[test]
    fn two_spellings_of_one_field_are_the_same_field() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        let twice = "field \"control_connections\" is given twice, also as \"controlConnections\" at \
                     line 2 column 1, first at line 1 column 1";
        assert_eq!(error("controlConnections: []\ncontrol_connections: []\n"), twice);
        let both = error(r#"{"test_count": 1, "testCount": 2}"#);
        assert!(both.contains("\"testCount\" is given twice, also as \"test_count\""), "{both}");
        // Names of labels are not fields.
        parse("labels: {a_b: x, aB: y}\n").unwrap();
    }
}
