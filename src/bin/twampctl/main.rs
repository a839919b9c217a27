//! `twampctl`: command-line client of the agent's public API.

use std::{io, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use twamp_agent::ctl::{self, Connection, CtlError, Format, Target, TlsFiles};

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Configure, watch and read a twamp-agent over its API",
    max_term_width = 100
)]
struct Cli {
    /// Address of the agent: HOST:PORT, [fe80::1%eth0]:PORT, https://HOST:PORT or unix:PATH
    #[arg(
        long,
        global = true,
        env = "TWAMP_AGENT",
        default_value = "127.0.0.1:9862",
        help_heading = "Global options"
    )]
    agent: Target,
    /// Format of the output
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        help_heading = "Global options"
    )]
    output: Format,
    #[command(flatten)]
    tls: TlsFiles,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Agent(ctl::Command),
    /// Make a token with which a caller identifies itself to agents
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print completions for a shell
    Completions {
        /// Shell that is to read the completions
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Print a new token, once, and the line for the file that [api] tokens of the agent names
    New {
        /// Name of the token; its holder is `token:NAME`
        name: String,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let command = match cli.command {
        Command::Agent(command) => command,
        Command::Token(TokenCommand::New { name }) => return print_new_token(&name),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "twampctl", &mut io::stdout());
            return ExitCode::SUCCESS;
        }
    };
    let done = async {
        let agent = Connection::open(&cli.agent, &cli.tls).await?;
        let done = ctl::run(&agent, command, cli.output).await;
        done.map_err(|error| error.over(&cli.agent))
    };
    match done.await {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has closed the pipe, as `head` does.
        Err(CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

#[allow(clippy::print_stdout, reason = "output of the program")]
fn print_new_token(name: &str) -> ExitCode {
    match ctl::new_token(name) {
        Ok((token, line)) => {
            println!("token, shown only now: {token}\nline for the agent's file:  {line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(&error);
            ExitCode::from(64)
        }
    }
}

#[allow(clippy::print_stderr, reason = "error output of the program")]
fn print_error(error: &impl std::fmt::Display) {
    eprintln!("twampctl: {error}");
}
