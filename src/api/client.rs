//! `ClientService`.

use tonic::{Request, Response, Status};

use super::{Context, error, services::client_service_server::ClientService};
use crate::proto::{
    ListConnectionsRequest, ListConnectionsResponse, StartConnectionsRequest,
    StartConnectionsResponse, StopConnectionsRequest, StopConnectionsResponse,
};

#[tonic::async_trait]
impl ClientService for Context {
    async fn list_connections(
        &self,
        request: Request<ListConnectionsRequest>,
    ) -> Result<Response<ListConnectionsResponse>, Status> {
        let names = request.into_inner().names;
        let connections =
            self.control.clients().list(&names).map_err(|error| error::by_hand(&error))?;
        Ok(Response::new(ListConnectionsResponse {
            connections,
            revision: self.control.committed_revision(),
            applied_revision: self.control.applied_revision(),
        }))
    }

    async fn start_connections(
        &self,
        request: Request<StartConnectionsRequest>,
    ) -> Result<Response<StartConnectionsResponse>, Status> {
        let started = self.control.clients().start(&request.into_inner().names);
        let names = started.map_err(|error| error::by_hand(&error))?;
        Ok(Response::new(StartConnectionsResponse { names }))
    }

    async fn stop_connections(
        &self,
        request: Request<StopConnectionsRequest>,
    ) -> Result<Response<StopConnectionsResponse>, Status> {
        let stopped = self.control.clients().stop(&request.into_inner().names);
        let names = stopped.map_err(|error| error::by_hand(&error))?;
        Ok(Response::new(StopConnectionsResponse { names }))
    }
}
