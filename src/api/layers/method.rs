//! Methods of the API, as the `.proto` describes them.

use crate::proto::Role;

/// A method of the API.
#[derive(Debug)]
pub(in crate::api) struct Method {
    /// Path of its requests.
    pub(in crate::api) path: &'static str,
    /// Name without its service.
    pub(in crate::api) name: &'static str,
    /// Role that a caller needs.
    pub(in crate::api) role: Role,
    /// Its answer is a stream without end.
    pub(in crate::api) is_stream: bool,
}

/// Load that a method puts on the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Read,
    Change,
    Stream,
}

/// Health, reflection, and paths that do not exist.
pub(super) static OTHER: Method =
    Method { path: "", name: "other", role: Role::Viewer, is_stream: true };

impl Method {
    /// Returns the method with a path.
    pub(super) fn find(path: &str) -> &'static Self {
        METHODS.iter().find(|method| method.path == path).unwrap_or(&OTHER)
    }

    pub(super) fn class(&self) -> Class {
        match self.role {
            _ if self.is_stream => Class::Stream,
            Role::Operator | Role::Admin => Class::Change,
            Role::Unspecified | Role::Viewer | Role::Collector => Class::Read,
        }
    }

    /// Returns true for methods of this API, whose requests are one message.
    pub(super) fn is_own(&self) -> bool {
        !self.path.is_empty()
    }
}

include!(concat!(env!("OUT_DIR"), "/methods.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_the_roles_of_the_design() {
        let role = |name: &str| METHODS.iter().find(|method| method.name == name).unwrap().role;
        for (name, expected) in [
            ("GetConfig", Role::Viewer),
            ("StreamRecords", Role::Viewer),
            ("AckRecords", Role::Collector),
            ("StopConnections", Role::Operator),
            ("ApplyConfig", Role::Admin),
        ] {
            assert_eq!(role(name), expected, "{name}");
        }
        // Methods that read have names that say it.
        for method in METHODS.iter().filter(|method| method.role == Role::Viewer) {
            let reads = ["Get", "List", "Watch", "Stream"];
            assert!(reads.iter().any(|start| method.name.starts_with(start)), "{}", method.name);
        }
        assert_eq!(Method::find("/twamp.agent.v1.ConfigService/GetConfig").name, "GetConfig");
        assert_eq!(Method::find("/grpc.health.v1.Health/Check").name, "other");
    }
}
