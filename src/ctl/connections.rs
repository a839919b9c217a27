//! Commands that show, start and stop connections.

use std::collections::HashMap;

use super::{
    Connection, CtlError, Format,
    output::{field_value, print, print_item, print_together},
    pages, tables,
    words::list,
};
use crate::{
    document::{Fields, to_value},
    proto::{
        GetAgentRequest, StartConnectionsRequest, StopConnectionsRequest, WatchConnectionsRequest,
        WatchConnectionsResponse, Word,
    },
};

/// Connections by name, or all of them.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct ConnectionSelection {
    /// Names of connections
    pub(super) names: Vec<String>,
    /// Select all active connections
    #[arg(long)]
    pub(super) all: bool,
}

/// Prints the state of the agent and its connections.
pub(super) async fn status(
    agent: &Connection,
    names: &[String],
    format: Format,
) -> Result<(), CtlError> {
    let answer = pages::connections(agent, names).await?;
    let about = agent.agent().get_agent(GetAgentRequest {}).await?.into_inner();
    let parts = vec![
        ("agent", to_value(&about, "GetAgentResponse", Fields::All)?),
        ("connections", field_value(&answer, "ListConnectionsResponse", "connections")?),
    ];
    print_together(format, parts, || {
        let connections = tables::connections(&answer.connections, &about);
        format!("{}\n{connections}", tables::agent(&about))
    })
}

/// Prints the identity and the role that the agent sees in this caller.
pub(super) async fn whoami(agent: &Connection, format: Format) -> Result<(), CtlError> {
    let about = agent.agent().get_agent(GetAgentRequest {}).await?.into_inner();
    let caller = about.caller.unwrap_or_default();
    print(format, &caller, "Caller", || {
        format!("{}: {}", caller.identity, caller.role().word().to_ascii_lowercase())
    })
}

pub(super) async fn start(
    agent: &Connection,
    ConnectionSelection { names, all }: ConnectionSelection,
    format: Format,
) -> Result<(), CtlError> {
    let request = StartConnectionsRequest { names, all };
    let answer = agent.client().start_connections(request).await?.into_inner();
    print(format, &answer, "StartConnectionsResponse", || list("started", &answer.names))
}

pub(super) async fn stop(
    agent: &Connection,
    ConnectionSelection { names, all }: ConnectionSelection,
    format: Format,
) -> Result<(), CtlError> {
    let request = StopConnectionsRequest { names, all };
    let answer = agent.client().stop_connections(request).await?.into_inner();
    print(format, &answer, "StopConnectionsResponse", || list("stopped", &answer.names))
}

/// Prints connections as they change.
pub(super) async fn watch(
    agent: &Connection,
    names: Vec<String>,
    format: Format,
) -> Result<(), CtlError> {
    let request = WatchConnectionsRequest { names };
    let mut messages = agent.client().watch_connections(request).await?.into_inner();
    let mut shown = HashMap::new();
    while let Some(message) = messages.message().await? {
        print_item(format, &message, "WatchConnectionsResponse", || {
            let lines = changed_lines(&message, &mut shown);
            (!lines.is_empty()).then(|| lines.join("\n"))
        })?;
    }
    Ok(())
}

/// Returns the lines that differ from those `shown` before, by connection.
fn changed_lines(
    message: &WatchConnectionsResponse,
    shown: &mut HashMap<String, String>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for connection in &message.connections {
        let line = tables::connection_line(connection);
        if shown.insert(connection.name.clone(), line.clone()).as_ref() != Some(&line) {
            lines.push(line);
        }
    }
    for name in &message.removed_names {
        shown.remove(name);
        lines.push(format!("{name}  removed"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{self, ConnectionState};

    #[test]
    fn only_changes_are_shown() {
        let message = |state: ConnectionState| WatchConnectionsResponse {
            connections: vec![proto::Connection {
                name: "a".into(),
                state: state.into(),
                ..proto::Connection::default()
            }],
            ..WatchConnectionsResponse::default()
        };
        let removed = WatchConnectionsResponse {
            removed_names: vec!["a".into()],
            ..WatchConnectionsResponse::default()
        };
        let mut shown = HashMap::new();
        let (running, stopped) = (ConnectionState::Running, ConnectionState::Stopped);
        for (message, expected) in [
            (message(running), vec!["-  a  RUNNING"]),
            (message(running), vec![]),
            (message(stopped), vec!["-  a  STOPPED"]),
            (removed, vec!["a  removed"]),
            (message(stopped), vec!["-  a  STOPPED"]),
        ] {
            assert_eq!(changed_lines(&message, &mut shown), expected);
        }
    }
}
