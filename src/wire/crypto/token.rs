//! Key derivation and the Token of Set-Up-Response (RFC 4656 §3.1).

use std::fmt;

use aes::cipher::KeyIvInit;
use sha1::Sha1;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{Decryptor, Encryptor, SessionKeys, ZERO_IV, decrypt, encrypt, is_equal};

/// Octets of a Token: challenge, AES Session-key and HMAC Session-key.
const TOKEN_OCTETS: usize = 64;

/// Key derived from a secret with the Salt and Count of a greeting.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TokenKey([u8; 16]);

impl TokenKey {
    /// Derives a key by PBKDF2 with HMAC-SHA1. This is slow on purpose: it takes 2 × `count` hash
    /// rounds.
    pub fn derive(secret: &[u8], salt: &[u8; 16], count: u32) -> Self {
        let mut key = [0; 16];
        pbkdf2::pbkdf2_hmac::<Sha1>(secret, salt, count, &mut key);
        Self(key)
    }

    /// Encrypts the Token of a client.
    pub fn seal(&self, challenge: &[u8; 16], keys: &SessionKeys) -> [u8; TOKEN_OCTETS] {
        let mut token = [0; TOKEN_OCTETS];
        token[..16].copy_from_slice(challenge);
        token[16..32].copy_from_slice(&keys.aes);
        token[32..].copy_from_slice(&keys.hmac);
        encrypt(&mut Encryptor::new(&self.0.into(), &ZERO_IV.into()), &mut token);
        token
    }

    /// Returns the session keys in a Token; `None` if the secret or the challenge differs.
    pub fn open(&self, token: &[u8; TOKEN_OCTETS], challenge: &[u8; 16]) -> Option<SessionKeys> {
        let mut plain = *token;
        decrypt(&mut Decryptor::new(&self.0.into(), &ZERO_IV.into()), &mut plain);
        let mut keys = SessionKeys::new([0; 16], [0; 32]);
        keys.aes.copy_from_slice(&plain[16..32]);
        keys.hmac.copy_from_slice(&plain[32..]);
        let genuine = is_equal(&plain[..16], challenge);
        plain.zeroize();
        genuine.then_some(keys)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}
