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
mod token;
mod words;

pub use commands::{Command, GetCommand, run};
pub use configuration::{ChangeOptions, ConfigurationCommand};
pub use connect::{Authorized, ConnectError, Connection, Target, TlsFiles, Token};
pub use connections::ConnectionSelection;
pub use error::CtlError;
pub use input::{read_document, read_file};
pub use output::Format;
pub use probe::{ModeArgument, ProbeArguments};
pub use records::{FilterArguments, KindArgument, RecordRange, StreamStart};
pub use server::ServerCommand;
pub use statistics::Scope;
pub use tables::{record_line, statistics_table};
pub use token::new_token;
