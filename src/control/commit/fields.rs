//! Lists the fields that differ in each changed part of the configuration. A part is one connection
//! or a whole section.

use std::collections::HashMap;

use prost::Message;

use crate::{
    document::{Fields, differences, to_value},
    proto::{AgentConfig, Change, ChangeKind, FieldChange},
};

/// Adds the changed fields to each changed part. Both documents must be without secrets.
pub(super) fn add_field_changes(
    changes: &mut [Change],
    before: &dyn Fn() -> AgentConfig,
    after: &AgentConfig,
) {
    let is_changed = |change: &&mut Change| change.kind() == ChangeKind::Changed;
    if !changes.iter().any(|change| change.kind() == ChangeKind::Changed) {
        return;
    }
    let before = before();
    let (before_index, after_index) = (index_by_name(&before), index_by_name(after));
    for change in changes.iter_mut().filter(is_changed) {
        let fields = match change.path.strip_prefix("client/") {
            Some(name) => {
                let connection = |document: &AgentConfig, index: &HashMap<&str, usize>| {
                    let connections = &document.client.as_ref()?.control_connections;
                    connections.get(*index.get(name)?).cloned()
                };
                let before = connection(&before, &before_index);
                let after = connection(after, &after_index);
                field_changes(before.as_ref(), after.as_ref(), "ControlConnection")
            }
            None if change.path == "server" => {
                field_changes(before.server.as_ref(), after.server.as_ref(), "ServerConfig")
            }
            None if change.path == "export" => {
                field_changes(before.export.as_ref(), after.export.as_ref(), "ExportConfig")
            }
            None => field_changes(before.storage.as_ref(), after.storage.as_ref(), "StorageConfig"),
        };
        change.fields = fields;
    }
}

fn index_by_name(document: &AgentConfig) -> HashMap<&str, usize> {
    let connections = document.client.iter().flat_map(|client| &client.control_connections);
    connections.enumerate().map(|(index, c)| (c.name.as_str(), index)).collect()
}

fn field_changes<M: Message + Default>(
    before: Option<&M>,
    after: Option<&M>,
    name: &str,
) -> Vec<FieldChange> {
    let nothing = M::default();
    let value = |message: Option<&M>| {
        to_value(message.unwrap_or(&nothing), name, Fields::Given).unwrap_or_default()
    };
    differences(&value(before), &value(after))
}
