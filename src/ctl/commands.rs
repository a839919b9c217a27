//! What the command-line client does.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use prost::Message as Message_;
use serde_json::Value;

use super::{
    Connection, CtlError, Format,
    output::{print, print_item, print_together, write_line},
    probe::{ProbeArguments, found},
    tables,
    words::short,
};
use crate::{
    document::{Fields, read_config, to_value, to_yaml},
    proto::{
        AckRecordsRequest, ApplyConfigRequest, ApplyConfigResponse, ApplyMode, GetAgentRequest,
        GetConfigRequest, GetServerStatusRequest, GetStatisticsRequest, ListConnectionsRequest,
        ListRecordsRequest, ListRevisionsRequest, ListServerConnectionsRequest,
        ListServerSessionsRequest, ProbeStage, RecordFilter, RecordKind, StartConnectionsRequest,
        StatisticsScope, StopConnectionsRequest, StreamRecordsRequest,
        stream_records_request::From as StreamFrom, stream_records_response::Message,
    },
};

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make a file the configuration of the agent
    Apply {
        /// Configuration in YAML or JSON; `-` is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Check everything and show the changes, but make none
        #[arg(long)]
        dry_run: bool,
        /// Only if this is the current revision; 0 for "none yet"
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
        /// Why; kept with the revision
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// Show what the agent has
    #[command(subcommand)]
    Get(GetCommand),
    /// List the kept revisions of the configuration
    Revisions,
    /// Show the agent and its connections
    Status {
        /// Names of connections; all by default
        names: Vec<String>,
    },
    /// Make one attempt at once; start again what was stopped or completed
    Start {
        /// Names of connections; all that are active by default
        names: Vec<String>,
    },
    /// Stop connections until they are started or changed
    Stop {
        /// Names of connections; all that are active by default
        names: Vec<String>,
    },
    /// Show statistics of the current, the last and all tests
    Stats {
        /// Names of connections; all by default
        names: Vec<String>,
        /// Only this scope
        #[arg(long, value_enum)]
        scope: Option<Scope>,
    },
    /// List records of the result log
    Records {
        /// Which records
        #[command(flatten)]
        filter: FilterArguments,
        /// How many, the newest by default
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
        /// Records behind this cursor, oldest first
        #[arg(long, value_name = "CURSOR")]
        after: Option<u64>,
    },
    /// Follow the result log
    Stream {
        /// Which records
        #[command(flatten)]
        filter: FilterArguments,
        /// Start behind this cursor
        #[arg(long, value_name = "CURSOR", conflicts_with_all = ["earliest", "consumer"])]
        after: Option<u64>,
        /// Start at the earliest record
        #[arg(long, conflicts_with = "consumer")]
        earliest: bool,
        /// Start behind what this consumer has acknowledged, and acknowledge what is printed
        #[arg(long, value_name = "NAME")]
        consumer: Option<String>,
    },
    /// Try a TWAMP server once, as far as it goes, and say why if it does not
    ProbeServer(ProbeArguments),
    /// The server role
    #[command(subcommand)]
    Server(ServerCommand),
}

/// What can be shown.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum GetCommand {
    /// The configuration, as it was committed
    Config {
        /// Of this revision; the current one by default
        #[arg(long, default_value_t = 0)]
        revision: u64,
    },
}

/// The server role.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ServerCommand {
    /// Show sockets, counters, control connections and test sessions
    Status,
}

/// Scope of statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// The test that runs
    Current,
    /// The one before
    Last,
    /// All finished ones
    All,
}

/// Which records.
#[derive(Clone, Debug, clap::Args)]
pub struct FilterArguments {
    /// Only of this connection; may be given several times
    #[arg(long, value_name = "NAME")]
    connection: Vec<String>,
    /// Only of this session; may be given several times
    #[arg(long, value_name = "NAME")]
    session: Vec<String>,
    /// Only of this kind; may be given several times
    #[arg(long, value_enum)]
    kind: Vec<KindArgument>,
}

/// Kind of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KindArgument {
    /// Results of tests
    Test,
    /// Single probes
    Probes,
    /// Events
    Event,
}

