//! Keys, modes and extensions.

use std::collections::{HashMap, HashSet};

use super::{
    super::{AuthenticationMode, ControlType, Extensions, Key, Secret, limits},
    Check,
};
use crate::{proto, time::TimestampFormat};

/// Protection of a connection, as far as it is valid.
#[derive(Debug, Default)]
pub(super) struct ClientSecurity {
    pub(super) mode: AuthenticationMode,
    pub(super) key_id: String,
    pub(super) secret: Option<Secret>,
}

impl Check {
    pub(super) fn client_security(
        &mut self,
        c: &proto::ControlConnection,
        control_type: ControlType,
    ) -> ClientSecurity {
        let mode = self.authentication_mode("authentication_mode", c.authentication_mode);
        let managed = control_type == ControlType::Managed;
        let fits = match control_type {
            ControlType::Managed => true,
            ControlType::Light => mode == AuthenticationMode::None,
            ControlType::Stamp => {
                matches!(mode, AuthenticationMode::None | AuthenticationMode::Authenticated)
            }
        };
        if !fits {
            self.report(
                "authentication_mode",
                "LIGHT has no mode but NONE, STAMP none but NONE and AUTHENTICATED",
            );
        }
        let needs_key = mode != AuthenticationMode::None;
        let has_secret = !c.secret.is_empty() || !c.secret_digest.is_empty();
        let sessions = &c.test_sessions;
        let signs = sessions.iter().any(|s| s.stamp.as_ref().is_some_and(|s| s.sign_tlvs));
        let may_have_secret = needs_key || (control_type == ControlType::Stamp && signs);
        if managed && needs_key {
            self.key_id(&c.key_id);
        } else if !c.key_id.is_empty() {
            self.report(
                "key_id",
                "only valid for MANAGED with an authentication_mode other than NONE",
            );
        }
        if has_secret && !may_have_secret {
            self.report("secret", "only valid with an authentication_mode other than NONE");
        }
        let secret = (may_have_secret && (has_secret || needs_key || signs))
            .then(|| self.secret(&c.secret, &c.secret_digest));
        ClientSecurity { mode, key_id: c.key_id.clone(), secret }
    }

    pub(super) fn authentication_mode(&mut self, field: &str, value: i32) -> AuthenticationMode {
        match self.enumeration(field, value) {
            proto::AuthenticationMode::Unspecified | proto::AuthenticationMode::None => {
                AuthenticationMode::None
            }
            proto::AuthenticationMode::Authenticated => AuthenticationMode::Authenticated,
            proto::AuthenticationMode::Encrypted => AuthenticationMode::Encrypted,
            proto::AuthenticationMode::ControlOnlyEncrypted => {
                AuthenticationMode::ControlOnlyEncrypted
            }
        }
    }

    pub(super) fn authentication_modes(&mut self, values: &[i32]) -> Vec<AuthenticationMode> {
        let mut modes = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let field = format!("authentication_modes[{index}]");
            let mode = self.authentication_mode(&field, *value);
            if modes.contains(&mode) {
                self.report(&field, "appears twice in this list");
            }
            modes.push(mode);
        }
        if modes.is_empty() { vec![AuthenticationMode::None] } else { modes }
    }

    pub(super) fn key_chains(&mut self, chains: &[proto::KeyChain]) -> Vec<Key> {
        if chains.len() > limits::MAXIMUM_LISTS {
            let (count, most) = (chains.len(), limits::MAXIMUM_LISTS);
            self.report("key_chains", format!("{count} chains: expected at most {most}"));
        }
        let mut names = HashSet::new();
        let mut keys: Vec<Key> = Vec::new();
        let mut of_name: HashMap<String, Vec<Secret>> = HashMap::new();
        for (index, chain) in chains.iter().enumerate() {
            self.at(format!("key_chains[{index}]"), |check| {
                check.entry_name(&chain.name);
                if !names.insert(&chain.name) {
                    check.duplicate(&chain.name);
                }
                check.count_of_keys(chain.keys.len(), 1..=limits::MAXIMUM_KEYS);
                for (index, key) in chain.keys.iter().enumerate() {
                    check.at(format!("keys[{index}]"), |check| {
                        let key = check.key(key);
                        let known = of_name.entry(key.id.clone()).or_default();
                        if known.contains(&key.secret) {
                            check.report("secret", "this key appears twice");
                        }
                        known.push(key.secret.clone());
                        if known.len() > limits::MAXIMUM_KEYS_PER_NAME {
                            check.report(
                                "key_id",
                                format!(
                                    "{:?} is used more than {} times",
                                    key.id,
                                    limits::MAXIMUM_KEYS_PER_NAME
                                ),
                            );
                        }
                        keys.push(key);
                    });
                }
            });
        }
        keys
    }

    pub(super) fn count_of_keys(&mut self, count: usize, right: std::ops::RangeInclusive<usize>) {
        if !right.contains(&count) {
            let (least, most) = right.into_inner();
            self.report("keys", format!("{count} keys: expected {least} to {most}"));
        }
    }

    pub(super) fn key(&mut self, key: &proto::Key) -> Key {
        self.key_id(&key.key_id);
        Key { id: key.key_id.clone(), secret: self.secret(&key.secret, &key.secret_digest) }
    }

    fn key_id(&mut self, id: &str) {
        if !limits::KEY_ID_OCTETS.contains(&id.len()) {
            self.report("key_id", format!("{} octets: expected 1 to 80", id.len()));
        } else if id.contains(char::is_control) {
            self.report("key_id", format!("{id:?} has control characters: expected none"));
        }
    }

    /// Violations do not show the secret.
    fn secret(&mut self, secret: &str, digest: &str) -> Secret {
        if secret.is_empty() && !digest.is_empty() {
            self.report(
                "secret_digest",
                "is not the digest of the secret in this field of the current configuration; give the \
                 secret itself",
            );
        } else if !limits::SECRET_OCTETS.contains(&secret.len()) {
            self.report("secret", format!("{} octets: expected 1 to 256", secret.len()));
        } else if secret.contains(['\r', '\n']) {
            self.report("secret", "must not have line breaks (RFC 5357 section 3.1)");
        }
        Secret::new(secret)
    }

    pub(super) fn timestamp_format(&mut self, value: i32) -> TimestampFormat {
        match self.enumeration("timestamp_format", value) {
            proto::TimestampFormat::Ptp => TimestampFormat::Ptp,
            proto::TimestampFormat::Unspecified | proto::TimestampFormat::Ntp => {
                TimestampFormat::Ntp
            }
        }
    }
}

/// Returns the given extensions with defaults for the others.
pub(super) fn extensions(given: Option<&proto::ModeExtensions>, default: Extensions) -> Extensions {
    let Some(given) = given else { return default };
    Extensions {
        individual_session_control: given
            .individual_session_control
            .unwrap_or(default.individual_session_control),
        reflect_octets: given.reflect_octets.unwrap_or(default.reflect_octets),
        symmetrical_size: given.symmetrical_size.unwrap_or(default.symmetrical_size),
        dscp_ecn_monitoring: given.dscp_ecn_monitoring.unwrap_or(default.dscp_ecn_monitoring),
        ptp_timestamps: given.ptp_timestamps.unwrap_or(default.ptp_timestamps),
    }
}
