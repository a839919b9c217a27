//! Protection of test packets in authenticated and encrypted mode (RFC 4656 §4.1.2, RFC 5357
//! §4.2.1).

use std::fmt;

use aes::{Aes128, cipher::KeyInit};
use hmac::Mac;

use super::{
    BLOCK_OCTETS, HmacSha1, decrypt, encrypt, hmac_sha1, is_equal, packet_decryptor,
    packet_encryptor, truncated,
};

/// Keys of the test packets of one session, expanded once for both directions.
#[derive(Clone)]
pub struct TestKeys {
    cipher: Aes128,
    mac: HmacSha1,
}

impl TestKeys {
    /// Expands keys from [`super::SessionKeys::test_keys`].
    pub fn new(aes: &[u8; 16], hmac: &[u8; 32]) -> Self {
        Self { cipher: Aes128::new(aes.into()), mac: hmac_sha1(hmac) }
    }

    /// Writes the HMAC of the first `covered` octets at `mac_at`, then encrypts them. CBC with a
    /// zero IV over one block equals ECB, so this function also serves authenticated mode (16
    /// octets).
    pub fn seal(&self, packet: &mut [u8], covered: usize, mac_at: usize) {
        let mac = self.mac_of(&packet[..covered]);
        packet[mac_at..mac_at + BLOCK_OCTETS].copy_from_slice(&mac);
        encrypt(&mut packet_encryptor(&self.cipher), &mut packet[..covered]);
    }

    /// Decrypts the first `covered` octets; true when their HMAC is at `mac_at`.
    pub fn open(&self, packet: &mut [u8], covered: usize, mac_at: usize) -> bool {
        decrypt(&mut packet_decryptor(&self.cipher), &mut packet[..covered]);
        let mac = self.mac_of(&packet[..covered]);
        is_equal(&mac, &packet[mac_at..mac_at + BLOCK_OCTETS])
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
