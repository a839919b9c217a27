//! Commands of `twampctl` except those of configurations.

use std::{fs, path::Path};

use clap::Subcommand;
use prost::Message as Message_;
use serde_json::Value;

use super::{
    Connection, CtlError, Format,
    configuration::{self, ConfigurationCommand},
    output::{print, print_item, print_together, write_line},
    pages,
    probe::{ProbeArguments, found},
    tables,
    words::count,
};
use crate::{
    document::{Fields, to_value, to_yaml},
    proto::{
        AckRecordsRequest, ClearStatisticsRequest, CloseServerConnectionsRequest, GetAgentRequest,
        GetServerStatusRequest, GetStatisticsRequest, ListRecordsRequest, ProbeStage, RecordFilter,
        RecordKind, StartConnectionsRequest, StatisticsScope, StopConnectionsRequest,
        StreamRecordsRequest, WatchConnectionsRequest, stream_records_request::From as StreamFrom,
        stream_records_response::Message,
    },
};

/// Commands of `twampctl`; their comments are the help texts.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Commands that show or change the configuration
    #[command(flatten)]
    Configuration(ConfigurationCommand),
    /// Show the configuration of the agent
    #[command(subcommand)]
    Get(GetCommand),
    /// Show the agent and its connections
    Status {
        /// Names of connections; all by default
        names: Vec<String>,
    },
    /// Start connections that are stopped or completed; attempt to connect those that are down
    Start {
        /// Names of the connections to start
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// Start every active connection
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// Stop connections until they are started or changed, or the agent starts again
    ///
    /// To stop a connection for good, set `inactive: true` in its configuration.
    Stop {
        /// Names of the connections to stop
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// Stop every active connection
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// Show statistics of the current, the last and all tests
    Stats {
        /// Names of connections; all by default
        names: Vec<String>,
        /// Show only statistics of this scope
        #[arg(long, value_enum)]
        scope: Option<Scope>,
        /// Include intervals that have not ended
        #[arg(long)]
        running: bool,
    },
    /// Reset statistics in all scopes
    Clear {
        /// Names of the connections to reset
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// Reset the statistics of every session
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// List records of the result log
    Records {
        /// Selection of the records
        #[command(flatten)]
        filter: FilterArguments,
        /// Number of records, the newest by default
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
        /// Records after this cursor, oldest first
        #[arg(long, value_name = "CURSOR")]
        after: Option<u64>,
    },
    /// List events: outages, thresholds, revisions
    Events {
        /// Show only events of this connection; may be repeated
        #[arg(long, value_name = "NAME")]
        connection: Vec<String>,
        /// Number of events, the newest by default
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
        /// Events after this cursor, oldest first
        #[arg(long, value_name = "CURSOR")]
        after: Option<u64>,
        /// Keep following: print new events as they occur
        #[arg(long)]
        follow: bool,
    },
    /// Show connections as they change
    Watch {
        /// Names of connections; all by default
        names: Vec<String>,
    },
    /// Follow the result log
    Stream {
        /// Selection of the records
        #[command(flatten)]
        filter: FilterArguments,
        /// Start after this cursor
        #[arg(long, value_name = "CURSOR", conflicts_with_all = ["earliest", "consumer"])]
        after: Option<u64>,
        /// Start at the earliest record
        #[arg(long, conflicts_with = "consumer")]
        earliest: bool,
        /// Start after the last record that this consumer acknowledged, and acknowledge printed
        /// records
        #[arg(long, value_name = "NAME")]
        consumer: Option<String>,
    },
    /// Try a TWAMP server once and report the step at which it fails
    ProbeServer(ProbeArguments),
    /// Show and control the server role
    #[command(subcommand)]
    Server(ServerCommand),
}

/// Objects that `get` shows.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum GetCommand {
    /// Show the configuration as committed
    Config {
        /// Revision to show; the current one by default
        #[arg(long, default_value_t = 0)]
        revision: u64,
    },
}

/// Commands of the server role.
#[derive(Clone, Debug, Subcommand)]
pub enum ServerCommand {
    /// Show sockets, counters, control connections and test sessions
    Status,
    /// Close control connections of clients
    Close {
        /// Ids of connections, as `server status` shows them
        #[arg(required_unless_present_any = ["client", "all"])]
        ids: Vec<u64>,
        /// Close all connections from this client address; may be repeated
        #[arg(long, value_name = "ADDRESS")]
        client: Vec<String>,
        /// Close every control connection
        #[arg(long)]
        all: bool,
    },
}

/// Scope of statistics, as the option `--scope` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// The test that is running
    Current,
    /// The last finished test
    Last,
    /// All tests that have finished
    All,
    /// The last `moving_average_size` tests
    Moving,
    /// The latest minute by the clock
    Minute,
    /// The latest quarter of an hour by the clock
    Quarter,
    /// The latest hour by the clock
    Hour,
    /// The latest day, UTC
    Day,
}

