//! `ServerService`.

use std::{collections::BTreeSet, net::IpAddr};

use tonic::{Request, Response, Status};

use super::{Context, error, services::server_service_server::ServerService};
use crate::proto::{
    CloseServerConnectionsRequest, CloseServerConnectionsResponse, GetServerStatusRequest,
    GetServerStatusResponse, ListServerConnectionsRequest, ListServerConnectionsResponse,
    ListServerSessionsRequest, ListServerSessionsResponse,
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
        _: Request<ListServerConnectionsRequest>,
    ) -> Result<Response<ListServerConnectionsResponse>, Status> {
        let connections = self.control.server().connections();
        Ok(Response::new(ListServerConnectionsResponse { connections }))
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
            let address: IpAddr = text.parse().map_err(|_| {
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
        registry.close(&ids).map_err(|unknown| {
            Status::not_found(format!(
                "connection {unknown} is not open: see ListServerConnections"
            ))
        })?;
        Ok(Response::new(CloseServerConnectionsResponse { ids }))
    }

    async fn list_server_sessions(
        &self,
        request: Request<ListServerSessionsRequest>,
    ) -> Result<Response<ListServerSessionsResponse>, Status> {
        let sessions = self.control.server().sessions(request.into_inner().connection_id);
        Ok(Response::new(ListServerSessionsResponse { sessions }))
    }
}
