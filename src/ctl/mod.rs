//! The command-line client, which uses only the public API of an agent.

mod commands;
mod configuration;
mod connect;
mod connections;
mod error;
mod input;
mod output;
mod pages;
mod probe;
mod records;
mod server;
mod statistics;
mod tables;
mod words;

pub use commands::{Command, GetCommand, run};
pub use configuration::{ChangeOptions, ConfigurationCommand};
pub use connect::{ConnectError, Connection, Target, TlsFiles};
pub use connections::ConnectionSelection;
pub use error::CtlError;
pub use input::{read_document, read_file};
pub use output::Format;
pub use probe::{ModeArgument, ProbeArguments};
pub use records::{FilterArguments, KindArgument, RecordRange, StreamStart};
pub use server::ServerCommand;
pub use statistics::Scope;
pub use tables::{record_line, statistics_table};
