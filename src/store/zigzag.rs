//! Signed numbers that are small either way, as unsigned ones that are small: 0, -1, 1, -2, as Protocol
//! Buffers have them in `sint64`.

/// Small where the value is near zero.
pub fn encode(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Decodes a signed number.
pub fn decode(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}
