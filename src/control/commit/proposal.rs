//! Proposed configurations: the complete document that a request results in, checked.

use prost::Message;
use sha2::{Digest, Sha256};

use super::{
    error::ApplyError,
    merge::{ServerEntries, is_list_entry},
};
use crate::{
    control::secrets::Digester,
    document::hexadecimal,
    model::{
        AgentConfig, Violation,
        limits::{CONFIRM_TIMEOUT, MAXIMUM_DELETED, MAXIMUM_TEXT_OCTETS},
        parse, parse_duration,
    },
    proto::{self, ApplyConfigRequest, ApplyMode, RollbackConfigRequest},
    store::StoreError,
};

/// A configuration that is proposed for a commit.
#[derive(Debug, Default)]
pub(super) struct Proposal {
    /// Document with its secrets in plain text.
    pub(super) document: proto::AgentConfig,
    pub(super) config: AgentConfig,
    pub(super) author: String,
    pub(super) comment: String,
    pub(super) expected_revision: Option<u64>,
    pub(super) validate_only: bool,
    pub(super) confirm_timeout_ns: Option<u64>,
    pub(super) request_id: String,
    /// Digest of everything in the request that has an effect.
    pub(super) request_digest: String,
    /// Revision that the document is taken from; 0 for a new document.
    pub(super) rollback_to: u64,
    /// True for an overdue rollback, which is committed without a check of the host's resources.
    pub(super) unconditional: bool,
}

impl Proposal {
    /// Builds the proposal of an ApplyConfig request.
    pub(super) fn from_apply(
        request: ApplyConfigRequest,
        author: String,
        request_digest: String,
        digester: &Digester,
        current: &dyn Fn() -> Result<proto::AgentConfig, StoreError>,
    ) -> Result<Self, ApplyError> {
        let mut violations = Vec::new();
        check_fields(&request, &mut violations);
        let is_merge = request.mode() == ApplyMode::Merge;
        let mut given = digester.restore_secrets(request.config.unwrap_or_default(), current)?;
        let document = if is_merge {
            // Violations name fields of the request, not of the merged document.
            let entries = ServerEntries::extract(&mut given, &request.delete);
            if let Err(mut wrong) = parse(&entries.to_check(&given)) {
                violations.append(&mut wrong);
            }
            let mut document = merge(current()?, given, &request.delete, &mut violations);
            entries.apply(&mut document, &mut violations);
            document
        } else {
            given
        };
        let proposal = Self {
            document,
            author,
            comment: request.comment,
            expected_revision: request.expected_revision,
            validate_only: request.validate_only,
            confirm_timeout_ns: parse_timeout(request.confirm_timeout, &mut violations),
            request_id: request.request_id,
            request_digest,
            ..Self::default()
        };
        proposal.parse(violations)
    }

    /// Builds the proposal of a RollbackConfig request; `document` is that of the named revision.
    pub(super) fn from_rollback(
        request: RollbackConfigRequest,
        author: String,
        document: proto::AgentConfig,
    ) -> Result<Self, ApplyError> {
        let mut violations = Vec::new();
        check_comment(&request.comment, &mut violations);
        let proposal = Self {
            document,
            author,
            comment: request.comment,
            expected_revision: request.expected_revision,
            validate_only: request.validate_only,
            confirm_timeout_ns: parse_timeout(request.confirm_timeout, &mut violations),
            rollback_to: request.revision,
            ..Self::default()
        };
        proposal.parse(violations)
    }

    /// Builds the rollback of a revision that was not confirmed in time.
    pub(super) fn for_overdue(
        unconfirmed: u64,
        rollback_to: u64,
        document: proto::AgentConfig,
    ) -> Result<Self, ApplyError> {
        let proposal = Self {
            document,
            author: "agent".into(),
            comment: format!("revision {unconfirmed} was not confirmed in time"),
            rollback_to,
            unconditional: true,
            ..Self::default()
        };
        proposal.parse(Vec::new())
    }

