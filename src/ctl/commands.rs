//! Commands of `twampctl`, and the functions that run them.

use clap::Subcommand;

use super::{
    Connection, CtlError, Format,
    configuration::{self, ConfigurationCommand},
    connections::{self, ConnectionSelection},
    output::print,
    probe::{self, ProbeArguments},
    records::{self, FilterArguments, RecordRange, StreamStart},
    server::{self, ServerCommand},
    statistics::{self, Scope},
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
    /// Show the identity and the role that the agent sees in this caller
    Whoami,
    /// Start connections that are stopped or completed; attempt to connect those that are down
    Start {
        /// Connections to start
        #[command(flatten)]
        chosen: ConnectionSelection,
    },
    /// Stop connections until they are started or changed, also across restarts of the agent
    ///
    /// To stop a connection for good, set `inactive: true` in its configuration.
    Stop {
        /// Connections to stop
        #[command(flatten)]
        chosen: ConnectionSelection,
    },
    /// Show statistics of tests and intervals
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
        /// Connections whose statistics to reset
        #[command(flatten)]
        chosen: ConnectionSelection,
    },
    /// List records of the result log
    Records {
        /// Filter of the records
        #[command(flatten)]
        filter: FilterArguments,
        /// Range of the records
        #[command(flatten)]
        range: RecordRange,
    },
    /// List events: outages, thresholds, revisions
    Events {
        /// Show only events of this connection; may be repeated
        #[arg(long, value_name = "NAME")]
        connection: Vec<String>,
        /// Range of the events
        #[command(flatten)]
        range: RecordRange,
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
        /// Filter of the records
        #[command(flatten)]
        filter: FilterArguments,
        /// Start of the stream
        #[command(flatten)]
        start: StreamStart,
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

/// Runs a command and prints its result.
pub async fn run(agent: &Connection, command: Command, format: Format) -> Result<(), CtlError> {
    match command {
        Command::Configuration(command) => configuration::run(agent, command, format).await,
        Command::Get(GetCommand::Config { revision }) => {
            configuration::show(agent, revision, format).await
        }
        Command::Status { names } => connections::status(agent, &names, format).await,
        Command::Whoami => connections::whoami(agent, format).await,
        Command::Start { chosen } => connections::start(agent, chosen, format).await,
        Command::Stop { chosen } => connections::stop(agent, chosen, format).await,
        Command::Stats { names, scope, running } => {
            statistics::show(agent, names, scope, running, format).await
        }
        Command::Clear { chosen } => statistics::clear(agent, chosen, format).await,
        Command::Records { filter, range } => {
            records::list(agent, filter.into(), range, format).await.map(drop)
        }
        Command::Events { connection, range, follow } => {
            records::events(agent, connection, range, follow, format).await
        }
        Command::Watch { names } => connections::watch(agent, names, format).await,
        Command::Stream { filter, start } => {
            records::stream(agent, filter.into(), start, format).await
        }
        Command::ProbeServer(arguments) => {
            let answer = agent.client().probe_server(arguments.request()?).await?.into_inner();
            print(format, &answer, "ProbeServerResponse", || probe::verdict(&answer))?;
            if probe::works(&answer) { Ok(()) } else { Err(CtlError::ServerFails) }
        }
        Command::Server(command) => server::run(agent, command, format).await,
    }
}