/// Options that select records.
#[derive(Clone, Debug, clap::Args)]
pub struct FilterArguments {
    /// Show only records of this connection; may be repeated
    #[arg(long, value_name = "NAME")]
    connection: Vec<String>,
    /// Show only records of this session; may be repeated
    #[arg(long, value_name = "NAME")]
    session: Vec<String>,
    /// Show only records of this kind; may be repeated
    #[arg(long, value_enum)]
    kind: Vec<KindArgument>,
}

/// Kind of record, as the option `--kind` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KindArgument {
    /// Results of finished tests
    Test,
    /// Results of single probes
    Probes,
    /// Events, such as outages and thresholds
    Event,
    /// Statistics of minutes, quarters of an hour, hours and days
    Interval,
}

impl From<FilterArguments> for RecordFilter {
    fn from(arguments: FilterArguments) -> Self {
        let kind = |kind: &KindArgument| match kind {
            KindArgument::Test => RecordKind::TestResult.into(),
            KindArgument::Probes => RecordKind::ProbeResults.into(),
            KindArgument::Event => RecordKind::Event.into(),
            KindArgument::Interval => RecordKind::IntervalResult.into(),
        };
        Self {
            connections: arguments.connection,
            sessions: arguments.session,
            kinds: arguments.kind.iter().map(kind).collect(),
            labels: Default::default(),
        }
    }
}

