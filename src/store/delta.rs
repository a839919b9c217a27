//! Differences between two byte strings: pieces of the base, and bytes that the base does not have.
//!
//! A difference is the length of the result (varint), followed by instructions. An instruction
//! begins with a varint: a number of bytes, shifted left by one, with the lowest bit set for a
//! piece of the base. The offset of the piece (varint) or the bytes themselves follow.

use std::collections::HashMap;

use prost::encoding::{decode_varint, encode_varint};

/// Length of the blocks of the base that are indexed, bytes; shorter common pieces are not found.
const BLOCK: usize = 32;
/// Multiplier of the rolling checksum.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Maximum length of a result, bytes.
const MAXIMUM_OCTETS: u64 = 1 << 28;

/// Returns the difference that turns `base` into `target`.
pub(super) fn difference(base: &[u8], target: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(target.len() as u64, &mut out);
    // Most changes are small: the common prefix and suffix need no search.
    let same = |(a, b): &(&u8, &u8)| a == b;
    let start = base.iter().zip(target).take_while(same).count();
    let (base_rest, target_rest) = (&base[start..], &target[start..]);
    let end = base_rest.iter().rev().zip(target_rest.iter().rev()).take_while(same).count();
    copy(0, start, &mut out);
    let middle = &target_rest[..target_rest.len() - end];
    search(&base_rest[..base_rest.len() - end], start, middle, &mut out);
    copy(base.len() - end, end, &mut out);
    out
}

/// Appends the instructions for `target` by a search in `base`, a part of the base at `offset`.
fn search(base: &[u8], offset: usize, target: &[u8], out: &mut Vec<u8>) {
    let mut blocks: HashMap<u64, usize> = HashMap::new();
    for (index, block) in base.chunks_exact(BLOCK).enumerate() {
        blocks.entry(checksum(block)).or_insert(index * BLOCK);
    }
    let oldest_factor = (1..BLOCK).fold(1u64, |factor, _| factor.wrapping_mul(FACTOR));
    // Bytes from `new` on are not covered by an instruction yet.
    let (mut at, mut new, mut rolling) = (0, 0, None);
    while at + BLOCK <= target.len() {
        let sum = rolling.unwrap_or_else(|| checksum(&target[at..at + BLOCK]));
        let found = blocks.get(&sum).map(|position| {
            let (before, after) = (&base[..*position], &base[*position..]);
            let length = after.iter().zip(&target[at..]).take_while(|(a, b)| a == b).count();
            let earlier = before.iter().rev().zip(target[new..at].iter().rev());
            (*position, length, earlier.take_while(|(a, b)| a == b).count())
        });
        match found {
            Some((position, length, earlier)) if length >= BLOCK => {
                insert(&target[new..at - earlier], out);
                copy(offset + position - earlier, earlier + length, out);
                at += length;
                (new, rolling) = (at, None);
            }
            _ => {
                let oldest = u64::from(target[at]).wrapping_mul(oldest_factor);
                let next = target.get(at + BLOCK).map(|octet| u64::from(*octet));
                rolling = next
                    .map(|next| sum.wrapping_sub(oldest).wrapping_mul(FACTOR).wrapping_add(next));
                at += 1;
            }
        }
    }
    insert(&target[new..], out);
}

fn checksum(block: &[u8]) -> u64 {
    let add = |sum: u64, octet: &u8| sum.wrapping_mul(FACTOR).wrapping_add((*octet).into());
    block.iter().fold(0, add)
}

fn copy(offset: usize, length: usize, out: &mut Vec<u8>) {
    if length > 0 {
        encode_varint((length as u64) << 1 | 1, out);
        encode_varint(offset as u64, out);
    }
}

fn insert(octets: &[u8], out: &mut Vec<u8>) {
    if !octets.is_empty() {
        encode_varint((octets.len() as u64) << 1, out);
        out.extend_from_slice(octets);
    }
}

/// Applies a difference to its base; `None` if the difference is malformed.
pub(super) fn apply(base: &[u8], mut difference: &[u8]) -> Option<Vec<u8>> {
    let difference = &mut difference;
    let length = decode_varint(difference).ok().filter(|length| *length <= MAXIMUM_OCTETS)?;
    let length = usize::try_from(length).ok()?;
    let mut result = Vec::new();
    while !difference.is_empty() {
        let instruction = decode_varint(difference).ok()?;
        let octets = usize::try_from(instruction >> 1).ok()?;
        let piece = if instruction & 1 == 0 {
            difference.split_off(..octets)?
        } else {
            let offset = usize::try_from(decode_varint(difference).ok()?).ok()?;
            base.get(offset..offset.checked_add(octets)?)?
        };
        if piece.len() > length - result.len() {
            return None;
        }
        result.extend_from_slice(piece);
    }
    (result.len() == length).then_some(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns text of few distinct items, so that two texts have common pieces.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let item = |kind: u8| format!("item {kind} with a name of some length; ").into_bytes();
        prop::collection::vec(any::<u8>(), 0..60)
            .prop_map(move |kinds| kinds.into_iter().flat_map(|kind| item(kind % 8)).collect())
    }

    proptest! {
        #[test]
        fn a_difference_applied_to_its_base_yields_the_target(base in text(), target in text()) {
            prop_assert_eq!(apply(&base, &difference(&base, &target)), Some(target));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(
            base in prop::collection::vec(any::<u8>(), 0..50),
            octets in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let _ = apply(&base, &octets);
        }
    }

    #[test]
    fn a_few_changes_make_a_short_difference() {
        let item = |number: u32| format!("connection-{number} to 192.0.2.{number}; ");
        let base: String = (0..10_000).map(item).collect();
        let removed: String = (0..10_000).filter(|n| n % 1_000 != 7).map(item).collect();
        let swapped: String = (5_000..10_000).chain(0..5_000).map(item).collect();
        for (target, most) in [(&base, 20), (&removed, 400), (&swapped, 60)] {
            let made = difference(base.as_bytes(), target.as_bytes());
            assert!(made.len() <= most, "{}", made.len());
            assert_eq!(apply(base.as_bytes(), &made).as_deref(), Some(target.as_bytes()));
        }
    }
}