impl From<FilterArguments> for RecordFilter {
    fn from(arguments: FilterArguments) -> Self {
        let kind = |kind: &KindArgument| match kind {
            KindArgument::Test => RecordKind::TestResult.into(),
            KindArgument::Probes => RecordKind::ProbeResults.into(),
            KindArgument::Event => RecordKind::Event.into(),
        };
        Self {
            connections: arguments.connection,
            sessions: arguments.session,
            kinds: arguments.kind.iter().map(kind).collect(),
            labels: Default::default(),
        }
    }
}

/// Carries out a command.
pub async fn run(agent: &Connection, command: Command, format: Format) -> Result<(), CtlError> {
    match command {
        Command::Apply { file, dry_run, expect, comment } => {
            apply(agent, &file, (dry_run, expect, comment), format).await
        }
        Command::Get(GetCommand::Config { revision }) => {
            let answer = agent.config().get_config(GetConfigRequest { revision }).await?;
            let config = answer.into_inner().config.unwrap_or_default();
            let value = to_value(&config, "AgentConfig", Fields::Given)?;
            match format {
                Format::Json => write_line(&format!("{value:#}")),
                Format::Table | Format::Yaml => write_line(&to_yaml(&value)?),
            }
        }
        Command::Revisions => {
            let answer = agent.config().list_revisions(ListRevisionsRequest {}).await?.into_inner();
            print(format, &answer, "ListRevisionsResponse", || tables::revisions(&answer.revisions))
        }
        Command::Status { names } => {
            let request = ListConnectionsRequest { names };
            let answer = agent.client().list_connections(request).await?.into_inner();
            let about = agent.agent().get_agent(GetAgentRequest {}).await?.into_inner();
            let parts = vec![
                ("agent", to_value(&about, "GetAgentResponse", Fields::All)?),
                ("connections", part(&answer, "ListConnectionsResponse", "connections")?),
            ];
            print_together(format, parts, || {
                format!("{}\n{}", tables::agent(&about), tables::connections(&answer.connections))
            })
        }
        Command::Start { names } => {
            let request = StartConnectionsRequest { names };
            let answer = agent.client().start_connections(request).await?.into_inner();
            print(format, &answer, "StartConnectionsResponse", || named("started", &answer.names))
        }
        Command::Stop { names } => {
            let request = StopConnectionsRequest { names };
            let answer = agent.client().stop_connections(request).await?.into_inner();
            print(format, &answer, "StopConnectionsResponse", || named("stopped", &answer.names))
        }
        Command::Stats { names, scope } => {
            let scope = scope.map(|scope| match scope {
                Scope::Current => StatisticsScope::CurrentTest.into(),
                Scope::Last => StatisticsScope::LastTest.into(),
                Scope::All => StatisticsScope::AllTests.into(),
            });
            let request = GetStatisticsRequest {
                connections: names,
                sessions: Vec::new(),
                scopes: scope.into_iter().collect(),
            };
            let answer = agent.results().get_statistics(request).await?.into_inner();
            print(format, &answer, "GetStatisticsResponse", || {
                tables::statistics_table(&answer.statistics)
            })
        }
        Command::Records { filter, count, after } => {
            let request = ListRecordsRequest {
                filter: Some(filter.into()),
                after_cursor: after.unwrap_or(0),
                page_size: count,
                latest: after.is_none(),
            };
            let answer = agent.results().list_records(request).await?.into_inner();
            print(format, &answer, "ListRecordsResponse", || {
                let lines: Vec<String> = answer.records.iter().map(tables::record_line).collect();
                if lines.is_empty() { "no records".into() } else { lines.join("\n") }
            })
        }
        Command::Stream { filter, after, earliest, consumer } => {
            let from = match (after, earliest, &consumer) {
                (_, _, Some(name)) => StreamFrom::Consumer(name.clone()),
                (Some(cursor), _, _) => StreamFrom::AfterCursor(cursor),
                (_, true, _) => StreamFrom::Earliest(true),
                _ => StreamFrom::Latest(true),
            };
            let request = StreamRecordsRequest {
                filter: Some(filter.into()),
                from: Some(from),
                heartbeat_interval: None,
            };
            stream(agent, request, consumer, format).await
        }
        Command::ProbeServer(arguments) => probe_server(agent, arguments, format).await,
        Command::Server(ServerCommand::Status) => server_status(agent, format).await,
    }
}