/// Runs a command and prints its result.
pub async fn run(agent: &Connection, command: Command, format: Format) -> Result<(), CtlError> {
    match command {
        Command::Configuration(command) => configuration::run(agent, command, format).await,
        Command::Get(GetCommand::Config { revision }) => {
            let config = pages::config(agent, revision).await?.config.unwrap_or_default();
            let value = to_value(&config, "AgentConfig", Fields::Given)?;
            match format {
                Format::Json => write_line(&format!("{value:#}")),
                Format::Table | Format::Yaml => write_line(&to_yaml(&value)?),
            }
        }
        Command::Status { names } => {
            let answer = pages::connections(agent, &names).await?;
            let about = agent.agent().get_agent(GetAgentRequest {}).await?.into_inner();
            let parts = vec![
                ("agent", to_value(&about, "GetAgentResponse", Fields::All)?),
                ("connections", part(&answer, "ListConnectionsResponse", "connections")?),
            ];
            print_together(format, parts, || {
                format!("{}\n{}", tables::agent(&about), tables::connections(&answer.connections))
            })
        }
        Command::Start { names, all } => {
            let request = StartConnectionsRequest { names, all };
            let answer = agent.client().start_connections(request).await?.into_inner();
            print(format, &answer, "StartConnectionsResponse", || named("started", &answer.names))
        }
        Command::Stop { names, all } => {
            let request = StopConnectionsRequest { names, all };
            let answer = agent.client().stop_connections(request).await?.into_inner();
            print(format, &answer, "StopConnectionsResponse", || named("stopped", &answer.names))
        }
        Command::Stats { names, scope, running } => {
            statistics(agent, names, scope, running, format).await
        }
        Command::Clear { names, all } => {
            let sessions = Vec::new();
            let request = ClearStatisticsRequest { connections: names, sessions, all };
            let answer = agent.results().clear_statistics(request).await?.into_inner();
            print(format, &answer, "ClearStatisticsResponse", || {
                let sessions = count(answer.sessions_cleared.into(), "session");
                format!("statistics of {sessions} reset")
            })
        }
        Command::Records { filter, count, after } => {
            records(agent, filter.into(), (count, after), format).await.map(drop)
        }
        Command::Events { connection, count, after, follow } => {
            let filter = RecordFilter {
                connections: connection,
                kinds: vec![RecordKind::Event.into()],
                ..RecordFilter::default()
            };
            let last = records(agent, filter.clone(), (count, after), format).await?;
            if !follow {
                return Ok(());
            }
            let request = StreamRecordsRequest {
                filter: Some(filter),
                from: Some(StreamFrom::AfterCursor(last)),
                heartbeat_interval: None,
            };
            stream(agent, request, None, format).await
        }
        Command::Watch { names } => watch(agent, names, format).await,
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
        Command::Server(ServerCommand::Close { ids, client, all }) => {
            let request = CloseServerConnectionsRequest { ids, client_addresses: client, all };
            let answer = agent.server().close_server_connections(request).await?.into_inner();
            print(format, &answer, "CloseServerConnectionsResponse", || {
                let ids: Vec<String> = answer.ids.iter().map(ToString::to_string).collect();
                named("closed", &ids)
            })
        }
    }
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

/// Prints a page of the log; returns the last cursor that was read.
async fn statistics(
    agent: &Connection,
    names: Vec<String>,
    scope: Option<Scope>,
    running: bool,
    format: Format,
) -> Result<(), CtlError> {
    let scope = scope.map(|scope| match scope {
        Scope::Current => StatisticsScope::CurrentTest.into(),
        Scope::Last => StatisticsScope::LastTest.into(),
        Scope::All => StatisticsScope::AllTests.into(),
        Scope::Moving => StatisticsScope::MovingAverage.into(),
        Scope::Minute => StatisticsScope::Interval1Minute.into(),
        Scope::Quarter => StatisticsScope::Interval15Minutes.into(),
        Scope::Hour => StatisticsScope::Interval1Hour.into(),
        Scope::Day => StatisticsScope::Interval1Day.into(),
    });
    let request = GetStatisticsRequest {
        connections: names,
        scopes: scope.into_iter().collect(),
        include_current_intervals: running,
        ..GetStatisticsRequest::default()
    };
    let answer = pages::statistics(agent, &request).await?;
    print(format, &answer, "GetStatisticsResponse", || tables::statistics_table(&answer.statistics))
}

async fn records(
    agent: &Connection,
    filter: RecordFilter,
    (count, after): (u32, Option<u64>),
    format: Format,
) -> Result<u64, CtlError> {
    let request = ListRecordsRequest {
        filter: Some(filter),
        after_cursor: after.unwrap_or(0),
        page_size: count,
        latest: after.is_none(),
        page_token: String::new(),
    };
    let answer = agent.results().list_records(request).await?.into_inner();
    print(format, &answer, "ListRecordsResponse", || {
        let lines: Vec<String> = answer.records.iter().map(tables::record_line).collect();
        if lines.is_empty() { "no records".into() } else { lines.join("\n") }
    })?;
    Ok(answer.end_cursor)
}

async fn watch(agent: &Connection, names: Vec<String>, format: Format) -> Result<(), CtlError> {
    let request = WatchConnectionsRequest { names };
    let mut messages = agent.client().watch_connections(request).await?.into_inner();
    while let Some(message) = messages.message().await? {
        print_item(format, &message, "WatchConnectionsResponse", || {
            let mut lines: Vec<String> =
                message.connections.iter().map(tables::connection_line).collect();
            lines.extend(message.removed_names.iter().map(|name| format!("{name}  removed")));
            (!lines.is_empty()).then(|| lines.join("\n"))
        })?;
    }
    Ok(())
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
        // A printed record is acknowledged.
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
    let connections = pages::server_connections(agent).await?;
    let sessions = pages::server_sessions(agent).await?;
    let parts = vec![
        ("status", to_value(&status, "GetServerStatusResponse", Fields::All)?),
        ("connections", part(&connections, "ListServerConnectionsResponse", "connections")?),
        ("sessions", part(&sessions, "ListServerSessionsResponse", "sessions")?),
    ];
    print_together(format, parts, || {
        tables::server(&status, &connections.connections, &sessions.sessions)
    })
}

/// Returns one field of a message as a JSON value.
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
