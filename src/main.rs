//! `twamp-agent`, the measurement daemon.

mod service;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use twamp_agent::{
    agent::{Agent, Options, StartError},
    api::ListenError,
    ctl, db, demo,
    document::{DURATION_FORM, parse_duration, read_config},
    model::{ZonedAddress, parse, warnings},
    proto::AgentConfig,
    settings::{DEFAULT_STATE_DIR, Settings},
    telemetry::{self, LogSettings},
};

/// Results are allocated by one thread and freed by another, thousands a second: the allocator of
/// the C library takes twice the time and keeps half as much memory again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FAILED: u8 = 1;
const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

/// Measure networks with TWAMP and STAMP and reflect the probes of other hosts
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the measurement agent
    Run {
        /// Settings (TOML): state directory, API, TLS, log
        #[arg(long, value_name = "FILE")]
        settings: Option<PathBuf>,
        /// Directory of configuration and results [default: /var/lib/twamp-agent]
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// Address of the API, such as 192.0.2.1:9862 or [fe80::1%eth0]:9862; may be repeated
        /// [default: 127.0.0.1:9862]
        #[arg(long, value_name = "ADDR")]
        listen: Vec<ZonedAddress>,
        /// Initial configuration (YAML or JSON), committed only if none was ever committed
        #[arg(long, value_name = "FILE")]
        bootstrap_config: Option<PathBuf>,
    },
    /// Run an agent that measures itself on loopback ports, in a temporary directory
    Demo {
        /// Duration, such as 20s or 2m
        #[arg(long, default_value = "20s", value_parser = duration)]
        duration: Duration,
    },
    /// Check, export, import or compact the state directory of a stopped agent
    Db {
        #[command(subcommand)]
        command: DbCommand,
        /// State directory of the stopped agent
        #[arg(long, value_name = "DIR", global = true, default_value = DEFAULT_STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Check a configuration (YAML or JSON) without an agent
    Check {
        /// File with the configuration
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum DbCommand {
    /// Read all stored data and report what is damaged
    Verify,
    /// Write all stored data into a file
    Export {
        /// File to create; must not exist
        file: PathBuf,
    },
    /// Create a state directory from an exported file; the directory must be empty or missing
    Import {
        /// Exported file to read
        file: PathBuf,
    },
    /// Return unused space of the databases to the file system
    Compact,
    /// Draw a new agent id: needed where this directory is a copy and the other agent still runs
    NewIdentity,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).and_then(|duration| Duration::try_from(duration).ok());
    duration.ok_or_else(|| format!("expected {DURATION_FORM}"))
}

/// Exit code and error message of a failed command.
struct Failure(u8, String);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let done = match cli.command {
        Command::Run { settings, state_dir, listen, bootstrap_config } => {
            run(settings.as_deref(), state_dir, listen, bootstrap_config.as_deref())
        }
        Command::Demo { duration } => run_demo(duration),
        Command::Db { command, state_dir } => run_db(&command, &state_dir),
        Command::Check { file } => check(&file),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, text)) => {
            print_error(&text);
            ExitCode::from(code)
        }
    }
}

fn run(
    settings: Option<&Path>,
    state_dir: Option<PathBuf>,
    listen: Vec<ZonedAddress>,
    bootstrap: Option<&Path>,
) -> Result<(), Failure> {
    let configuration = |error: &dyn std::fmt::Display| Failure(CONFIGURATION, error.to_string());
    let mut settings = match settings {
        Some(path) => Settings::read(path).map_err(|error| configuration(&error))?,
        None => Settings::default(),
    };
    if let Some(directory) = state_dir {
        settings.state_dir = directory;
    }
    if !listen.is_empty() {
        settings.api.listen = listen;
    }
    telemetry::init(&settings.log).map_err(|error| configuration(&error))?;
    let bootstrap = bootstrap.map(read_document).transpose()?;
    let options = Options {
        senders: settings.sender_plane(),
        reflectors: settings.reflector_plane(),
        state_dir: settings.state_dir,
        api: settings.api,
        hardware_timestamp_interfaces: settings.hardware_timestamp_interfaces,
        clock_is_synchronised: settings.clock_is_synchronised,
        bootstrap,
    };
    runtime()?.block_on(async {
        let agent = Agent::start(options).await.map_err(|error| {
            let code = match &error {
                StartError::Listen(ListenError::Address { .. }) => FAILED,
                StartError::Store(_)
                | StartError::Load(_)
                | StartError::Listen(_)
                | StartError::Bootstrap { .. }
                | StartError::Threads(_)
                | StartError::Reflection(_) => CONFIGURATION,
            };
            Failure(code, error.to_string())
        })?;
        service::ready();
        let ended = tokio::select! {
            ended = end_signal() => ended,
            () = service::watchdog() => Ok(()),
        };
        service::stopping();
        agent.stop().await;
        ended
    })
}

/// Waits for SIGTERM, SIGINT or SIGHUP (the terminal has closed).
async fn end_signal() -> Result<(), Failure> {
    let failed = |error: io::Error| Failure(FAILED, format!("signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

fn run_demo(duration: Duration) -> Result<(), Failure> {
    let log = LogSettings { filter: "warn".into(), ..LogSettings::default() };
    telemetry::init(&log).map_err(|error| Failure(FAILED, error.to_string()))?;
    let print = |text: &str| {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    };
    let stop = async {
        let _ = end_signal().await;
    };
    runtime()?
        .block_on(demo::run(duration, stop, print))
        .map_err(|error| Failure(FAILED, error.to_string()))
}

fn run_db(command: &DbCommand, directory: &Path) -> Result<(), Failure> {
    // The text of a sled error explains the damage of the database.
    let log = LogSettings { filter: "error,twamp_agent=warn".into(), ..LogSettings::default() };
    telemetry::init(&log).map_err(|error| Failure(FAILED, error.to_string()))?;
    let done = match command {
        DbCommand::Verify => db::verify(directory),
        DbCommand::Export { file } => db::export(directory, file),
        DbCommand::Import { file } => db::import(directory, file),
        DbCommand::Compact => db::compact(directory),
        DbCommand::NewIdentity => db::new_identity(directory),
    };
    let report = done.map_err(|error| Failure(FAILED, error.to_string()))?;
    writeln!(io::stdout().lock(), "{report}").map_err(|error| Failure(FAILED, error.to_string()))
}

fn check(file: &Path) -> Result<(), Failure> {
    let document = read_document(file)?;
    let config = parse(&document).map_err(|violations| {
        let lines: Vec<String> =
            violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
        Failure(CONFIGURATION, format!("{}\n  {}", file.display(), lines.join("\n  ")))
    })?;
    for warning in warnings(&document, &config, u64::MAX) {
        print_error(&format!("warning: {warning}"));
    }
    let server = if config.server.is_some() { "1 server" } else { "no server" };
    let connections = match config.connections.len() {
        1 => "1 control connection".into(),
        connections => format!("{connections} control connections"),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}: valid: {connections}, {server}", file.display())
        .map_err(|error| Failure(FAILED, error.to_string()))
}

fn read_document(path: &Path) -> Result<AgentConfig, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure(CONFIGURATION, error.to_string());
    let text = ctl::read_file(path).map_err(|error| failed(&error))?;
    read_config(&text).map_err(|error| failed(&format!("{}: {error}", path.display())))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure(FAILED, format!("failed to start threads: {error}")))
}

#[allow(clippy::print_stderr, reason = "error output of the program")]
fn print_error(text: &str) {
    eprintln!("twamp-agent: {text}");
}