    /// Checks the document. `violations` are those found in the request so far.
    fn parse(mut self, mut violations: Vec<Violation>) -> Result<Self, ApplyError> {
        match parse(&self.document) {
            Ok(config) if violations.is_empty() => {
                self.config = config;
                Ok(self)
            }
            Ok(_) => Err(ApplyError::Invalid(violations)),
            // Violations of a given part are in `violations` already, with paths of the request.
            Err(_) if !violations.is_empty() => Err(ApplyError::Invalid(violations)),
            Err(found) => {
                violations.extend(found);
                Err(ApplyError::Invalid(violations))
            }
        }
    }
}

/// Returns a digest of the fields of a request that determine the new configuration and its rollback.
/// Secrets are replaced by their digests first, so that the returned digest does not help to guess
/// them.
pub(super) fn request_digest(request: &ApplyConfigRequest, digester: &Digester) -> String {
    let effective = ApplyConfigRequest {
        mode: request.mode().max(ApplyMode::Replace).into(),
        config: Some(digester.redact(request.config.clone().unwrap_or_default())),
        delete: request.delete.clone(),
        confirm_timeout: request.confirm_timeout,
        ..ApplyConfigRequest::default()
    };
    hexadecimal(&Sha256::digest(effective.encode_to_vec()))
}

/// Returns the digest of a document without secrets.
pub(super) fn digest(document: &proto::AgentConfig) -> String {
    hexadecimal(&Sha256::digest(document.encode_to_vec()))
}

fn report(violations: &mut Vec<Violation>, field: &str, description: String) {
    violations.push(Violation { field: field.into(), description });
}

fn check_fields(request: &ApplyConfigRequest, violations: &mut Vec<Violation>) {
    if ApplyMode::try_from(request.mode).is_err() {
        let mode = request.mode;
        let known = "1 (APPLY_MODE_REPLACE) or 2 (APPLY_MODE_MERGE)";
        report(violations, "mode", format!("{mode} is not a mode: expected 0, {known}"));
    }
    check_comment(&request.comment, violations);
    let id = &request.request_id;
    if !id.is_empty() && uuid::Uuid::try_parse(id).is_err() {
        let shown: String = id.chars().take(80).collect();
        report(violations, "request_id", format!("{shown:?} is not a UUID"));
    }
    if request.mode() != ApplyMode::Merge && !request.delete.is_empty() {
        let hint = "not valid with APPLY_MODE_REPLACE, which removes everything that the document \
                    does not name: to delete single parts, use APPLY_MODE_MERGE";
        report(violations, "delete", hint.into());
    }
    if request.delete.len() > MAXIMUM_DELETED {
        let parts = request.delete.len();
        report(violations, "delete", format!("{parts} parts: expected at most {MAXIMUM_DELETED}"));
    }
}

fn check_comment(comment: &str, violations: &mut Vec<Violation>) {
    if comment.len() > MAXIMUM_TEXT_OCTETS {
        let octets = comment.len();
        report(
            violations,
            "comment",
            format!("{octets} octets: expected at most {MAXIMUM_TEXT_OCTETS}"),
        );
    }
}

fn parse_timeout(
    given: Option<prost_types::Duration>,
    violations: &mut Vec<Violation>,
) -> Option<u64> {
    match parse_duration("confirm_timeout", given?, &CONFIRM_TIMEOUT) {
        Ok(nanoseconds) => Some(nanoseconds),
        Err(violation) => {
            violations.push(violation);
            None
        }
    }
}

