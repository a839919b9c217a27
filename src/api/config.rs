//! `ConfigService`.

use tonic::{Request, Response, Status};

use super::{Context, connection::author, error, services::config_service_server::ConfigService};
use crate::{
    proto::{
        ApplyConfigRequest, ApplyConfigResponse, ConfirmConfigRequest, ConfirmConfigResponse,
        GetConfigRequest, GetConfigResponse, ListRevisionsRequest, ListRevisionsResponse,
        RollbackConfigRequest, RollbackConfigResponse,
    },
    time::UnixTime,
};

#[tonic::async_trait]
impl ConfigService for Context {
    async fn get_config(
        &self,
        request: Request<GetConfigRequest>,
    ) -> Result<Response<GetConfigResponse>, Status> {
        let revision = request.into_inner().revision;
        match self.control.revision(revision).await.map_err(error::store)? {
            Some(stored) => {
                let number = stored.revision.as_ref().map_or(0, |revision| revision.revision);
                let current = number == self.control.committed_revision();
                let confirm_deadline = match current {
                    true => self.control.confirm_deadline().await.map_err(error::store)?,
                    false => None,
                };
                Ok(Response::new(GetConfigResponse {
                    config: stored.config,
                    revision: stored.revision,
                    changes: stored.answer.map(|answer| answer.changes).unwrap_or_default(),
                    confirm_deadline: confirm_deadline.map(UnixTime::to_proto),
                }))
            }
            None if revision == 0 => Ok(Response::new(GetConfigResponse {
                config: Some(Default::default()),
                ..GetConfigResponse::default()
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

    async fn confirm_config(
        &self,
        request: Request<ConfirmConfigRequest>,
    ) -> Result<Response<ConfirmConfigResponse>, Status> {
        let author = author(request.extensions());
        let revision = self.control.confirm(request.into_inner().revision, author).await;
        let revision = revision.map_err(error::apply)?;
        Ok(Response::new(ConfirmConfigResponse { revision }))
    }

    async fn rollback_config(
        &self,
        request: Request<RollbackConfigRequest>,
    ) -> Result<Response<RollbackConfigResponse>, Status> {
        let author = author(request.extensions());
        let applied = self.control.roll_back(request.into_inner(), author).await;
        let ApplyConfigResponse { revision, changes, warnings, confirm_deadline } =
            applied.map_err(error::apply)?;
        Ok(Response::new(RollbackConfigResponse { revision, changes, warnings, confirm_deadline }))
    }

    async fn list_revisions(
        &self,
        _: Request<ListRevisionsRequest>,
    ) -> Result<Response<ListRevisionsResponse>, Status> {
        let revisions = self.control.revisions().await.map_err(error::store)?;
        Ok(Response::new(ListRevisionsResponse { revisions }))
    }
}
