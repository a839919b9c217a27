//! Pages of a configuration document: storage and the server without its lists first, then entries
//! of these lists, exporters, control connections and changes, each a part of its own.

use std::collections::BTreeSet;

use tonic::Status;

use super::page::{Page, PageRequest};
use crate::proto::{
    AgentConfig, Change, ClientConfig, ControlConnection, ExportConfig, GetConfigResponse,
    ServerConfig,
};

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
    let (lists, exporters) = (take_lists(&mut config), take_exporters(&mut config));
    let parts = std::iter::once(config)
        .chain(lists)
        .chain(exporters)
        .chain(connections.into_iter().map(with_connection))
        .map(with_config)
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

fn with_connection(connection: ControlConnection) -> AgentConfig {
    let client = Some(ClientConfig { control_connections: vec![connection] });
    AgentConfig { client, ..AgentConfig::default() }
}

/// Removes the lists of the server that may have megabytes together; returns their entries.
fn take_lists(config: &mut AgentConfig) -> Vec<AgentConfig> {
    let Some(server) = &mut config.server else { return Vec::new() };
    let with = |server| AgentConfig { server: Some(server), ..AgentConfig::default() };
    let clients = std::mem::take(&mut server.client_list).into_iter();
    let clients =
        clients.map(|list| ServerConfig { client_list: vec![list], ..ServerConfig::default() });
    let chains = std::mem::take(&mut server.key_chains).into_iter();
    let chains =
        chains.map(|chain| ServerConfig { key_chains: vec![chain], ..ServerConfig::default() });
    clients.chain(chains).map(with).collect()
}

/// Removes the exporters, which have certificates and filters; returns each.
fn take_exporters(config: &mut AgentConfig) -> Vec<AgentConfig> {
    let Some(export) = &mut config.export else { return Vec::new() };
    let with = |export| AgentConfig { export: Some(export), ..AgentConfig::default() };
    let otlp = std::mem::take(&mut export.otlp).into_iter();
    let otlp = otlp.map(|otlp| ExportConfig { otlp: vec![otlp], ..ExportConfig::default() });
    let nats = std::mem::take(&mut export.nats).into_iter();
    let nats = nats.map(|nats| ExportConfig { nats: vec![nats], ..ExportConfig::default() });
    otlp.chain(nats).map(with).collect()
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
    match (&mut config.server, server) {
        (Some(whole), Some(part)) => {
            whole.client_list.extend(part.client_list);
            whole.key_chains.extend(part.key_chains);
        }
        (None, part) => config.server = part,
        (Some(_), None) => {}
    }
    match (&mut config.export, export) {
        (Some(whole), Some(part)) => {
            whole.otlp.extend(part.otlp);
            whole.nats.extend(part.nats);
        }
        (None, part) => config.export = part,
        (Some(_), None) => {}
    }
    config.storage = config.storage.take().or(storage);
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        api::page::PAGE_BYTES,
        proto::{
            ClientList, GetConfigRequest, Key, KeyChain, NatsExport, OtlpExport, PrometheusExport,
            StorageConfig,
        },
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
    fn lists_of_the_server_and_exporters_are_split_between_pages() {
        let name = |index| format!("{index:0192}");
        let key = |index| Key {
            key_id: format!("{index:060}"),
            secret_digest: "d".repeat(64),
            ..Key::default()
        };
        let keys: Vec<Key> = (0..1024).map(key).collect();
        let prefixes: Vec<String> = (0..1024).map(|i| format!("2001:db8:{i:x}::/128")).collect();
        let list = |i| ClientList { name: name(i), prefixes: prefixes.clone() };
        let chain = |i| KeyChain { name: name(i), keys: keys.clone() };
        let certificates = "x".repeat(65_536);
        let otlp = |i| OtlpExport {
            name: name(i),
            ca_certificates: certificates.clone(),
            ..OtlpExport::default()
        };
        let nats = |i| NatsExport {
            name: name(i),
            ca_certificates: certificates.clone(),
            ..NatsExport::default()
        };
        let mut whole = document(3);
        let config = whole.config.as_mut().unwrap();
        config.server = Some(ServerConfig {
            client_list: (0..64).map(list).collect(),
            key_chains: (0..64).map(chain).collect(),
            maximum_sessions: Some(7),
            ..ServerConfig::default()
        });
        config.export = Some(ExportConfig {
            prometheus: Some(PrometheusExport::default()),
            otlp: (0..8).map(otlp).collect(),
            nats: (0..8).map(nats).collect(),
        });
        assert!(whole.encoded_len() > 3 * PAGE_BYTES);
        let (read, pages) = read_all(&whole, 0);
        assert!(read == whole && pages > 3, "{pages} pages");
        let (read, pages) = read_all(&whole, 10);
        assert!(read == whole, "{pages} pages");
        assert_eq!(pages, (1 + 64 + 64 + 16 + 3 + 3usize).div_ceil(10));
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
