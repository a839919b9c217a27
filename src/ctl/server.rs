//! Commands of the server role.

use clap::Subcommand;

use super::{
    Connection, CtlError, Format,
    output::{field_value, print, print_together},
    pages, tables,
    words::list,
};
use crate::{
    document::{Fields, to_value},
    proto::{CloseServerConnectionsRequest, GetServerStatusRequest},
};

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

/// Runs a command and prints its result.
pub(super) async fn run(
    agent: &Connection,
    command: ServerCommand,
    format: Format,
) -> Result<(), CtlError> {
    match command {
        ServerCommand::Status => status(agent, format).await,
        ServerCommand::Close { ids, client, all } => {
            let request = CloseServerConnectionsRequest { ids, client_addresses: client, all };
            let answer = agent.server().close_server_connections(request).await?.into_inner();
            print(format, &answer, "CloseServerConnectionsResponse", || {
                let ids: Vec<String> = answer.ids.iter().map(ToString::to_string).collect();
                let closed = list("closed", &ids);
                match answer.draining_sessions_ended {
                    0 => closed,
                    ended => format!("{closed}\nended {ended} draining sessions"),
                }
            })
        }
    }
}

async fn status(agent: &Connection, format: Format) -> Result<(), CtlError> {
    let status = agent.server().get_server_status(GetServerStatusRequest {}).await?.into_inner();
    let connections = pages::server_connections(agent).await?;
    let sessions = pages::server_sessions(agent).await?;
    let parts = vec![
        ("status", to_value(&status, "GetServerStatusResponse", Fields::All)?),
        ("connections", field_value(&connections, "ListServerConnectionsResponse", "connections")?),
        ("sessions", field_value(&sessions, "ListServerSessionsResponse", "sessions")?),
    ];
    print_together(format, parts, || {
        tables::server(&status, &connections.connections, &sessions.sessions)
    })
}
