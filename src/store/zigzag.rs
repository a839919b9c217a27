//! Zigzag encoding of signed numbers, as in `sint64` of Protocol Buffers: 0, -1, 1, -2 become 0, 1,
//! 2, 3, so that numbers near zero have short varints.

/// Encodes a signed number.
pub fn encode(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Decodes a signed number.
pub fn decode(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}