/// Returns the current document after the deletion of the parts in `delete` and the addition of the
/// given parts, which replace existing parts of the same name.
fn merge(
    mut document: proto::AgentConfig,
    given: proto::AgentConfig,
    delete: &[String],
    violations: &mut Vec<Violation>,
) -> proto::AgentConfig {
    let connections = &mut document.client.get_or_insert_default().control_connections;
    let given_connections = given.client.unwrap_or_default().control_connections;
    let mut index_by_name: std::collections::HashMap<String, usize> =
        connections.iter().enumerate().map(|(index, c)| (c.name.clone(), index)).collect();
    let mut is_deleted = vec![false; connections.len()];
    let parts = delete.iter().enumerate().filter(|(_, part)| !is_list_entry(part));
    for (index, part) in parts {
        let name = part.strip_prefix("client/");
        let also_given = match (part.as_str(), name) {
            ("server", _) => given.server.is_some(),
            ("export", _) => given.export.is_some(),
            ("storage", _) => given.storage.is_some(),
            (_, Some(name)) => given_connections.iter().any(|c| c.name == name),
            _ => false,
        };
        let is_configured = match (part.as_str(), name) {
            ("server", _) => document.server.take().is_some(),
            ("export", _) => document.export.take().is_some(),
            ("storage", _) => document.storage.take().is_some(),
            (_, Some(name)) => match index_by_name.remove(name) {
                Some(position) => {
                    is_deleted[position] = true;
                    true
                }
                None => false,
            },
            _ => false,
        };
        let shown: String = part.chars().take(80).collect();
        let field = format!("delete[{index}]");
        if also_given {
            report(violations, &field, format!("{shown:?} is also in the document"));
        } else if !is_configured {
            let hint = "parts are `client/NAME`, `server`, `server/client_list/NAME`, \
                        `server/key_chains/NAME`, `export` and `storage`, each once";
            report(violations, &field, format!("{shown:?} is not configured: {hint}"));
        }
    }
    for connection in given_connections {
        match index_by_name.get(&connection.name) {
            Some(index) => connections[*index] = connection,
            None => {
                connections.push(connection);
                is_deleted.push(false);
            }
        }
    }
    let mut is_deleted = is_deleted.into_iter();
    connections.retain(|_| !is_deleted.next().unwrap_or(false));
    document.server = given.server.or(document.server);
    document.export = given.export.or(document.export);
    document.storage = given.storage.or(document.storage);
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ClientConfig, ControlConnection, ServerConfig, StorageConfig};

    fn document(names: &[(&str, &str)]) -> proto::AgentConfig {
        let connection = |(name, description): &(&str, &str)| ControlConnection {
            name: (*name).into(),
            description: (*description).into(),
            ..ControlConnection::default()
        };
        let control_connections = names.iter().map(connection).collect();
        proto::AgentConfig {
            client: Some(ClientConfig { control_connections }),
            ..proto::AgentConfig::default()
        }
    }

    fn names(document: &proto::AgentConfig) -> Vec<(&str, &str)> {
        let connections = &document.client.as_ref().unwrap().control_connections;
        connections.iter().map(|c| (c.name.as_str(), c.description.as_str())).collect()
    }

    #[test]
    fn a_merge_replaces_parts_as_a_whole_and_leaves_the_rest() {
        let current = proto::AgentConfig {
            server: Some(ServerConfig { inactive: true, ..ServerConfig::default() }),
            storage: Some(StorageConfig::default()),
            ..document(&[("a", "1"), ("b", "1"), ("c", "1")])
        };
        let mut violations = Vec::new();
        let delete = ["client/a".to_owned(), "storage".to_owned()];
        let given = document(&[("d", "2"), ("b", "2")]);
        let new = merge(current.clone(), given, &delete, &mut violations);
        assert_eq!(violations, []);
        assert_eq!(names(&new), [("b", "2"), ("c", "1"), ("d", "2")]);
        assert_eq!((new.server, new.storage), (current.server, None));
    }

    /// A merge into an empty document would remove every other connection.
    #[test]
    fn a_merge_fails_where_the_current_document_cannot_be_read() {
        let digester = Digester::new([7; 32]);
        let request = ApplyConfigRequest {
            mode: ApplyMode::Merge.into(),
            config: Some(document(&[("a", "1")])),
            ..ApplyConfigRequest::default()
        };
        let unreadable = || Err(StoreError::Damaged("configuration"));
        let made =
            Proposal::from_apply(request, String::new(), String::new(), &digester, &unreadable);
        assert!(matches!(made, Err(ApplyError::Store(StoreError::Damaged(_)))));
    }

    #[test]
    fn a_failed_deletion_is_reported_with_its_index() {
        let mut violations = Vec::new();
        let delete = ["client/x", "client/b", "server", "nonsense", "client/a", "client/a"];
        let delete: Vec<String> = delete.iter().map(ToString::to_string).collect();
        merge(document(&[("a", "")]), document(&[("b", "")]), &delete, &mut violations);
        let fields: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["delete[0]", "delete[1]", "delete[2]", "delete[3]", "delete[5]"]);
        assert!(violations[1].description.contains("also in the document"));
    }
}
