//! Test packets in authenticated and encrypted mode (RFC 4656 §4.1.2, RFC 5357 §4.2.1).

use std::fmt;

use aes::{Aes128, cipher::KeyInit};
use hmac::Mac;

use super::{
    BLOCK_OCTETS, HmacSha1, decrypt, encrypt, hmac_sha1, packet_decryptor, packet_encryptor, same,
    truncated,
};

/// The keys of the test packets of one session, set up once; both directions use the same.
#[derive(Clone)]
pub struct TestKeys {
    cipher: Aes128,
    mac: HmacSha1,
}

impl TestKeys {
    /// See [`super::SessionKeys::test_keys`].
    pub fn new(aes: &[u8; 16], hmac: &[u8; 32]) -> Self {
        Self { cipher: Aes128::new(aes.into()), mac: hmac_sha1(hmac) }
    }

    /// Writes the HMAC of the first `covered` octets at `mac_at`, then encrypts them. One block
    /// of CBC with a zero IV is one of ECB, so that this serves authenticated mode (16 octets
    /// covered) as well as encrypted mode.
    pub fn seal(&self, packet: &mut [u8], covered: usize, mac_at: usize) {
        let mac = self.mac_of(&packet[..covered]);
        packet[mac_at..mac_at + BLOCK_OCTETS].copy_from_slice(&mac);
        encrypt(&mut packet_encryptor(&self.cipher), &mut packet[..covered]);
    }

    /// Decrypts the first `covered` octets; whether the HMAC at `mac_at` is theirs.
    pub fn open(&self, packet: &mut [u8], covered: usize, mac_at: usize) -> bool {
        decrypt(&mut packet_decryptor(&self.cipher), &mut packet[..covered]);
        let mac = self.mac_of(&packet[..covered]);
        same(&mac, &packet[mac_at..mac_at + BLOCK_OCTETS])
    }

    fn mac_of(&self, text: &[u8]) -> [u8; BLOCK_OCTETS] {
        let mut mac = self.mac.clone();
        mac.update(text);
        truncated(mac)
    }
}

impl fmt::Debug for TestKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestKeys(..)")
    }
}
