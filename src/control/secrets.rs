//! Secrets in documents: stored, never shown. Documents are shown with a digest of each secret, made
//! with a key of this agent. A client may apply the digest in place of the secret, in the same field of
//! the same connection, key or exporter.

use std::collections::HashMap;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::{
    document::hexadecimal,
    proto::{AgentConfig, VisitSecrets},
    store::StoreError,
};

/// Number of bytes of the HMAC that a digest has.
const DIGEST_BYTES: usize = 16;

/// Key for the digests of secrets.
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
        hexadecimal(&mac.finalize().into_bytes()[..DIGEST_BYTES])
    }

    /// Replaces the secrets of a document by their digests.
    pub(super) fn redact(&self, mut document: AgentConfig) -> AgentConfig {
        document.visit_secrets("", &mut |_, secret, digest| {
            if !secret.is_empty() {
                *digest = self.digest(secret);
                *secret = String::new();
            }
        });
        document
    }

    /// Replaces the digests of a document by the secrets that `current` has in the same fields. A
    /// digest that matches no secret there is left in the document, and `parse` reports a violation.
    /// A secret in the document takes precedence over a digest. `current` is called only if a secret
    /// of the document is empty.
    pub(super) fn restore_secrets(
        &self,
        mut document: AgentConfig,
        current: impl FnOnce() -> Result<AgentConfig, StoreError>,
    ) -> Result<AgentConfig, StoreError> {
        let mut has_digest = false;
        document.visit_secrets("", &mut |_, secret, _| has_digest |= secret.is_empty());
        let mut known = HashMap::new();
        if has_digest {
            current()?.visit_secrets("", &mut |location, secret, _| {
                known.insert((location.to_owned(), self.digest(secret)), secret.clone());
            });
        }
        document.visit_secrets("", &mut |location, secret, digest| {
            if secret.is_empty()
                && let Some(found) = known.get(&(location.to_owned(), digest.clone()))
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

#[cfg(test)]
mod tests {
    use prost_reflect::{
        DescriptorPool, DynamicMessage, Kind, MessageDescriptor, ReflectMessage, Value,
    };

    use super::*;
    use crate::proto::{
        ClientConfig, ControlConnection, DESCRIPTORS, ExportConfig, Key, KeyChain, NatsExport,
        ServerConfig,
    };

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
    fn digests_can_be_applied_in_place_of_their_secrets() {
        let digester = Digester::new([7; 32]);
        let current = document("correct horse", "");
        let shown = digester.redact(current.clone());
        let (hidden, digest) = secret(&shown);
        assert_eq!((hidden, digest.len()), ("", 2 * DIGEST_BYTES));
        let again = digester.restore_secrets(shown.clone(), || Ok(current.clone())).unwrap();
        assert_eq!(again, current);
        assert_ne!(Digester::new([8; 32]).redact(current.clone()), shown, "other key");
        // An unknown digest is kept; a new secret takes precedence over an old digest.
        let unknown = document("", "00");
        assert_eq!(
            digester.restore_secrets(unknown.clone(), || Ok(current.clone())).unwrap(),
            unknown
        );
        let changed =
            digester.restore_secrets(document("new", digest), || Ok(current.clone())).unwrap();
        assert_eq!(secret(&changed), ("new", ""));
    }

    #[test]
    fn a_digest_is_replaced_only_in_the_field_of_its_secret() {
        let digester = Digester::new([7; 32]);
        let key = |key_id: &str, secret: &str, secret_digest: &str| Key {
            key_id: key_id.into(),
            secret: secret.into(),
            secret_digest: secret_digest.into(),
        };
        let server = |keys| {
            let key_chains = vec![KeyChain { name: "chain".into(), keys }];
            let server = ServerConfig { key_chains, ..ServerConfig::default() };
            AgentConfig { server: Some(server), ..AgentConfig::default() }
        };
        // A key is replaced by adding a second key with the same `key_id`.
        let current = server(vec![key("alice", "old", ""), key("alice", "new", "")]);
        let (old, new) = (digester.digest("old"), digester.digest("new"));
        let shown = server(vec![key("alice", "", &new), key("alice", "", &old)]);
        let restored = digester.restore_secrets(shown, || Ok(current.clone())).unwrap();
        assert_eq!(restored, server(vec![key("alice", "new", ""), key("alice", "old", "")]));
        let elsewhere = [
            server(vec![key("mallory", "", &old)]),
            AgentConfig {
                export: Some(ExportConfig {
                    nats: vec![NatsExport {
                        name: "alice".into(),
                        secret_digest: old.clone(),
                        ..NatsExport::default()
                    }],
                    ..ExportConfig::default()
                }),
                ..AgentConfig::default()
            },
            document("", &old),
        ];
        for document in elsewhere {
            let restored = digester.restore_secrets(document.clone(), || Ok(current.clone()));
            assert_eq!(restored.unwrap(), document);
        }
    }

    /// Returns a message in which every string, also of nested messages, is the same text.
    #[expect(clippy::wildcard_enum_match_arm, reason = "other kinds hold no secret")]
    fn filled(message: &MessageDescriptor) -> DynamicMessage {
        let mut all = DynamicMessage::new(message.clone());
        for field in message.fields().filter(|field| !field.is_map()) {
            let value = match field.kind() {
                Kind::String => Value::String("correct horse".into()),
                Kind::Message(part) if part.full_name().starts_with("twamp.") => {
                    Value::Message(filled(&part))
                }
                _ => continue,
            };
            let value = if field.is_list() { Value::List(vec![value]) } else { value };
            all.set_field(&field, value);
        }
        all
    }

    /// Adds the paths of all secrets that have a value, and the number of all secrets, to `found`.
    #[expect(clippy::wildcard_enum_match_arm, reason = "other kinds hold no secret")]
    fn secrets_with_value(message: &DynamicMessage, path: &str, found: &mut (Vec<String>, usize)) {
        for field in message.descriptor().fields() {
            let path = format!("{path}.{}", field.name());
            let options = field.options();
            let redacted = options.get_field_by_name("debug_redact");
            if redacted.is_some_and(|value| value.as_bool() == Some(true)) {
                found.1 += 1;
                if message.get_field(&field).as_str() != Some("") {
                    found.0.push(path.clone());
                }
            }
            match message.get_field(&field).as_ref() {
                Value::Message(part) if message.has_field(&field) => {
                    secrets_with_value(part, &path, found);
                }
                Value::List(parts) => {
                    for part in parts.iter().filter_map(Value::as_message) {
                        secrets_with_value(part, &path, found);
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn every_field_with_the_option_is_redacted() {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let descriptor = pool.get_message_by_name("twamp.agent.v1.AgentConfig").unwrap();
        let all = filled(&descriptor);
        let mut found = (Vec::new(), 0);
        secrets_with_value(&all, "", &mut found);
        assert_eq!((found.0.len(), found.1), (5, 5), "{:?}", found.0);
        let document: AgentConfig = all.transcode_to().unwrap();
        let redacted = Digester::new([7; 32]).redact(document.clone());
        let mut shown = DynamicMessage::new(descriptor);
        shown.transcode_from(&redacted).unwrap();
        let mut found = (Vec::new(), 0);
        secrets_with_value(&shown, "", &mut found);
        assert_eq!(found, (Vec::new(), 5));
        // `filled` sets all strings to the same text, so this checks that `Debug` omits the field, not
        // that the text is absent.
        let key = &document.server.as_ref().unwrap().key_chains[0].keys[0];
        assert!(!format!("{key:?}").contains("secret: "), "{key:?}");
    }

    #[test]
    fn every_field_that_sounds_like_a_secret_has_the_option() {
        const WORDS: [&str; 6] =
            ["secret", "password", "passphrase", "token", "private_key", "credential"];
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let messages = pool.all_messages().filter(|m| m.package_name() == "twamp.agent.v1");
        for field in messages.flat_map(|message| message.fields().collect::<Vec<_>>()) {
            let has_word = WORDS.iter().any(|word| field.name().contains(word));
            if has_word && !field.name().ends_with("_digest") && !field.name().starts_with("page_")
            {
                let option = field.options().get_field_by_name("debug_redact").is_some();
                assert!(option, "{}: debug_redact", field.full_name());
            }
        }
    }
}
