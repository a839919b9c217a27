//! The two encrypted streams of a control connection (RFC 4656 §3.2, §3.4). Each direction is one
//! CBC chain; an HMAC covers the plaintext since the previous HMAC.

use std::fmt;

use aes::cipher::KeyIvInit;
use hmac::Mac;
use thiserror::Error;

use super::{
    BLOCK_OCTETS, Decryptor, Encryptor, HmacSha1, SessionKeys, decrypt, encrypt, hmac_sha1,
    is_equal, truncated,
};

/// Mismatch of the HMAC of a control message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("HMAC mismatch in a control message: made with another key or modified in transit")]
pub struct BadMac;

/// Encryption of the sent stream.
pub struct Sealer {
    cipher: Encryptor,
    mac: HmacSha1,
    /// Initial state of `mac`.
    empty: HmacSha1,
}

impl Sealer {
    /// Starts the stream with the IV that this end announced.
    pub fn new(keys: &SessionKeys, iv: [u8; BLOCK_OCTETS]) -> Self {
        let mac = hmac_sha1(&keys.hmac);
        Self { cipher: Encryptor::new(&keys.aes.into(), &iv.into()), empty: mac.clone(), mac }
    }

    /// Encrypts octets without an HMAC of their own; the next HMAC covers them.
    pub fn seal_part(&mut self, part: &mut [u8]) {
        self.mac.update(part);
        encrypt(&mut self.cipher, part);
    }

    /// Writes the HMAC into the last block of a message and encrypts the message.
    pub fn seal(&mut self, message: &mut [u8]) {
        let (body, hmac) = message.split_at_mut(message.len() - BLOCK_OCTETS);
        self.mac.update(body);
        let mac = std::mem::replace(&mut self.mac, self.empty.clone());
        hmac.copy_from_slice(&truncated(mac));
        encrypt(&mut self.cipher, message);
    }
}

/// Decryption of the received stream.
pub struct Opener {
    cipher: Decryptor,
    mac: HmacSha1,
    empty: HmacSha1,
}

impl Opener {
    /// Starts the stream with the IV that the other end announced.
    pub fn new(keys: &SessionKeys, iv: [u8; BLOCK_OCTETS]) -> Self {
        let mac = hmac_sha1(&keys.hmac);
        Self { cipher: Decryptor::new(&keys.aes.into(), &iv.into()), empty: mac.clone(), mac }
    }

    /// Decrypts the next whole blocks. Until [`Self::check`] succeeds, they may only be used to
    /// find the length of the message.
    pub fn decrypt(&mut self, blocks: &mut [u8]) {
        decrypt(&mut self.cipher, blocks);
    }

    /// Adds octets without an HMAC of their own; the next HMAC covers them.
    pub fn add_part(&mut self, plain: &[u8]) {
        self.mac.update(plain);
    }

    /// Verifies the HMAC in the last block of a decrypted message.
    pub fn check(&mut self, plain: &[u8]) -> Result<(), BadMac> {
        let (body, hmac) = plain.split_at(plain.len() - BLOCK_OCTETS);
        self.mac.update(body);
        let mac = std::mem::replace(&mut self.mac, self.empty.clone());
        if is_equal(&truncated(mac), hmac) { Ok(()) } else { Err(BadMac) }
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener(..)")
    }
}
