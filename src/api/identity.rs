//! Identities of callers, and the roles that the settings give them.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use hyper::{HeaderMap, header::AUTHORIZATION};
use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use super::{settings::RoleRule, tls::common_name, tokens::Tokens};
use crate::{
    net::{TcpDirectory, overflow_uid, own_uid, tcp_owner_by_proc},
    proto::{Role, Word},
};

/// Identity of a caller of which nothing is known.
const ANONYMOUS: &str = "anonymous";
/// Characters of an identity from a certificate; anyone may have a certificate with a longer name.
const MAXIMUM_CHARACTERS: usize = 256;

/// Origin of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// Network, without TLS.
    #[default]
    Network,
    /// TLS without a certificate of the client.
    Tls,
    /// Unix socket, opened by this user.
    Unix(u32),
    /// TCP within this host.
    Loopback(LoopbackClient),
    /// TLS with a verified certificate, which names this identity.
    Certificate(String),
}

/// Client on this host over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoopbackClient {
    client: SocketAddr,
    own: SocketAddr,
    /// Owner of the client's end when the connection was accepted.
    uid: Option<u32>,
}

/// Identity and role of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) identity: String,
    /// UNSPECIFIED if the caller may do nothing.
    pub(super) role: Role,
}

/// Identities of callers and their roles.
#[derive(Debug)]
pub(super) struct Identities {
    rules: Vec<RoleRule>,
    own_uid: u32,
    tokens: Option<Tokens>,
    owners: Owners,
}

/// Owners of the sockets of this host.
#[derive(Debug)]
pub(super) struct Owners {
    /// Kept open: at the limit of files, no other could be opened. `None` where the kernel or a
    /// sandbox has no netlink.
    directory: Option<Mutex<TcpDirectory>>,
    overflow_uid: u32,
}

impl Owners {
    pub(super) fn open() -> Self {
        Self { directory: TcpDirectory::open().ok().map(Mutex::new), overflow_uid: overflow_uid() }
    }

    /// Returns the user that owns the client's end of a connection over loopback; `None` for one that
    /// is closed, which the kernel shows as root's.
    fn of_connection(&self, client: SocketAddr, own: SocketAddr) -> Option<u32> {
        let owner = match &self.directory {
            Some(directory) => {
                directory.lock().unwrap_or_else(PoisonError::into_inner).owner(client, own)
            }
            None => tcp_owner_by_proc(client, own),
        };
        owner.filter(|owner| *owner != self.overflow_uid)
    }
}

impl Identities {
    pub(super) fn new(rules: Vec<RoleRule>, tokens: Option<Tokens>) -> Self {
        for rule in &rules {
            let is_open = |identity: &&String| ["*", ANONYMOUS].contains(&identity.as_str());
            if let Some(identity) = rule.identities.iter().find(is_open) {
                let role = rule.role.word();
                tracing::warn!(role, identity, "role for callers without an identity");
            }
        }
        Self { rules, own_uid: own_uid(), tokens, owners: Owners::open() }
    }

    /// Returns the client behind a connection over loopback.
    pub(super) fn loopback(&self, client: SocketAddr, own: SocketAddr) -> LoopbackClient {
        LoopbackClient { client, own, uid: self.owners.of_connection(client, own) }
    }

    /// Identifies the caller behind a connection. For a request that `commands`, the owner of a socket
    /// on loopback is looked up again, since it may have closed the socket.
    pub(super) fn caller(&self, origin: &Origin, headers: &HeaderMap, commands: bool) -> Caller {
        let identity = match origin {
            // Whoever shows a token is known by it alone. Without TLS, others could have read it.
            Origin::Tls | Origin::Certificate(_) | Origin::Unix(_) | Origin::Loopback(_)
                if headers.contains_key(AUTHORIZATION) =>
            {
                let name = self.tokens.as_ref().and_then(|tokens| tokens.identify(headers));
                name.map_or_else(|| ANONYMOUS.to_owned(), |name| format!("token:{name}"))
            }
            Origin::Network | Origin::Tls => ANONYMOUS.to_owned(),
            Origin::Unix(uid) => format!("uid:{uid}"),
            Origin::Loopback(client) => {
                let is_same =
                    |uid: &u32| self.owners.of_connection(client.client, client.own) == Some(*uid);
                // An end that was closed shows another owner.
                let uid = client.uid.filter(|uid| !commands || is_same(uid));
                uid.map_or_else(|| ANONYMOUS.to_owned(), |uid| format!("uid:{uid}"))
            }
            Origin::Certificate(name) => format!("cert:{name}"),
        };
        let role = self.role(&identity);
        Caller { identity, role }
    }

