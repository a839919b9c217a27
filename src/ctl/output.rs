//! Output of messages as tables, JSON or YAML.

use std::io::{self, Write};

use prost::Message;
use serde_json::Value;

use super::CtlError;
use crate::document::{Fields, to_value, to_yaml};

/// Format of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables, for human readers.
    #[default]
    Table,
    /// JSON mapping of proto3 with the field names of the `.proto`.
    Json,
    /// YAML with the same content as the JSON.
    Yaml,
}

/// Prints several messages: as one object by name, or as `table`.
pub(super) fn print_together(
    format: Format,
    parts: Vec<(&str, Value)>,
    table: impl FnOnce() -> String,
) -> Result<(), CtlError> {
    let all: Value = parts.into_iter().map(|(name, part)| (name.to_owned(), part)).collect();
    match format {
        Format::Table => write_line(&table()),
        Format::Json => write_line(&format!("{all:#}")),
        Format::Yaml => write_line(&to_yaml(&all)?),
    }
}

/// Prints one message: as it is in JSON or YAML, or as `table`.
pub(super) fn print(
    format: Format,
    message: &impl Message,
    name: &str,
    table: impl FnOnce() -> String,
) -> Result<(), CtlError> {
    let text = match format {
        Format::Table => table(),
        Format::Json => {
            let value = to_value(message, name, Fields::All)?;
            format!("{value:#}")
        }
        Format::Yaml => to_yaml(&to_value(message, name, Fields::All)?)?,
    };
    write_line(&text)
}

/// Prints one message of a stream, on one line in JSON.
pub(super) fn print_item(
    format: Format,
    message: &impl Message,
    name: &str,
    line: impl FnOnce() -> Option<String>,
) -> Result<(), CtlError> {
    match format {
        Format::Table => line().map_or(Ok(()), |line| write_line(&line)),
        Format::Json => write_line(&to_value(message, name, Fields::All)?.to_string()),
        Format::Yaml => {
            write_line(&format!("---\n{}", to_yaml(&to_value(message, name, Fields::All)?)?))
        }
    }
}

/// Writes a text with exactly one line break at its end.
pub(super) fn write_line(text: &str) -> Result<(), CtlError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end_matches('\n'))?;
    Ok(out.flush()?)
}

/// Returns one field of a message as a JSON value.
pub(super) fn field_value(
    message: &impl Message,
    name: &str,
    field: &str,
) -> Result<Value, CtlError> {
    Ok(to_value(message, name, Fields::All)?[field].take())
}
