//! `ServerService`: state of the server role, its connections and sessions.

use std::{collections::BTreeSet, net::IpAddr};

use tonic::{Request, Response, Status};

use super::{Context, error, page::PageRequest, services::server_service_server::ServerService};
use crate::proto::{
    CloseServerConnectionsRequest, CloseServerConnectionsResponse, GetServerStatusRequest,
    GetServerStatusResponse, ListServerConnectionsRequest, ListServerConnectionsResponse,
    ListServerSessionsRequest, ListServerSessionsResponse, ServerSession,
};

#[tonic::async_trait]
impl ServerService for Context {
    async fn get_server_status(
        &self,
        _: Request<GetServerStatusRequest>,
    ) -> Result<Response<GetServerStatusResponse>, Status> {
        Ok(Response::new(self.control.server().status()))
    }

    async fn list_server_connections(
        &self,
        request: Request<ListServerConnectionsRequest>,
    ) -> Result<Response<ListServerConnectionsResponse>, Status> {
        let ListServerConnectionsRequest { page_size, page_token } = request.into_inner();
        let rest = ListServerConnectionsRequest::default();
        let page = PageRequest::new(&rest, page_size, &page_token)?;
        let connections = self.control.server().connections();
        let (connections, next_page_token) =
            page.cut(connections, |connection| connection.id.to_be_bytes().to_vec());
        Ok(Response::new(ListServerConnectionsResponse { connections, next_page_token }))
    }

    async fn close_server_connections(
        &self,
        request: Request<CloseServerConnectionsRequest>,
    ) -> Result<Response<CloseServerConnectionsResponse>, Status> {
        let CloseServerConnectionsRequest { mut ids, client_addresses, all } = request.into_inner();
        if ids.is_empty() && client_addresses.is_empty() && !all {
            return Err(error::invalid("", "none is chosen: give ids, client_addresses or all"));
        }
        let mut chosen = BTreeSet::new();
        for (index, text) in client_addresses.iter().enumerate() {
            // The zone is that of this host, as the lists of connections show it.
            let address = text.split_once('%').map_or(&text[..], |(address, _)| address);
            let address: IpAddr = address.parse().map_err(|_| {
                let field = format!("client_addresses[{index}]");
                let shown: String = text.chars().take(80).collect();
                error::invalid(&field, format!("{shown:?} is not an IPv4 or IPv6 address"))
            })?;
            chosen.insert(address.to_canonical());
        }
        let registry = self.control.server();
        ids.extend(registry.connections_of(|address| all || chosen.contains(&address)));
        ids.sort_unstable();
        ids.dedup();
        let (ids, draining) = registry.close(&ids).map_err(|unknown| {
            Status::not_found(format!(
                "connection {unknown} is not open: see ListServerConnections"
            ))
        })?;
        let draining_sessions_ended = draining as u32;
        Ok(Response::new(CloseServerConnectionsResponse { ids, draining_sessions_ended }))
    }

    async fn list_server_sessions(
        &self,
        request: Request<ListServerSessionsRequest>,
    ) -> Result<Response<ListServerSessionsResponse>, Status> {
        let ListServerSessionsRequest { connection_id, page_size, page_token } =
            request.into_inner();
        let rest = ListServerSessionsRequest { connection_id, ..Default::default() };
        let page = PageRequest::new(&rest, page_size, &page_token)?;
        let mut sessions = self.control.server().sessions(connection_id);
        let key = |session: &ServerSession| {
            [&session.connection_id.to_be_bytes(), session.sid.as_bytes()].concat()
        };
        sessions.sort_by_cached_key(key);
        let (sessions, next_page_token) = page.cut(sessions, key);
        Ok(Response::new(ListServerSessionsResponse { sessions, next_page_token }))
    }
}
