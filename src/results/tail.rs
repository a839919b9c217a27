//! Latest records in memory, for readers that follow the log: they need no read from disk, and
//! continue if the store fails.

use std::{
    collections::VecDeque,
    sync::{PoisonError, RwLock},
};

use crate::store::Entry;

/// Limits of the content in bytes, and of the number of records.
const MAX_BYTES: usize = 4 << 20;
const MAX_RECORDS: usize = 16_384;

/// Entries with consecutive cursors.
#[derive(Debug, Default)]
pub(super) struct Tail {
    entries: RwLock<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Tail {
    pub(super) fn push(&self, entry: Entry) {
        let mut kept = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += entry.content.len();
        kept.entries.push_back(entry);
        while kept.bytes > MAX_BYTES || kept.entries.len() > MAX_RECORDS {
            let Some(oldest) = kept.entries.pop_front() else { return };
            kept.bytes -= oldest.content.len();
        }
    }

    /// Removes the latest entry, which no reader has seen.
    pub(super) fn pop_uncommitted(&self) {
        let mut kept = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(newest) = kept.entries.pop_back() {
            kept.bytes -= newest.content.len();
        }
    }

    /// Returns at most `most` entries after `after` and up to `up_to`; `None` if the first of them are
    /// no longer in memory.
    pub(super) fn entries(&self, after: u64, up_to: u64, most: usize) -> Option<Vec<Entry>> {
        let kept = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let first = kept.entries.front()?.cursor;
        let from = usize::try_from((after + 1).checked_sub(first)?).ok()?;
        let count = usize::try_from(up_to.saturating_sub(after)).map_or(most, |n| n.min(most));
        let range = from.min(kept.entries.len())..(from + count).min(kept.entries.len());
        Some(kept.entries.range(range).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn returns_only_records_that_it_has() {
        let tail = Tail::default();
        assert!(tail.entries(0, 10, 5).is_none());
        let most = MAX_RECORDS as u64 + 10;
        for cursor in 1..=most {
            let subject = Arc::default();
            tail.push(Entry { cursor, subject, ..entry() });
        }
        let cursors = |after, up_to, most| -> Option<Vec<u64>> {
            Some(tail.entries(after, up_to, most)?.iter().map(|entry| entry.cursor).collect())
        };
        assert_eq!(cursors(9, most, 3), None, "11 is the first");
        assert_eq!(cursors(10, most, 3), Some(vec![11, 12, 13]));
        assert_eq!(cursors(most - 2, most - 1, 9), Some(vec![most - 1]));
        assert_eq!(cursors(most, most, 9), Some(vec![]));
        tail.push(Entry { cursor: most + 1, ..entry() });
        tail.pop_uncommitted();
        assert_eq!(cursors(most - 1, most + 1, 9), Some(vec![most]));
        tail.push(Entry { cursor: most + 1, content: vec![0; MAX_BYTES].into(), ..entry() });
        assert_eq!(cursors(most, most + 1, 9), Some(vec![most + 1]));
        assert_eq!(cursors(most - 1, most + 1, 9), None);
    }

    fn entry() -> Entry {
        Entry {
            cursor: 0,
            time: Default::default(),
            subject: Arc::default(),
            kind: 0,
            content: vec![0].into(),
        }
    }
}
