//! `ServerService`.

use tonic::{Request, Response, Status};

use super::{Context, services::server_service_server::ServerService};
use crate::proto::{
    GetServerStatusRequest, GetServerStatusResponse, ListServerConnectionsRequest,
    ListServerConnectionsResponse, ListServerSessionsRequest, ListServerSessionsResponse,
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

    async fn list_server_sessions(
        &self,
        request: Request<ListServerSessionsRequest>,
    ) -> Result<Response<ListServerSessionsResponse>, Status> {
        let sessions = self.control.server().sessions(request.into_inner().connection_id);
        Ok(Response::new(ListServerSessionsResponse { sessions }))
    }
}
