//! Documents that an earlier version accepted and this one refuses in parts.

use std::collections::BTreeSet;

use super::{Violation, parse};
use crate::{model::AgentConfig, proto};

/// Fields of control connections begin with this, their index and `]`.
const CONNECTION: &str = "client.control_connections[";

/// Checks a stored document without the parts that are not valid: control connections, the server,
/// the exporters and the storage. Returns the violations in those as well.
pub fn parse_valid_parts(document: &proto::AgentConfig) -> (AgentConfig, Vec<Violation>) {
    let (mut rest, mut refused) = (document.clone(), Vec::new());
    loop {
        match parse(&rest) {
            Ok(config) => return (config, refused),
            Err(violations) => {
                let before = rest.clone();
                remove_parts(&mut rest, &violations);
                refused.extend(violations);
                if rest == before {
                    return (AgentConfig::default(), refused);
                }
            }
        }
    }
}

fn remove_parts(document: &mut proto::AgentConfig, violations: &[Violation]) {
    let mut indices = BTreeSet::new();
    for Violation { field, .. } in violations {
        let index = field.strip_prefix(CONNECTION).and_then(|rest| rest.split_once(']'));
        if let Some(index) = index.and_then(|(index, _)| index.parse::<usize>().ok()) {
            indices.insert(index);
            continue;
        }
        match field.split(['.', '[']).next() {
            Some("server") => document.server = None,
            Some("export") => document.export = None,
            Some("storage") => document.storage = None,
            _ => document.client = None,
        }
    }
    if let Some(client) = &mut document.client {
        let mut index = 0;
        client.control_connections.retain(|_| {
            index += 1;
            !indices.contains(&(index - 1))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ClientConfig, ControlConnection, ServerConfig, TestSession};

    fn connection(name: &str, target: &str) -> ControlConnection {
        let test_sessions = vec![TestSession { name: "s1".into(), ..TestSession::default() }];
        ControlConnection {
            name: name.into(),
            target_address: target.into(),
            test_sessions,
            ..ControlConnection::default()
        }
    }

    #[test]
    fn valid_connections_stay_beside_refused_parts() {
        let connections = ["192.0.2.1", "224.0.0.1", "192.0.2.3", "a..b"];
        let names = ["a", "b", "c", "d"].into_iter().zip(connections);
        let client = ClientConfig {
            control_connections: names.map(|(name, target)| connection(name, target)).collect(),
        };
        let server = ServerConfig { maximum_sessions: Some(0), ..ServerConfig::default() };
        let document = proto::AgentConfig {
            client: Some(client),
            server: Some(server),
            ..proto::AgentConfig::default()
        };
        let (config, refused) = parse_valid_parts(&document);
        assert_eq!(config.connections.keys().collect::<Vec<_>>(), ["a", "c"]);
        assert!(config.server.is_none());
        let refused: Vec<&str> = refused.iter().map(|one| one.field.as_str()).collect();
        assert!(refused.iter().any(|field| field.starts_with("server")), "{refused:?}");
        assert!(refused.iter().any(|field| field.starts_with("client.control_connections[1]")));
    }
}
