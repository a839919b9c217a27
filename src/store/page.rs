//! Pages of records with consecutive cursors. Storing records in pages keeps the overhead of a
//! small record low.
//!
//! A page is the time of its first record (microseconds since 1970, 8 bytes) followed by the
//! records. A record is: kind (1 byte), number of its subject in the window (varint), time since
//! the previous record (microseconds, zigzag varint), length of the content (varint), content. The
//! key of a page is its first cursor.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use super::{Entry, MAXIMUM_VALUE_OCTETS, StoreError, Subject, zigzag};
use crate::time::UnixTime;

const NANOS_PER_MICRO: u64 = 1_000;
const TIME_OCTETS: usize = 8;
/// Maximum overhead of a record, bytes: kind, subject, time, length.
const OVERHEAD_OCTETS: usize = 1 + 5 + 10 + 2;
/// Maximum length of the content of a record, bytes.
pub const MAXIMUM_CONTENT_OCTETS: usize = MAXIMUM_VALUE_OCTETS - TIME_OCTETS - OVERHEAD_OCTETS;

/// Page that is being filled.
#[derive(Debug, Default)]
pub(super) struct PageBuilder {
    first_cursor: u64,
    records: u64,
    last_us: u64,
    octets: Vec<u8>,
}

impl PageBuilder {
    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Returns true if the record can be appended to the page.
    pub(super) fn fits(&self, entry: &Entry) -> bool {
        self.is_empty()
            || entry.cursor == self.first_cursor + self.records
                && self.octets.len() + OVERHEAD_OCTETS + entry.content.len() <= MAXIMUM_VALUE_OCTETS
    }

    pub(super) fn push(&mut self, entry: &Entry, subject: u32) {
        let time_us = entry.time.0 / NANOS_PER_MICRO;
        if self.is_empty() {
            self.first_cursor = entry.cursor;
            self.last_us = time_us;
            self.octets.extend_from_slice(&time_us.to_be_bytes());
        }
        self.records += 1;
        let later_us = time_us.cast_signed().wrapping_sub(self.last_us.cast_signed());
        self.last_us = time_us;
        self.octets.push(entry.kind);
        encode_varint(subject.into(), &mut self.octets);
        encode_varint(zigzag::encode(later_us), &mut self.octets);
        encode_varint(entry.content.len() as u64, &mut self.octets);
        self.octets.extend_from_slice(&entry.content);
        debug_assert!(encoded_len_varint(entry.content.len() as u64) <= 2);
    }

    /// Returns the first cursor, the number of records and the page, and empties the builder.
    pub(super) fn finish(&mut self) -> (u64, u64, Vec<u8>) {
        let Self { first_cursor, records, octets, .. } = std::mem::take(self);
        (first_cursor, records, octets)
    }
}

/// Record of a page, with the number of its subject.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) cursor: u64,
    pub(super) time: UnixTime,
    pub(super) subject: u32,
    pub(super) kind: u8,
    pub(super) content: Bytes,
}

impl Stored {
    pub(super) fn entry(self, subject: Arc<Subject>) -> Entry {
        let Self { cursor, time, kind, content, .. } = self;
        Entry { cursor, time, subject, kind, content }
    }
}

/// Iterator over the records of a page.
#[derive(Debug)]
pub(super) struct Records {
    next_cursor: u64,
    time_us: u64,
    remaining: Bytes,
}

impl Records {
    pub(super) fn new(first_cursor: u64, mut page: Bytes) -> Result<Self, StoreError> {
        let time_us = page.try_get_u64().map_err(|_| StoreError::Damaged("record"))?;
        Ok(Self { next_cursor: first_cursor, time_us, remaining: page })
    }

    /// Returns the time of the first record, nanoseconds since 1970. Must be called before the
    /// first read.
    pub(super) fn begun_ns(&self) -> Option<u64> {
        self.time_us.checked_mul(NANOS_PER_MICRO)
    }

    fn read(&mut self) -> Option<Stored> {
        let kind = self.remaining.try_get_u8().ok()?;
        let subject = u32::try_from(decode_varint(&mut self.remaining).ok()?).ok()?;
        let later_us = zigzag::decode(decode_varint(&mut self.remaining).ok()?);
        let length = usize::try_from(decode_varint(&mut self.remaining).ok()?).ok()?;
        let content = (length <= self.remaining.len()).then(|| self.remaining.split_to(length))?;
        self.time_us = self.time_us.checked_add_signed(later_us)?;
        let time = UnixTime(self.time_us.checked_mul(NANOS_PER_MICRO)?);
        let cursor = self.next_cursor;
        self.next_cursor += 1;
        Some(Stored { cursor, time, subject, kind, content })
    }
}

impl Iterator for Records {
    type Item = Result<Stored, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining.is_empty() {
            return None;
        }
        let record = self.read();
        if record.is_none() {
            self.remaining.clear();
        }
        Some(record.ok_or(StoreError::Damaged("record")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoded_records_equal_the_encoded_ones(
            records in prop::collection::vec((any::<u32>(), 0u64..1 << 53, any::<u8>(), 0usize..300), 1..40),
        ) {
            let mut builder = PageBuilder::default();
            let mut kept = Vec::new();
            for (index, (subject, time_us, kind, length)) in records.into_iter().enumerate() {
                let entry = Entry {
                    cursor: 7 + index as u64,
                    time: UnixTime(time_us * NANOS_PER_MICRO),
                    subject: Arc::default(),
                    kind,
                    content: vec![kind; length].into(),
                };
                if !builder.fits(&entry) {
                    break;
                }
                builder.push(&entry, subject);
                kept.push((entry, subject));
            }
            let (first, count, page) = builder.finish();
            prop_assert!(page.len() <= MAXIMUM_VALUE_OCTETS);
            prop_assert_eq!((first, count), (7, kept.len() as u64));
            let read: Vec<_> = Records::new(first, page.into()).unwrap().map(Result::unwrap).collect();
            for (stored, (entry, subject)) in read.into_iter().zip(&kept) {
                prop_assert_eq!(stored.subject, *subject);
                prop_assert_eq!(&stored.entry(entry.subject.clone()), entry);
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(page in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(records) = Records::new(1, page.into()) {
                prop_assert!(records.count() <= 200);
            }
        }
    }

    #[test]
    fn a_record_with_the_largest_content_fits_into_a_page() {
        let entry = Entry {
            cursor: u64::MAX / 2,
            time: UnixTime(u64::MAX),
            subject: Arc::default(),
            kind: 1,
            content: vec![0; MAXIMUM_CONTENT_OCTETS].into(),
        };
        let mut builder = PageBuilder::default();
        builder.push(&entry, u32::MAX);
        assert!(builder.finish().2.len() <= MAXIMUM_VALUE_OCTETS);
    }
}
