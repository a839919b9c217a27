//! Names the fields that a change of a part changes.

use std::collections::HashMap;

use prost::Message;

use crate::{
    document::{Fields, differences, to_value},
    proto::{AgentConfig, Change, ChangeKind, FieldChange},
    store::StoreError,
};

/// Fills in the fields of the parts that are changed. Both documents are as they may be shown.
pub(super) fn name_fields(
    changes: &mut [Change],
    before: &dyn Fn() -> Result<AgentConfig, StoreError>,
    after: &AgentConfig,
) -> Result<(), StoreError> {
    let changed = |change: &&mut Change| change.kind() == ChangeKind::Changed;
    if !changes.iter().any(|change| change.kind() == ChangeKind::Changed) {
        return Ok(());
    }
    let before = before()?;
    let (before_places, after_places) = (places(&before), places(after));
    for change in changes.iter_mut().filter(changed) {
        let fields = match change.path.strip_prefix("client/") {
            Some(name) => {
                let connection = |document: &AgentConfig, places: &HashMap<&str, usize>| {
                    let connections = &document.client.as_ref()?.control_connections;
                    connections.get(*places.get(name)?).cloned()
                };
                let ends = (connection(&before, &before_places), connection(after, &after_places));
                of_messages(ends.0.as_ref(), ends.1.as_ref(), "ControlConnection")
            }
            None if change.path == "server" => {
                of_messages(before.server.as_ref(), after.server.as_ref(), "ServerConfig")
            }
            None if change.path == "export" => {
                of_messages(before.export.as_ref(), after.export.as_ref(), "ExportConfig")
            }
            None => of_messages(before.storage.as_ref(), after.storage.as_ref(), "StorageConfig"),
        };
        change.fields = fields;
    }
    Ok(())
}

fn places(document: &AgentConfig) -> HashMap<&str, usize> {
    let connections = document.client.iter().flat_map(|client| &client.control_connections);
    connections.enumerate().map(|(index, c)| (c.name.as_str(), index)).collect()
}

fn of_messages<M: Message + Default>(
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
