//! The two encrypted streams of a control connection (RFC 4656 §3.2, §3.4): one chain of CBC for
//! each direction, never restarted, with an HMAC over the plaintext since the HMAC before it.

use std::fmt;

use aes::cipher::KeyIvInit;
use hmac::Mac;
use thiserror::Error;

use super::{
    BLOCK_OCTETS, Decryptor, Encryptor, HmacSha1, SessionKeys, decrypt, encrypt, hmac_sha1, same,
    truncated,
};

/// An HMAC that is not that of its message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "the HMAC of a control message is wrong: it was not made with the key of this connection, or was changed on its way"
)]
pub struct BadMac;

/// What one end sends.
pub struct Sealer {
    cipher: Encryptor,
    mac: HmacSha1,
    /// Of `mac`, with nothing in it.
    empty: HmacSha1,
}

impl Sealer {
    /// With the IV that this end told the other.
    pub fn new(keys: &SessionKeys, iv: [u8; BLOCK_OCTETS]) -> Self {
        let mac = hmac_sha1(&keys.hmac);
        Self { cipher: Encryptor::new(&keys.aes.into(), &iv.into()), empty: mac.clone(), mac }
    }

    /// Encrypts octets that have no HMAC of their own: they belong to that of the next message.
    pub fn seal_part(&mut self, part: &mut [u8]) {
        self.mac.update(part);
        encrypt(&mut self.cipher, part);
    }

    /// Fills in the HMAC, the last block of a message, and encrypts the whole.
    pub fn seal(&mut self, message: &mut [u8]) {
        let (body, hmac) = message.split_at_mut(message.len() - BLOCK_OCTETS);
        self.mac.update(body);
        let mac = std::mem::replace(&mut self.mac, self.empty.clone());
        hmac.copy_from_slice(&truncated(mac));
        encrypt(&mut self.cipher, message);
    }
}

/// What one end receives.
pub struct Opener {
    cipher: Decryptor,
    mac: HmacSha1,
    empty: HmacSha1,
}

impl Opener {
    /// With the IV that the other end told.
    pub fn new(keys: &SessionKeys, iv: [u8; BLOCK_OCTETS]) -> Self {
        let mac = hmac_sha1(&keys.hmac);
        Self { cipher: Decryptor::new(&keys.aes.into(), &iv.into()), empty: mac.clone(), mac }
    }

    /// Decrypts whole blocks, in the order in which they came. Nothing in them may be used for
    /// more than to know how long the message is before [`Self::check`] found it genuine.
    pub fn decrypt(&mut self, blocks: &mut [u8]) {
        decrypt(&mut self.cipher, blocks);
    }

    /// Takes in octets that have no HMAC of their own.
    pub fn take_part(&mut self, plain: &[u8]) {
        self.mac.update(plain);
    }

    /// Checks the HMAC, the last block of a decrypted message.
    pub fn check(&mut self, plain: &[u8]) -> Result<(), BadMac> {
        let (body, hmac) = plain.split_at(plain.len() - BLOCK_OCTETS);
        self.mac.update(body);
        let mac = std::mem::replace(&mut self.mac, self.empty.clone());
        if same(&truncated(mac), hmac) { Ok(()) } else { Err(BadMac) }
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
