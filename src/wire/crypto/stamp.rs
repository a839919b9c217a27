//! HMAC-SHA-256 of STAMP (RFC 8762 §4.4, RFC 8972 §4.8): integrity only, no encryption.

use std::fmt;

use aes::cipher::{Key, KeyInit};
use hmac::Mac;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{BLOCK_OCTETS, is_equal, truncated};

type HmacSha256 = hmac::Hmac<Sha256>;
/// Block length of the hash in octets; longer keys are hashed first (RFC 2104 §2).
const HASH_BLOCK_OCTETS: usize = 64;

/// Shared key of both ends of a STAMP session.
#[derive(Clone)]
pub struct StampKey {
    mac: HmacSha256,
}

impl StampKey {
    /// Creates a key from the octets of a secret.
    pub fn new(secret: &[u8]) -> Self {
        let mut block = Zeroizing::new([0; HASH_BLOCK_OCTETS]);
        if secret.len() > HASH_BLOCK_OCTETS {
            block[..32].copy_from_slice(&Sha256::digest(secret));
        } else {
            block[..secret.len()].copy_from_slice(secret);
        }
        Self { mac: <HmacSha256 as KeyInit>::new(Key::<HmacSha256>::from_slice(&*block)) }
    }

    /// Returns the HMAC over the concatenation of two texts.
    pub fn sign(&self, first: &[u8], second: &[u8]) -> [u8; BLOCK_OCTETS] {
        let mut mac = self.mac.clone();
        mac.update(first);
        mac.update(second);
        truncated(mac)
    }

    /// Verifies the HMAC over the concatenation of two texts.
    pub fn verify(&self, first: &[u8], second: &[u8], hmac: &[u8]) -> bool {
        is_equal(&self.sign(first, second), hmac)
    }
}

impl fmt::Debug for StampKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StampKey(..)")
    }
}
