//! Pages of a configuration document: server, storage and export first, then control connections,
//! then changes.

use std::collections::BTreeSet;

use tonic::Status;

use super::page::{Page, PageRequest};
use crate::proto::{AgentConfig, Change, ClientConfig, ControlConnection, GetConfigResponse};

/// Position of a part within the document of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DocumentKey {
    pub(super) revision: u64,
    index: u64,
}

impl From<[u8; 16]> for DocumentKey {
    fn from(key: [u8; 16]) -> Self {
        let key = u128::from_be_bytes(key);
        Self { revision: (key >> 64) as u64, index: key as u64 }
    }
}

impl From<DocumentKey> for Vec<u8> {
    fn from(DocumentKey { revision, index }: DocumentKey) -> Self {
        [revision.to_be_bytes(), index.to_be_bytes()].concat()
    }
}

/// Cuts a page out of the whole answer of GetConfig. With `names`, the document is reduced to the
/// control connections of these names.
pub(super) fn document_page(
    mut whole: GetConfigResponse,
    revision: u64,
    names: &[String],
    request: &PageRequest,
) -> Result<GetConfigResponse, Status> {
    let mut config = whole.config.take().unwrap_or_default();
    let client = config.client.as_mut();
    let mut connections =
        client.map(|client| std::mem::take(&mut client.control_connections)).unwrap_or_default();
    let mut changes = std::mem::take(&mut whole.changes);
    if !names.is_empty() {
        let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        connections.retain(|connection| names.contains(connection.name.as_str()));
        let found: BTreeSet<&str> = connections.iter().map(|c| c.name.as_str()).collect();
        if let Some(unknown) = names.difference(&found).next() {
            return Err(Status::not_found(format!(
                "connection {unknown:?} is not configured in revision {revision}"
            )));
        }
        let is_wanted =
            |path: &str| path.strip_prefix("client/").is_some_and(|n| names.contains(n));
        changes.retain(|change| is_wanted(&change.path));
        config = AgentConfig::default();
    }
    let connections = connections.into_iter().map(with_connection);
    let parts = std::iter::once(with_config(config))
        .chain(connections)
        .chain(changes.into_iter().map(with_change));
    let mut page = Page::new(request);
    for (index, part) in (0..).zip(parts) {
        if !page.push(part, DocumentKey { revision, index }.into()) {
            break;
        }
    }
    let (parts, next_page_token) = page.finish();
    let config = Some(AgentConfig::default());
    let mut answer = GetConfigResponse { config, next_page_token, ..whole };
    parts.into_iter().for_each(|part| append(&mut answer, part));
    Ok(answer)
}

fn with_config(config: AgentConfig) -> GetConfigResponse {
    GetConfigResponse { config: Some(config), ..GetConfigResponse::default() }
}

fn with_connection(connection: ControlConnection) -> GetConfigResponse {
    let client = Some(ClientConfig { control_connections: vec![connection] });
    with_config(AgentConfig { client, ..AgentConfig::default() })
}

fn with_change(change: Change) -> GetConfigResponse {
    GetConfigResponse { changes: vec![change], ..GetConfigResponse::default() }
}

fn append(answer: &mut GetConfigResponse, part: GetConfigResponse) {
    answer.changes.extend(part.changes);
    let Some(AgentConfig { client, server, storage, export }) = part.config else { return };
    let config = answer.config.get_or_insert_default();
    if let Some(client) = client {
        let connections = &mut config.client.get_or_insert_default().control_connections;
        connections.extend(client.control_connections);
    }
    config.server = config.server.take().or(server);
    config.storage = config.storage.take().or(storage);
    config.export = config.export.take().or(export);
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        api::page::PAGE_BYTES,
        proto::{GetConfigRequest, ServerConfig, StorageConfig},
    };

    fn document(count: usize) -> GetConfigResponse {
        let connection = |index| ControlConnection {
            name: format!("c{index}"),
            description: "x".repeat(900),
            ..ControlConnection::default()
        };
        let change = |index| Change { path: format!("client/c{index}"), ..Change::default() };
        GetConfigResponse {
            config: Some(AgentConfig {
                client: Some(ClientConfig {
                    control_connections: (0..count).map(connection).collect(),
                }),
                server: Some(ServerConfig { inactive: true, ..ServerConfig::default() }),
                storage: Some(StorageConfig::default()),
                export: None,
            }),
            changes: (0..count).map(change).collect(),
            ..GetConfigResponse::default()
        }
    }

    fn read_all(whole: &GetConfigResponse, size: u32) -> (GetConfigResponse, usize) {
        let (mut read, mut token, mut pages) = (GetConfigResponse::default(), String::new(), 0);
        loop {
            let request = PageRequest::new(&GetConfigRequest::default(), size, &token).unwrap();
            let mut page = document_page(whole.clone(), 7, &[], &request).unwrap();
            assert!(page.encoded_len() <= PAGE_BYTES + 1024);
            token = std::mem::take(&mut page.next_page_token);
            read.merge(page.encode_to_vec().as_slice()).unwrap();
            pages += 1;
            if token.is_empty() {
                return (read, pages);
            }
            let request = PageRequest::new(&GetConfigRequest::default(), size, &token).unwrap();
            let key = request.fixed_key::<16>().unwrap().map(DocumentKey::from).unwrap();
            assert_eq!(key.revision, 7);
        }
    }

    #[test]
    fn pages_merge_to_the_whole_document() {
        let whole = document(10_000);
        assert_eq!(read_all(&whole, 0).0, whole);
        let small = document(5);
        assert_eq!(read_all(&small, 3), (small.clone(), 4));
        let empty =
            GetConfigResponse { config: Some(AgentConfig::default()), ..Default::default() };
        assert_eq!(read_all(&empty, 1), (empty.clone(), 1));
    }

    #[test]
    fn names_select_connections_and_their_changes() {
        let request = PageRequest::new(&GetConfigRequest::default(), 0, "").unwrap();
        let names = ["c3".to_owned(), "c1".to_owned()];
        let page = document_page(document(5), 1, &names, &request).unwrap();
        let config = page.config.unwrap();
        let connections = config.client.unwrap().control_connections;
        let found: Vec<&str> = connections.iter().map(|c| c.name.as_str()).collect();
        assert_eq!((found, config.server, page.changes.len()), (vec!["c1", "c3"], None, 2));
        let unknown = document_page(document(5), 1, &["c9".to_owned()], &request).unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
    }
}