async fn apply(
    agent: &Connection,
    file: &Path,
    (dry_run, expected_revision, comment): (bool, Option<u64>, String),
    format: Format,
) -> Result<(), CtlError> {
    let document = read_config(&read(file)?)
        .map_err(|error| CtlError::Document(file.display().to_string(), error))?;
    let request = ApplyConfigRequest {
        mode: ApplyMode::Replace.into(),
        config: Some(document),
        expected_revision,
        validate_only: dry_run,
        comment,
        request_id: uuid::Uuid::new_v4().to_string(),
        ..ApplyConfigRequest::default()
    };
    let answer = agent.config().apply_config(request).await?.into_inner();
    print(format, &answer, "ApplyConfigResponse", || applied(&answer, dry_run))
}

async fn probe_server(
    agent: &Connection,
    arguments: ProbeArguments,
    format: Format,
) -> Result<(), CtlError> {
    let answer = agent.client().probe_server(arguments.request()?).await?.into_inner();
    print(format, &answer, "ProbeServerResponse", || found(&answer))?;
    if answer.stage() == ProbeStage::Done { Ok(()) } else { Err(CtlError::ServerFails) }
}

async fn stream(
    agent: &Connection,
    request: StreamRecordsRequest,
    consumer: Option<String>,
    format: Format,
) -> Result<(), CtlError> {
    let mut messages = agent.results().stream_records(request).await?.into_inner();
    while let Some(message) = messages.message().await? {
        print_item(format, &message, "StreamRecordsResponse", || match &message.message {
            Some(Message::Opening(opening)) => {
                Some(format!("# agent {}, from cursor {}", opening.agent_id, opening.first_cursor))
            }
            Some(Message::Batch(batch)) => {
                let lines: Vec<String> = batch.records.iter().map(tables::record_line).collect();
                Some(lines.join("\n"))
            }
            Some(Message::Sync(sync)) => Some(format!(
                "# history up to cursor {} is delivered; what follows is new",
                sync.cursor
            )),
            Some(Message::Heartbeat(_)) | None => None,
        })?;
        // Printed is done with.
        if let (Some(consumer), Some(Message::Batch(batch))) = (&consumer, &message.message)
            && let Some(last) = batch.records.last()
        {
            let request = AckRecordsRequest { consumer: consumer.clone(), cursor: last.cursor };
            agent.results().ack_records(request).await?;
        }
    }
    Ok(())
}

async fn server_status(agent: &Connection, format: Format) -> Result<(), CtlError> {
    let status = agent.server().get_server_status(GetServerStatusRequest {}).await?.into_inner();
    let connections =
        agent.server().list_server_connections(ListServerConnectionsRequest {}).await?.into_inner();
    let sessions = agent
        .server()
        .list_server_sessions(ListServerSessionsRequest { connection_id: 0 })
        .await?
        .into_inner();
    let parts = vec![
        ("status", to_value(&status, "GetServerStatusResponse", Fields::All)?),
        ("connections", part(&connections, "ListServerConnectionsResponse", "connections")?),
        ("sessions", part(&sessions, "ListServerSessionsResponse", "sessions")?),
    ];
    print_together(format, parts, || {
        tables::server(&status, &connections.connections, &sessions.sessions)
    })
}

/// One field of an answer, as a value.
fn part(message: &impl Message_, name: &str, field: &str) -> Result<Value, CtlError> {
    Ok(to_value(message, name, Fields::All)?[field].take())
}

pub(super) fn read(file: &Path) -> Result<String, CtlError> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        fs::read_to_string(file)
    };
    text.map_err(|error| CtlError::File(file.display().to_string(), error))
}

fn named(what: &str, names: &[String]) -> String {
    if names.is_empty() {
        format!("nothing {what}")
    } else {
        format!("{what}: {}", names.join(", "))
    }
}

fn applied(answer: &ApplyConfigResponse, dry_run: bool) -> String {
    let mut text = match (dry_run, answer.changes.is_empty()) {
        (true, _) => format!("dry run against revision {}", answer.revision),
        (false, true) => format!("revision {}: no changes", answer.revision),
        (false, false) => format!("revision {}", answer.revision),
    };
    for change in &answer.changes {
        let kind = short(change.kind().as_str_name(), "CHANGE_KIND_").to_lowercase();
        let effect = short(change.effect().as_str_name(), "CHANGE_EFFECT_").to_lowercase();
        text += &format!("\n  {} {kind} ({effect})", change.path);
    }
    for warning in &answer.warnings {
        text += &format!("\n  warning: {warning}");
    }
    text
}
