//! HMAC-SHA-256 of STAMP (RFC 8762 §4.4, RFC 8972 §4.8): integrity alone, nothing is encrypted.

use std::fmt;

use aes::cipher::{Key, KeyInit};
use hmac::Mac;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{BLOCK_OCTETS, same, truncated};

type HmacSha256 = hmac::Hmac<Sha256>;
/// Octets of a block of the hash: a longer key is hashed first (RFC 2104 §2).
const HASH_BLOCK_OCTETS: usize = 64;

/// A key that both ends of a STAMP session are configured with.
#[derive(Clone)]
pub struct StampKey {
    mac: HmacSha256,
}

impl StampKey {
    /// From the octets of a secret, as they are.
    pub fn new(secret: &[u8]) -> Self {
        let mut block = Zeroizing::new([0; HASH_BLOCK_OCTETS]);
        if secret.len() > HASH_BLOCK_OCTETS {
            block[..32].copy_from_slice(&Sha256::digest(secret));
        } else {
            block[..secret.len()].copy_from_slice(secret);
        }
        Self { mac: <HmacSha256 as KeyInit>::new(Key::<HmacSha256>::from_slice(&*block)) }
    }

    /// The HMAC over two texts, one behind the other.
    pub fn sign(&self, first: &[u8], second: &[u8]) -> [u8; BLOCK_OCTETS] {
        let mut mac = self.mac.clone();
        mac.update(first);
        mac.update(second);
        truncated(mac)
    }

    /// Whether `hmac` is that of the two texts.
    pub fn verify(&self, first: &[u8], second: &[u8], hmac: &[u8]) -> bool {
        same(&self.sign(first, second), hmac)
    }
}

impl fmt::Debug for StampKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StampKey(..)")
    }
}
