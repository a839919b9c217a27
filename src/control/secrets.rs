//! Secrets in documents: kept, never given back. What is given back instead is a digest that only
//! this agent can make, so that it says which secret is meant and nothing else; a document with
//! digests in place of secrets can be applied again.

use std::collections::HashMap;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::{document::hexadecimal, proto::AgentConfig, store::StoreError};

/// Octets of a digest that are shown.
const DIGEST_OCTETS: usize = 16;

/// Makes digests.
#[derive(Clone)]
pub(super) struct Digester {
    mac: Hmac<Sha256>,
}

impl std::fmt::Debug for Digester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digester(..)")
    }
}

impl Digester {
    pub(super) fn new(key: [u8; 32]) -> Self {
        let mut block = [0; 64];
        block[..32].copy_from_slice(&key);
        Self { mac: <Hmac<Sha256> as Mac>::new(&block.into()) }
    }

    fn digest(&self, secret: &str) -> String {
        let mut mac = self.mac.clone();
        mac.update(secret.as_bytes());
        hexadecimal(&mac.finalize().into_bytes()[..DIGEST_OCTETS])
    }

    /// The document as it may be shown.
    pub(super) fn redacted(&self, mut document: AgentConfig) -> AgentConfig {
        each_secret(&mut document, |secret, digest| {
            if !secret.is_empty() {
                *digest = self.digest(secret);
                *secret = String::new();
            }
        });
        document
    }

    /// The document with its digests replaced by the secrets of `current` that they stand for. One
    /// that stands for none stays, for whoever checks the document to say so.
    pub(super) fn completed(
        &self,
        mut document: AgentConfig,
        current: impl FnOnce() -> Result<AgentConfig, StoreError>,
    ) -> Result<AgentConfig, StoreError> {
        let mut wanted = false;
        each_secret(&mut document, |secret, digest| {
            wanted |= secret.is_empty() && !digest.is_empty();
        });
        let mut known = HashMap::new();
        if wanted {
            each_secret(&mut current()?, |secret, _| {
                known.insert(self.digest(secret), secret.clone());
            });
        }
        each_secret(&mut document, |secret, digest| {
            if secret.is_empty()
                && let Some(found) = known.get(digest)
            {
                secret.clone_from(found);
            }
            if !secret.is_empty() {
                *digest = String::new();
            }
        });
        Ok(document)
    }
}

/// Every place for a secret, with that for its digest.
fn each_secret(document: &mut AgentConfig, mut visit: impl FnMut(&mut String, &mut String)) {
    let connections = document.client.iter_mut().flat_map(|client| &mut client.control_connections);
    connections.for_each(|c| visit(&mut c.secret, &mut c.secret_digest));
    if let Some(server) = &mut document.server {
        let keys = server.key_chains.iter_mut().flat_map(|chain| &mut chain.keys);
        let stamp = server.stamp.iter_mut().flat_map(|stamp| &mut stamp.keys);
        keys.chain(stamp).for_each(|key| visit(&mut key.secret, &mut key.secret_digest));
    }
    if let Some(export) = &mut document.export {
        export.otlp.iter_mut().for_each(|e| visit(&mut e.secret, &mut e.secret_digest));
        export.nats.iter_mut().for_each(|e| visit(&mut e.secret, &mut e.secret_digest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ClientConfig, ControlConnection};

    fn document(secret: &str, secret_digest: &str) -> AgentConfig {
        let connection = ControlConnection {
            secret: secret.into(),
            secret_digest: secret_digest.into(),
            ..ControlConnection::default()
        };
        let client = ClientConfig { control_connections: vec![connection] };
        AgentConfig { client: Some(client), ..AgentConfig::default() }
    }

    fn secret(document: &AgentConfig) -> (&str, &str) {
        let connection = &document.client.as_ref().unwrap().control_connections[0];
        (&connection.secret, &connection.secret_digest)
    }

    #[test]
    fn what_is_shown_can_be_applied_again_and_tells_nothing() {
        let digester = Digester::new([7; 32]);
        let current = document("correct horse", "");
        let shown = digester.redacted(current.clone());
        let (hidden, digest) = secret(&shown);
        assert_eq!((hidden, digest.len()), ("", 2 * DIGEST_OCTETS));
        let again = digester.completed(shown.clone(), || Ok(current.clone())).unwrap();
        assert_eq!(again, current);
        assert_ne!(Digester::new([8; 32]).redacted(current.clone()), shown, "of this agent alone");
        // A digest that stands for nothing stays; a new secret goes before an old digest.
        let unknown = document("", "00");
        assert_eq!(digester.completed(unknown.clone(), || Ok(current.clone())).unwrap(), unknown);
        let changed = digester.completed(document("new", digest), || Ok(current.clone())).unwrap();
        assert_eq!(secret(&changed), ("new", ""));
    }
}
