//! Lists of the API, requested page by page.

use prost::Message;
use tonic::{Response, Status};

use super::{Connection, CtlError};
use crate::proto::{
    GetConfigRequest, GetConfigResponse, GetStatisticsRequest, GetStatisticsResponse,
    ListConnectionsRequest, ListConnectionsResponse, ListRevisionsRequest, ListRevisionsResponse,
    ListServerConnectionsRequest, ListServerConnectionsResponse, ListServerSessionsRequest,
    ListServerSessionsResponse,
};

/// A response that may be one page of several.
trait Paged: Message + Default {
    fn next_page_token(&mut self) -> &mut String;
}

macro_rules! paged {
    ($($answer:ty),* $(,)?) => {
        $(impl Paged for $answer {
            fn next_page_token(&mut self) -> &mut String {
                &mut self.next_page_token
            }
        })*
    };
}

paged!(
    GetConfigResponse,
    GetStatisticsResponse,
    ListConnectionsResponse,
    ListRevisionsResponse,
    ListServerConnectionsResponse,
    ListServerSessionsResponse,
);

/// Requests every page and merges them into one answer.
async fn read_all<P: Paged>(
    mut request: impl AsyncFnMut(String) -> Result<Response<P>, Status>,
) -> Result<P, CtlError> {
    let mut whole = P::default();
    loop {
        let page_token = std::mem::take(whole.next_page_token());
        let page = request(page_token).await?.into_inner();
        let merged = whole.merge(page.encode_to_vec().as_slice());
        merged.map_err(|error| CtlError::Output(std::io::Error::other(error)))?;
        if whole.next_page_token().is_empty() {
            return Ok(whole);
        }
    }
}

pub(super) async fn config(
    agent: &Connection,
    revision: u64,
) -> Result<GetConfigResponse, CtlError> {
    read_all(async |page_token| {
        let request = GetConfigRequest { revision, page_token, ..GetConfigRequest::default() };
        agent.config().get_config(request).await
    })
    .await
}

pub(super) async fn revisions(agent: &Connection) -> Result<ListRevisionsResponse, CtlError> {
    read_all(async |page_token| {
        let request = ListRevisionsRequest { page_token, ..ListRevisionsRequest::default() };
        agent.config().list_revisions(request).await
    })
    .await
}

pub(super) async fn connections(
    agent: &Connection,
    names: &[String],
) -> Result<ListConnectionsResponse, CtlError> {
    read_all(async |page_token| {
        let names = names.to_vec();
        let request = ListConnectionsRequest { names, page_token, page_size: 0 };
        agent.client().list_connections(request).await
    })
    .await
}

pub(super) async fn statistics(
    agent: &Connection,
    request: &GetStatisticsRequest,
) -> Result<GetStatisticsResponse, CtlError> {
    read_all(async |page_token| {
        let request = GetStatisticsRequest { page_token, ..request.clone() };
        agent.results().get_statistics(request).await
    })
    .await
}

pub(super) async fn server_connections(
    agent: &Connection,
) -> Result<ListServerConnectionsResponse, CtlError> {
    read_all(async |page_token| {
        let request = ListServerConnectionsRequest { page_token, page_size: 0 };
        agent.server().list_server_connections(request).await
    })
    .await
}

pub(super) async fn server_sessions(
    agent: &Connection,
) -> Result<ListServerSessionsResponse, CtlError> {
    read_all(async |page_token| {
        let request = ListServerSessionsRequest { page_token, ..Default::default() };
        agent.server().list_server_sessions(request).await
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Revision;

    #[tokio::test]
    async fn every_page_is_read_and_none_twice() {
        let mut asked = Vec::new();
        let whole: ListRevisionsResponse = read_all(async |page_token: String| {
            let number = page_token.len() as u64;
            asked.push(page_token);
            Ok(Response::new(ListRevisionsResponse {
                revisions: vec![Revision { revision: number + 1, ..Revision::default() }],
                next_page_token: if number < 2 { "x".repeat(asked.len()) } else { String::new() },
            }))
        })
        .await
        .unwrap();
        let numbers: Vec<u64> = whole.revisions.iter().map(|one| one.revision).collect();
        assert_eq!(
            (numbers, asked),
            (vec![1, 2, 3], vec![String::new(), "x".into(), "xx".to_owned()])
        );
        assert_eq!(whole.next_page_token, "");
    }
}
