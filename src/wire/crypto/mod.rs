//! Cryptography of TWAMP (RFC 4656 §3.1 to §3.4, §4.1.2; RFC 5357 §4) and STAMP (RFC 8762 §4.4).
//!
//! Secrets, session keys and expanded AES keys are wiped on drop and never printed; comparisons
//! take constant time. HMAC states are not wiped by their library; they live as long as their
//! session.

mod control;
mod stamp;
mod test;
mod token;

pub use control::{BadMac, Opener, Sealer};
pub use stamp::StampKey;
pub use test::TestKeys;
pub use token::TokenKey;

use std::fmt;

use aes::{
    Aes128, Block,
    cipher::{BlockDecryptMut, BlockEncryptMut, InnerIvInit, Key, KeyInit, KeyIvInit},
};
use hmac::Mac;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::codes::Sid;

/// Octets of a cipher block and of a truncated HMAC.
pub const BLOCK_OCTETS: usize = 16;
const ZERO_IV: [u8; BLOCK_OCTETS] = [0; BLOCK_OCTETS];

type Encryptor = cbc::Encryptor<Aes128>;
type Decryptor = cbc::Decryptor<Aes128>;
type HmacSha1 = hmac::Hmac<sha1::Sha1>;

/// Session keys of a control connection, which the client generates and sends in its Token.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SessionKeys {
    aes: [u8; 16],
    hmac: [u8; 32],
}

impl SessionKeys {
    /// Creates session keys from independent random octets.
    pub fn new(aes: [u8; 16], hmac: [u8; 32]) -> Self {
        Self { aes, hmac }
    }

    /// Derives the keys of the test packets of a session (RFC 4656 §4.1.2) by encrypting the
    /// session keys with the SID as the key.
    pub fn test_keys(&self, sid: Sid) -> TestKeys {
        let mut aes = self.aes;
        encrypt(&mut Encryptor::new(&sid.0.into(), &ZERO_IV.into()), &mut aes);
        let mut hmac = self.hmac;
        encrypt(&mut Encryptor::new(&sid.0.into(), &ZERO_IV.into()), &mut hmac);
        let keys = TestKeys::new(&aes, &hmac);
        aes.zeroize();
        hmac.zeroize();
        keys
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKeys(..)")
    }
}

/// Encrypts whole blocks; an incomplete last block is not changed.
fn encrypt(cipher: &mut Encryptor, octets: &mut [u8]) {
    for block in octets.chunks_exact_mut(BLOCK_OCTETS) {
        cipher.encrypt_block_mut(Block::from_mut_slice(block));
    }
}

/// Decrypts whole blocks; an incomplete last block is not changed.
fn decrypt(cipher: &mut Decryptor, octets: &mut [u8]) {
    for block in octets.chunks_exact_mut(BLOCK_OCTETS) {
        cipher.decrypt_block_mut(Block::from_mut_slice(block));
    }
}

/// Returns CBC for one packet, with a zero IV (RFC 4656 §4.1.2).
fn packet_encryptor(cipher: &Aes128) -> Encryptor {
    Encryptor::inner_iv_init(cipher.clone(), &ZERO_IV.into())
}

fn packet_decryptor(cipher: &Aes128) -> Decryptor {
    Decryptor::inner_iv_init(cipher.clone(), &ZERO_IV.into())
}

fn hmac_sha1(key: &[u8; 32]) -> HmacSha1 {
    // Keys up to the block length of the hash are padded and never rejected.
    <HmacSha1 as KeyInit>::new(Key::<HmacSha1>::from_slice(&*hmac_block(key)))
}

fn hmac_block(key: &[u8; 32]) -> Zeroizing<[u8; 64]> {
    let mut block = Zeroizing::new([0; 64]);
    block[..32].copy_from_slice(key);
    block
}

/// Returns the first 16 octets of a MAC.
fn truncated(mac: impl Mac) -> [u8; BLOCK_OCTETS] {
    let full = mac.finalize().into_bytes();
    let mut octets = [0; BLOCK_OCTETS];
    octets.copy_from_slice(&full[..BLOCK_OCTETS]);
    octets
}

/// Compares MACs or challenges in constant time.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
