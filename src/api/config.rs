//! `ConfigService`: commits, confirmations and revisions.

use prost::Message;
use tonic::{Request, Response, Status};

use super::{
    Context,
    document_page::{DocumentKey, document_page},
    error,
    layers::author,
    page::{ITEM_OVERHEAD_BYTES, PAGE_BYTES, PageRequest},
    services::config_service_server::ConfigService,
};
use crate::{
    control::Admission,
    proto::{
        ApplyConfigRequest, ApplyConfigResponse, Change, ConfirmConfigRequest,
        ConfirmConfigResponse, GetConfigRequest, GetConfigResponse, ListRevisionsRequest,
        ListRevisionsResponse, Revision, RollbackConfigRequest, RollbackConfigResponse,
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
        let admission = request.extensions().get::<Admission>().cloned().unwrap_or_default();
        let applied = self.control.apply(request.into_inner(), author, admission).await;
        applied.map(|applied| Response::new(bounded(applied))).map_err(error::apply)
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
            applied.map(bounded).map_err(error::apply)?;
        Ok(Response::new(RollbackConfigResponse { revision, changes, warnings, confirm_deadline }))
    }

    async fn list_revisions(
        &self,
        request: Request<ListRevisionsRequest>,
    ) -> Result<Response<ListRevisionsResponse>, Status> {
        let ListRevisionsRequest { page_size, page_token } = request.into_inner();
        let page = PageRequest::new(&ListRevisionsRequest::default(), page_size, &page_token)?;
        let revisions = self.control.revisions().await.map_err(error::store)?;
        // Page keys must ascend and revisions are listed in descending order, so the key is the
        // bitwise complement.
        let key = |revision: &Revision| (!revision.revision).to_be_bytes().to_vec();
        let (revisions, next_page_token) = page.cut(revisions, key);
        Ok(Response::new(ListRevisionsResponse { revisions, next_page_token }))
    }
}

/// Shortens an answer to [`PAGE_BYTES`], because a client that rejects a longer answer would not learn
/// that the revision was committed. Keeps path, kind and effect of every change, then as many warnings
/// as fit, and then the details (`fields` and `sessions`) of as many changes as fit.
fn bounded(mut answer: ApplyConfigResponse) -> ApplyConfigResponse {
    let details: Vec<Change> = answer.changes.iter_mut().map(take_details).collect();
    let changes = answer.changes.iter().map(|change| change.encoded_len() + ITEM_OVERHEAD_BYTES);
    let mut left = PAGE_BYTES.saturating_sub(changes.sum());
    let mut fits = |bytes: usize| {
        // Once an item does not fit, `left` is 0 and no later item fits.
        left = left.saturating_sub(bytes);
        left > 0
    };
    let warnings = answer.warnings.len();
    let is_kept = |warning: &&String| fits(warning.len() + ITEM_OVERHEAD_BYTES);
    let kept = answer.warnings.iter().take_while(is_kept).count();
    if kept < warnings {
        answer.warnings.truncate(kept);
        answer.warnings.push(format!("{} more warnings", warnings - kept));
    }
    for (change, details) in answer.changes.iter_mut().zip(details) {
        if details == Change::default() {
            continue;
        }
        change.details_omitted = !fits(details.encoded_len());
        if !change.details_omitted {
            (change.sessions, change.fields) = (details.sessions, details.fields);
        }
    }
    answer
}

fn take_details(change: &mut Change) -> Change {
    Change {
        sessions: std::mem::take(&mut change.sessions),
        fields: std::mem::take(&mut change.fields),
        ..Change::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::FieldChange;

    fn answer(changes: usize, value_len: usize, warnings: usize) -> ApplyConfigResponse {
        let field = FieldChange {
            path: "description".into(),
            before: "x".repeat(value_len),
            after: "y".repeat(value_len),
        };
        let change = |index| Change {
            path: format!("client/{index:064}"),
            sessions: vec!["s".into()],
            fields: vec![field.clone()],
            ..Change::default()
        };
        ApplyConfigResponse {
            revision: 7,
            changes: (0..changes).map(change).collect(),
            warnings: (0..warnings).map(|index| format!("{index:0100}")).collect(),
            ..ApplyConfigResponse::default()
        }
    }

    #[test]
    fn an_answer_about_everything_fits_into_the_limit_of_common_clients() {
        let paths = |answer: &ApplyConfigResponse| -> Vec<String> {
            answer.changes.iter().map(|change| change.path.clone()).collect()
        };
        for (changes, value_len, warnings) in
            [(20_000, 200, 0), (40_000, 200, 20_000), (40_000, 0, 0), (100, 200, 50_000)]
        {
            let whole = answer(changes, value_len, warnings);
            let bounded = bounded(whole.clone());
            let bytes = bounded.encoded_len();
            assert!(bytes <= 4 << 20, "{changes} {value_len} {warnings}: {bytes}");
            assert_eq!(paths(&bounded), paths(&whole));
            let omitted = bounded.changes.iter().filter(|change| change.details_omitted);
            let without = bounded.changes.iter().filter(|change| change.fields.is_empty());
            assert_eq!(omitted.count(), without.count());
            if bounded.warnings != whole.warnings {
                let rest = warnings + 1 - bounded.warnings.len();
                assert_eq!(bounded.warnings.last(), Some(&format!("{rest} more warnings")));
            }
        }
        let small = answer(50, 10, 3);
        assert_eq!(bounded(small.clone()), small);
    }
}
