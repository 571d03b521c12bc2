//! Signed receipts: proof for a win that Redis may lose, in the answer that told of it.

use sha2::{Digest, Sha256};

const BLOCK: usize = 64;
/// 128 bits: nobody guesses one, and an answer stays short.
pub const BYTES: usize = 16;

/// HMAC-SHA256 under one key, its two fixed blocks hashed once.
pub struct Key {
    inner: Sha256,
    outer: Sha256,
}

impl Key {
    pub fn new(secret: &[u8; 32]) -> Self {
        let padded = |pad: u8| {
            let mut block = [pad; BLOCK];
            for (place, byte) in block.iter_mut().zip(secret) {
                *place ^= byte;
            }
            Sha256::new_with_prefix(block)
        };
        Self { inner: padded(0x36), outer: padded(0x5c) }
    }

    /// Sign the text of an answer up to where its receipt stands.
    pub fn sign(&self, text: &[u8]) -> [u8; BYTES] {
        let inner = self.inner.clone().chain_update(text).finalize();
        let outer = self.outer.clone().chain_update(inner).finalize();
        let mut receipt = [0; BYTES];
        receipt.copy_from_slice(&outer[..BYTES]);
        receipt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_the_head_of_an_hmac_of_rfc_4231() {
        // Test case 1, its key filled up with zeros, as HMAC itself does.
        let mut secret = [0; 32];
        secret[..20].fill(0x0b);
        let wanted = [
            0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53, 0x5c, 0xa8, 0xaf, 0xce, 0xaf, 0x0b,
            0xf1, 0x2b,
        ];
        assert_eq!(Key::new(&secret).sign(b"Hi There"), wanted);
    }
}
