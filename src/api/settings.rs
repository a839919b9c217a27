//! Settings of the API: addresses and PEM files.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use crate::{
    model::ZonedAddress,
    proto::{Role, Word},
};

/// Addresses and TLS of the API, the section `api` of the settings.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiSettings {
    /// TCP addresses, a link-local one with its interface (`[fe80::1%eth0]:9862`); port 0 takes any
    /// free port.
    pub listen: Vec<ZonedAddress>,
    /// Path of a Unix socket; none by default.
    pub unix_socket: Option<PathBuf>,
    /// TLS for all TCP addresses; none by default.
    pub tls: Option<TlsSettings>,
    /// Offer the API without TLS to other hosts; callers from there are `anonymous`.
    pub allow_remote_without_tls: bool,
    /// Roles of identities. Without any, root and the agent's user are `admin`; other users of the
    /// host and holders of a certificate are `viewer`.
    pub roles: Vec<RoleRule>,
    /// File of tokens, read again when it changes; none by default.
    pub tokens: Option<PathBuf>,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 9862)).into()],
            unix_socket: None,
            tls: None,
            allow_remote_without_tls: false,
            roles: Vec::new(),
            tokens: None,
        }
    }
}

/// PEM files of the API, read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// Certificate of the agent, followed by its intermediate certificates.
    pub certificate: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
    /// Roots of client certificates; clients without such a certificate are refused.
    pub client_ca: Option<PathBuf>,
}

/// Rule of the settings: the role of some identities.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleRule {
    /// Role: `viewer`, `collector`, `operator` or `admin`.
    #[serde(deserialize_with = "role")]
    pub role: Role,
    /// Identities: `uid:N`, `cert:NAME`, `token:NAME`, `anonymous`; a `*` at the end stands for any
    /// rest.
    pub identities: Vec<String>,
}

fn role<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
    let word = String::deserialize(deserializer)?;
    let roles = [Role::Viewer, Role::Collector, Role::Operator, Role::Admin];
    let known = roles.into_iter().find(|role| role.word().eq_ignore_ascii_case(&word));
    known.ok_or_else(|| {
        let words = "`viewer`, `collector`, `operator` or `admin`";
        serde::de::Error::custom(format!("unknown role {word:?}, expected {words}"))
    })
}
