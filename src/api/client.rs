//! `ClientService`: configured connections, their control, and the probing of servers.

use std::{collections::BTreeSet, pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use tokio::{sync::watch, time::sleep};
use tonic::{Request, Response, Status};

use super::{
    Context, error,
    layers::author,
    page::{PAGE_BYTES, PageRequest, split_front},
    services::client_service_server::ClientService,
};
use crate::{
    model::{Violation, parse_connection},
    proto::{
        Connection, ControlConnection, ListConnectionsRequest, ListConnectionsResponse,
        ProbeServerRequest, ProbeServerResponse, StartConnectionsRequest, StartConnectionsResponse,
        StopConnectionsRequest, StopConnectionsResponse, TestSession, WatchConnectionsRequest,
        WatchConnectionsResponse,
    },
};

/// Default time limit of each step of the trial of a server.
const PROBE_TIMEOUT_SECONDS: i64 = 5;
/// Pause after a change; further changes within it are sent in the same message.
const WATCH_PAUSE: Duration = Duration::from_millis(20);

#[tonic::async_trait]
impl ClientService for Context {
    async fn list_connections(
        &self,
        request: Request<ListConnectionsRequest>,
    ) -> Result<Response<ListConnectionsResponse>, Status> {
        let ListConnectionsRequest { names, page_size, page_token } = request.into_inner();
        let rest = ListConnectionsRequest { names, ..ListConnectionsRequest::default() };
        let page = PageRequest::new(&rest, page_size, &page_token)?;
        let listed = self.control.clients().list(&rest.names);
        let mut connections = listed.map_err(|error| error::by_hand(&error))?;
        self.persist_shown().await;
        connections.sort_by(|a, b| a.name.cmp(&b.name));
        let (connections, next_page_token) =
            page.cut(connections, |connection| connection.name.clone().into_bytes());
        Ok(Response::new(ListConnectionsResponse {
            connections,
            next_page_token,
            revision: self.control.committed_revision(),
            applied_revision: self.control.applied_revision(),
        }))
    }

    type WatchConnectionsStream =
        Pin<Box<dyn Stream<Item = Result<WatchConnectionsResponse, Status>> + Send + 'static>>;

    async fn watch_connections(
        &self,
        request: Request<WatchConnectionsRequest>,
    ) -> Result<Response<Self::WatchConnectionsStream>, Status> {
        let names = request.into_inner().names;
        self.control.clients().list(&names).map_err(|error| error::by_hand(&error))?;
        let watch = Watch {
            context: self.clone(),
            numbers: self.control.clients().changes(),
            names,
            seen: None,
            known: BTreeSet::new(),
            unsent: Vec::new(),
        };
        let messages = stream::unfold(watch, |mut watch| async move {
            let token = watch.context.token.clone();
            let message = tokio::select! {
                message = watch.next() => message?,
                () = token.cancelled() => return Some((Err(error::ending()), watch)),
            };
            Some((Ok(message), watch))
        });
        // The end of the stream is reported once.
        let token = self.token.clone();
        let messages = messages.scan(false, move |ended, message| {
            let goes_on = !std::mem::replace(ended, token.is_cancelled());
            std::future::ready(goes_on.then_some(message))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn start_connections(
        &self,
        request: Request<StartConnectionsRequest>,
    ) -> Result<Response<StartConnectionsResponse>, Status> {
        let StartConnectionsRequest { names, all } = request.into_inner();
        error::check_chosen("names", !names.is_empty(), all)?;
        let started = self.control.clients().start(&names).await;
        let names = started.map_err(|error| error::by_hand(&error))?;
        Ok(Response::new(StartConnectionsResponse { names }))
    }

    async fn stop_connections(
        &self,
        request: Request<StopConnectionsRequest>,
    ) -> Result<Response<StopConnectionsResponse>, Status> {
        let author = author(request.extensions());
        let StopConnectionsRequest { names, all } = request.into_inner();
        error::check_chosen("names", !names.is_empty(), all)?;
        let stopped = self.control.clients().stop(&names, &author).await;
        let names = stopped.map_err(|error| error::by_hand(&error))?;
        Ok(Response::new(StopConnectionsResponse { names }))
    }

    async fn probe_server(
        &self,
        request: Request<ProbeServerRequest>,
    ) -> Result<Response<ProbeServerResponse>, Status> {
        let config = parse_connection(&connection(request.into_inner())).map_err(violations)?;
        match self.control.clients().probe(&config).await {
            Some(found) => Ok(Response::new(found)),
            None => Err(Status::resource_exhausted("too many servers are being tried: try later")),
        }
    }
}

/// State that was last sent to one watcher.
struct Watch {
    context: Context,
    numbers: watch::Receiver<u64>,
    names: Vec<String>,
    /// Number of the last change sent; `None` before the first message.
    seen: Option<u64>,
    known: BTreeSet<String>,
    /// Rest of a message that is too large for one.
    unsent: Vec<Connection>,
}

impl Watch {
    /// Returns the next message; `None` once no further change is possible.
    async fn next(&mut self) -> Option<WatchConnectionsResponse> {
        if !self.unsent.is_empty() {
            return Some(self.message(Vec::new()));
        }
        loop {
            let number = *self.numbers.borrow_and_update();
            // A change during the reading is included in the next message.
            let since = self.seen.replace(number);
            let clients = self.context.control.clients();
            let (connections, present) = clients.changed_since(&self.names, since.unwrap_or(0));
            let removed: Vec<String> = self.known.difference(&present).cloned().collect();
            self.known = present;
            if since.is_none() || !connections.is_empty() || !removed.is_empty() {
                self.unsent = connections;
                self.context.persist_shown().await;
                return Some(self.message(removed));
            }
            self.numbers.changed().await.ok()?;
            sleep(WATCH_PAUSE).await;
        }
    }
}

impl Context {
    /// Stores the outages and completions that were just read, so that a crash of the agent does not
    /// take back what a client has seen. A failure hides no state.
    async fn persist_shown(&self) {
        if let Err(error) = self.results.flush().await {
            tracing::debug!(%error, "failed to store the states of connections before they are shown");
        }
    }
}

impl Watch {
    /// Returns a message with as many of the unsent connections as fit.
    fn message(&mut self, removed_names: Vec<String>) -> WatchConnectionsResponse {
        let names = WatchConnectionsResponse { removed_names, ..Default::default() };
        let limit = PAGE_BYTES.saturating_sub(names.encoded_len());
        let connections = split_front(&mut self.unsent, limit);
        WatchConnectionsResponse { connections, ..names }
    }
}

/// Converts the request to a connection with one session of one probe, so that it is checked and
/// run as any other.
fn connection(request: ProbeServerRequest) -> ControlConnection {
    let default = prost_types::Duration { seconds: PROBE_TIMEOUT_SECONDS, nanos: 0 };
    let timeout = Some(request.timeout.unwrap_or(default));
    ControlConnection {
        name: "probe".into(),
        target_address: request.target_address,
        destination_port: request.destination_port,
        source_address: request.source_address,
        interface: request.interface,
        authentication_mode: request.authentication_mode,
        key_id: request.key_id,
        secret: request.secret,
        extensions: request.extensions,
        strict_error_estimate: request.strict_error_estimate,
        send_addresses: request.send_addresses,
        connect_timeout: timeout,
        test_sessions: vec![TestSession {
            name: "probe".into(),
            data_size: request.data_size,
            dscp_code_points: request.dscp_code_points,
            loss_timeout: timeout,
            ..TestSession::default()
        }],
        ..ControlConnection::default()
    }
}

/// Renames the fields in violations to those of the request.
fn violations(violations: Vec<Violation>) -> Status {
    let own = |violation: Violation| Violation {
        field: match violation.field.trim_start_matches("test_sessions[0].") {
            "connect_timeout" | "loss_timeout" => "timeout".into(),
            field => field.to_owned(),
        },
        ..violation
    };
    let mut own: Vec<Violation> = violations.into_iter().map(own).collect();
    own.dedup_by(|a, b| a.field == b.field);
    error::all_invalid(&own)
}
