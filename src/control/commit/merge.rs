//! Merge of single entries of `server.client_list` and `server.key_chains` into the configured
//! server.

use std::collections::HashMap;

use crate::{
    model::Violation,
    proto::{AgentConfig, ClientList, KeyChain, LightReflector, ServerConfig},
};

/// List of the server whose entries have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Clients,
    KeyChains,
}

/// Entries that a request gives and entries that it deletes.
#[derive(Debug)]
pub(super) struct ServerEntries<'a> {
    given: Option<ServerConfig>,
    /// Index in `delete`, path, list and name of each deleted entry.
    deleted: Vec<(usize, &'a str, List, &'a str)>,
    /// True if the request gives the whole server.
    replaces_server: bool,
}

fn parse_list_entry(part: &str) -> Option<(List, &str)> {
    let clients = part.strip_prefix("server/client_list/").map(|name| (List::Clients, name));
    clients.or_else(|| part.strip_prefix("server/key_chains/").map(|name| (List::KeyChains, name)))
}

/// Returns true if `part` is the path of a list entry, not of a connection or a section.
pub(super) fn is_list_entry(part: &str) -> bool {
    parse_list_entry(part).is_some()
}

fn has_only_entries(server: &ServerConfig) -> bool {
    let mut without_entries = server.clone();
    without_entries.client_list.clear();
    without_entries.key_chains.clear();
    without_entries == ServerConfig::default() && without_entries != *server
}

impl<'a> ServerEntries<'a> {
    /// Takes the entries out of a request. `given` keeps its server only if that has more than
    /// entries, and therefore replaces the configured server.
    pub(super) fn extract(given: &mut AgentConfig, delete: &'a [String]) -> Self {
        let entries = given.server.take_if(|server| has_only_entries(server));
        let deleted = delete.iter().enumerate().filter_map(|(index, part)| {
            let (list, name) = parse_list_entry(part)?;
            Some((index, part.as_str(), list, name))
        });
        Self { given: entries, deleted: deleted.collect(), replaces_server: given.server.is_some() }
    }

    /// Returns the document in which the given parts are checked, so that violations have paths of the
    /// request. The entries get a server around them that is valid without them.
    pub(super) fn to_check(&self, given: &AgentConfig) -> AgentConfig {
        let Some(entries) = &self.given else { return given.clone() };
        let prefixes = vec!["::1/128".to_owned()];
        let light = LightReflector { prefixes, ..LightReflector::default() };
        let server = ServerConfig { light: Some(light), ..entries.clone() };
        AgentConfig { server: Some(server), ..given.clone() }
    }

    /// Applies the entries to the merged document.
    pub(super) fn apply(self, document: &mut AgentConfig, violations: &mut Vec<Violation>) {
        let mut report = |field: String, description: String| {
            violations.push(Violation { field, description });
        };
        let given = self.given.unwrap_or_default();
        let has_given = given != ServerConfig::default();
        let mut nothing = ServerConfig::default();
        let has_server = document.server.is_some();
        let server = document.server.as_mut().unwrap_or(&mut nothing);
        for (index, part, list, name) in self.deleted {
            let also_given = match list {
                List::Clients => given.client_list.iter().any(|entry| entry.name == name),
                List::KeyChains => given.key_chains.iter().any(|entry| entry.name == name),
            };
            let shown: String = part.chars().take(240).collect();
            let error = if self.replaces_server {
                "is part of the server, which the document replaces as a whole"
            } else if also_given {
                "is also in the document"
            } else if !remove(server, list, name) {
                "is not configured, or named twice"
            } else {
                continue;
            };
            report(format!("delete[{index}]"), format!("{shown:?} {error}"));
        }
        if has_given && !has_server {
            let error = "no server is configured to which entries of client_list and key_chains \
                         could be added: give a whole server";
            report("server".into(), error.into());
        }
        put(&mut server.client_list, given.client_list, |entry: &ClientList| &entry.name);
        put(&mut server.key_chains, given.key_chains, |entry: &KeyChain| &entry.name);
    }
}

fn remove(server: &mut ServerConfig, list: List, name: &str) -> bool {
    let count = |server: &ServerConfig| server.client_list.len() + server.key_chains.len();
    let before = count(server);
    match list {
        List::Clients => server.client_list.retain(|entry| entry.name != name),
        List::KeyChains => server.key_chains.retain(|entry| entry.name != name),
    }
    count(server) < before
}

