//! `ConfigService`.

use tonic::{Request, Response, Status};

use super::{Context, connection::author, error, services::config_service_server::ConfigService};
use crate::proto::{
    ApplyConfigRequest, ApplyConfigResponse, GetConfigRequest, GetConfigResponse,
    ListRevisionsRequest, ListRevisionsResponse,
};

#[tonic::async_trait]
impl ConfigService for Context {
    async fn get_config(
        &self,
        request: Request<GetConfigRequest>,
    ) -> Result<Response<GetConfigResponse>, Status> {
        let revision = request.into_inner().revision;
        match self.control.revision(revision).await.map_err(error::store)? {
            Some(stored) => Ok(Response::new(GetConfigResponse {
                config: stored.config,
                revision: stored.revision,
            })),
            None if revision == 0 => Ok(Response::new(GetConfigResponse {
                config: Some(Default::default()),
                revision: None,
            })),
            None => Err(Status::not_found(format!(
                "revision {revision} was never made or is no longer kept: see ListRevisions"
            ))),
        }
    }

    async fn apply_config(
        &self,
        request: Request<ApplyConfigRequest>,
    ) -> Result<Response<ApplyConfigResponse>, Status> {
        let author = author(request.extensions());
        let applied = self.control.apply(request.into_inner(), author).await;
        applied.map(Response::new).map_err(error::apply)
    }

    async fn list_revisions(
        &self,
        _: Request<ListRevisionsRequest>,
    ) -> Result<Response<ListRevisionsResponse>, Status> {
        let revisions = self.control.revisions().await.map_err(error::store)?;
        Ok(Response::new(ListRevisionsResponse { revisions }))
    }
}