    /// Returns the highest role of an identity.
    fn role(&self, identity: &str) -> Role {
        if self.rules.is_empty() {
            return self.default_role(identity);
        }
        let matching = self
            .rules
            .iter()
            .filter(|rule| rule.identities.iter().any(|pattern| matches(pattern, identity)));
        matching.map(|rule| rule.role).max().unwrap_or(Role::Unspecified)
    }

    /// Returns the role without any rule: root and the user of the agent command it, other users of
    /// the host and holders of a certificate read.
    fn default_role(&self, identity: &str) -> Role {
        match identity.split_once(':') {
            Some(("uid", uid)) => match uid.parse::<u32>() {
                Ok(uid) if uid == 0 || uid == self.own_uid => Role::Admin,
                _ => Role::Viewer,
            },
            Some(("cert", _)) => Role::Viewer,
            _ => Role::Unspecified,
        }
    }
}

/// Returns whether a pattern of a rule names an identity.
fn matches(pattern: &str, identity: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => identity.starts_with(start),
        None => pattern == identity,
    }
}

/// Returns the identity in a certificate: the first of SPIFFE URI, other URI, DNS name, e-mail
/// address and common name (RFC 5280 §4.2.1.6).
pub(super) fn certificate_identity(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let names = parsed.tbs_certificate.get::<SubjectAltName>().ok().flatten();
    let names = names.map(|(_, names)| names.0).unwrap_or_default();
    let mut found: [Option<&str>; 4] = [None; 4];
    for name in &names {
        let (rank, text) = match name {
            GeneralName::UniformResourceIdentifier(uri)
                if uri.as_str().starts_with("spiffe://") =>
            {
                (0, uri.as_str())
            }
            GeneralName::UniformResourceIdentifier(uri) => (1, uri.as_str()),
            GeneralName::DnsName(dns) => (2, dns.as_str()),
            GeneralName::Rfc822Name(mail) => (3, mail.as_str()),
            GeneralName::DirectoryName(_)
            | GeneralName::EdiPartyName(_)
            | GeneralName::IpAddress(_)
            | GeneralName::OtherName(_)
            | GeneralName::RegisteredId(_) => continue,
        };
        found[rank].get_or_insert(text);
    }
    let name = found.into_iter().flatten().next();
    let name = name.map(str::to_owned).or_else(|| common_name(certificate))?;
    let is_plain = |letter: char| !letter.is_control();
    (!name.is_empty() && name.chars().count() <= MAXIMUM_CHARACTERS && name.chars().all(is_plain))
        .then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(role: Role, identities: &[&str]) -> RoleRule {
        RoleRule { role, identities: identities.iter().map(|one| (*one).to_owned()).collect() }
    }

    #[test]
    fn without_rules_root_and_the_own_user_command_and_others_read() {
        let identities =
            Identities { rules: Vec::new(), own_uid: 71, tokens: None, owners: Owners::open() };
        for (identity, role) in [
            ("uid:0", Role::Admin),
            ("uid:71", Role::Admin),
            ("uid:1000", Role::Viewer),
            ("uid:", Role::Viewer),
            ("cert:spiffe://example.org/noc", Role::Viewer),
            ("anonymous", Role::Unspecified),
            ("tunnel:north", Role::Unspecified),
            ("token:grafana", Role::Unspecified),
        ] {
            assert_eq!(identities.role(identity), role, "{identity}");
        }
    }

    #[test]
    fn the_highest_role_of_the_rules_counts() {
        let rules = vec![
            rule(Role::Viewer, &["cert:*", "uid:1000"]),
            rule(Role::Admin, &["cert:spiffe://example.org/noc/*"]),
            rule(Role::Operator, &["uid:1000"]),
        ];
        let identities = Identities { rules, own_uid: 71, tokens: None, owners: Owners::open() };
        for (identity, role) in [
            ("cert:spiffe://example.org/noc/anna", Role::Admin),
            ("cert:spiffe://example.org/nocturnal", Role::Viewer),
            ("uid:1000", Role::Operator),
            ("uid:10000", Role::Unspecified),
            ("uid:0", Role::Unspecified),
            ("anonymous", Role::Unspecified),
        ] {
            assert_eq!(identities.role(identity), role, "{identity}");
        }
    }
}