fn put<T>(existing: &mut Vec<T>, given: Vec<T>, name: impl Fn(&T) -> &str) {
    let index_by_name: HashMap<String, usize> =
        existing.iter().enumerate().map(|(index, entry)| (name(entry).to_owned(), index)).collect();
    for entry in given {
        match index_by_name.get(name(&entry)) {
            Some(index) => existing[*index] = entry,
            None => existing.push(entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::parse, proto::Key};

    fn clients(name: &str, prefix: &str) -> ClientList {
        ClientList { name: name.into(), prefixes: vec![prefix.into()] }
    }

    fn chain(name: &str, secret: &str) -> KeyChain {
        let key = Key { key_id: name.into(), secret: secret.into(), ..Key::default() };
        KeyChain { name: name.into(), keys: vec![key] }
    }

    fn with_server(server: ServerConfig) -> AgentConfig {
        AgentConfig { server: Some(server), ..AgentConfig::default() }
    }

    fn configured() -> AgentConfig {
        with_server(ServerConfig {
            client_list: vec![clients("a", "10.0.0.0/8"), clients("fleet/p/b", "192.0.2.1")],
            key_chains: vec![chain("k", "1"), chain("fleet/p/k", "1")],
            maximum_sessions: Some(7),
            ..ServerConfig::default()
        })
    }

    fn merge(
        mut given: AgentConfig,
        delete: &[&str],
        mut document: AgentConfig,
    ) -> Result<ServerConfig, Vec<Violation>> {
        let delete: Vec<String> = delete.iter().map(ToString::to_string).collect();
        let entries = ServerEntries::extract(&mut given, &delete);
        let mut violations = parse(&entries.to_check(&given)).err().unwrap_or_default();
        document.server = given.server.or(document.server);
        entries.apply(&mut document, &mut violations);
        if violations.is_empty() { Ok(document.server.unwrap()) } else { Err(violations) }
    }

    fn fields(violations: &[Violation]) -> Vec<&str> {
        violations.iter().map(|violation| violation.field.as_str()).collect()
    }

    #[test]
    fn entries_are_added_replaced_and_removed_one_by_one() {
        let given = with_server(ServerConfig {
            client_list: vec![clients("a", "10.1.0.0/16"), clients("fleet/q/c", "192.0.2.9")],
            key_chains: vec![chain("fleet/q/k", "2")],
            ..ServerConfig::default()
        });
        let delete = ["server/client_list/fleet/p/b", "server/key_chains/k"];
        let merged = merge(given, &delete, configured()).unwrap();
        assert_eq!(
            merged.client_list,
            [clients("a", "10.1.0.0/16"), clients("fleet/q/c", "192.0.2.9")]
        );
        assert_eq!(merged.key_chains, [chain("fleet/p/k", "1"), chain("fleet/q/k", "2")]);
        assert_eq!(merged.maximum_sessions, Some(7), "the rest of the server is kept");
    }

    #[test]
    fn a_server_with_anything_else_replaces_the_whole() {
        let given = with_server(ServerConfig {
            client_list: vec![clients("x", "10.1.0.0/16")],
            maximum_connections: Some(3),
            ..ServerConfig::default()
        });
        let merged = merge(given.clone(), &[], configured()).unwrap();
        assert_eq!(Some(merged), given.server);
        let refused = merge(given, &["server/client_list/a"], configured()).unwrap_err();
        assert_eq!(fields(&refused), ["delete[0]"]);
        assert!(refused[0].description.contains("as a whole"), "{refused:?}");
    }

    #[test]
    fn every_violation_is_reported_at_its_place_in_the_request() {
        let given = with_server(ServerConfig {
            client_list: vec![clients("a", "10.0.0.0/8"), clients("b b", "nonsense")],
            key_chains: vec![KeyChain { name: "empty".into(), keys: Vec::new() }],
            ..ServerConfig::default()
        });
        let delete = [
            "server/client_list/a",
            "server/client_list/unknown",
            "server/key_chains/k",
            "server/key_chains/k",
            "server/key_chains/",
        ];
        let refused = merge(given, &delete, configured()).unwrap_err();
        for field in [
            "server.client_list[1].name",
            "server.client_list[1].prefixes[0]",
            "delete[0]",
            "delete[1]",
            "delete[3]",
            "delete[4]",
        ] {
            assert!(fields(&refused).contains(&field), "{field}: {refused:?}");
        }
        assert!(!fields(&refused).contains(&"delete[2]"), "{refused:?}");
        assert!(fields(&refused).iter().any(|field| field.starts_with("server.key_chains[0]")));
    }

    #[test]
    fn entries_need_a_server() {
        let given = with_server(ServerConfig {
            client_list: vec![clients("a", "10.0.0.0/8")],
            ..ServerConfig::default()
        });
        let delete = ["server/key_chains/k"];
        let refused = merge(given, &delete, AgentConfig::default()).unwrap_err();
        assert_eq!(fields(&refused), ["delete[0]", "server"]);
    }
}
