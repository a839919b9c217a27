//! `ConfigService`: commits, confirmations and revisions.

use tonic::{Request, Response, Status};

use super::{
    Context,
    connection::author,
    document_page::{DocumentKey, document_page},
    error,
    page::PageRequest,
    services::config_service_server::ConfigService,
};
use crate::{
    proto::{
        ApplyConfigRequest, ApplyConfigResponse, ConfirmConfigRequest, ConfirmConfigResponse,
        GetConfigRequest, GetConfigResponse, ListRevisionsRequest, ListRevisionsResponse, Revision,
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
        let GetConfigRequest { revision, connections, page_size, page_token } =
            request.into_inner();
        let rest = GetConfigRequest { revision, connections, ..GetConfigRequest::default() };
        let page = PageRequest::new(&rest, page_size, &page_token)?;
        // All pages come from one revision, whatever is committed between them.
        let revision =
            page.fixed_key::<16>()?.map_or(revision, |key| DocumentKey::from(key).revision);
        match self.control.revision(revision).await.map_err(error::store)? {
            Some(stored) => {
                let number = stored.revision.as_ref().map_or(0, |revision| revision.revision);
                let current = number == self.control.committed_revision();
                let confirm_deadline = match current {
                    true => self.control.confirm_deadline().await.map_err(error::store)?,
                    false => None,
                };
                let whole = GetConfigResponse {
                    config: stored.config,
                    revision: stored.revision,
                    changes: stored.answer.map(|answer| answer.changes).unwrap_or_default(),
                    confirm_deadline: confirm_deadline.map(UnixTime::to_proto),
                    next_page_token: String::new(),
                };
                document_page(whole, number, &rest.connections, &page).map(Response::new)
            }
            None if revision == 0 => {
                let nothing = GetConfigResponse::default();
                document_page(nothing, 0, &rest.connections, &page).map(Response::new)
            }
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
        request: Request<ListRevisionsRequest>,
    ) -> Result<Response<ListRevisionsResponse>, Status> {
        let ListRevisionsRequest { page_size, page_token } = request.into_inner();
        let page = PageRequest::new(&ListRevisionsRequest::default(), page_size, &page_token)?;
        let revisions = self.control.revisions().await.map_err(error::store)?;
        // Newest first: the complement rises.
        let key = |revision: &Revision| (!revision.revision).to_be_bytes().to_vec();
        let (revisions, next_page_token) = page.cut(revisions, key);
        Ok(Response::new(ListRevisionsResponse { revisions, next_page_token }))
    }
}
