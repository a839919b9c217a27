//! Iterators over the pages of a window. Unreadable pages are skipped: a flipped bit on the disk
//! costs only the records near it, and readers see a gap.

use super::{StoreError, layout::cursor_of, pool::Files, window::Window};

/// Key and content of a page.
type Page = (u64, sled::IVec);

/// Iterator over pages with keys in a range, in ascending order.
pub(super) struct Pages<'a> {
    window: &'a Window,
    files: &'a Files,
    found: sled::Iter,
    /// Next and last key of the range.
    next: u64,
    last: u64,
    /// Number of keys to skip after the next read error; doubles with each error.
    step: u64,
}

impl<'a> Pages<'a> {
    /// Returns the pages with keys from `first` to `last`.
    pub(super) fn rising(window: &'a Window, files: &'a Files, first: u64, last: u64) -> Self {
        Self { window, files, found: range(files, first, last), next: first, last, step: 1 }
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<Page, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next <= self.last {
            match self.found.next()?.map_err(StoreError::from) {
                Ok((key, page)) => {
                    let Ok(cursor) = cursor_of(&key) else { continue };
                    self.step = 1;
                    self.next = cursor.saturating_add(1);
                    return Some(Ok((cursor, page)));
                }
                Err(error @ StoreError::Damaged(_)) => {
                    self.window.note_damage(&error, self.next);
                    self.next = self.next.saturating_add(self.step);
                    self.step = self.step.saturating_mul(2);
                    self.found = range(self.files, self.next, self.last);
                }
                Err(error) => {
                    self.last = 0;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// Returns the pages with keys up to `last`, in descending order. sled cannot iterate backwards
/// past unreadable data, so after a read error the remaining keys are collected in ascending order.
pub(super) fn falling<'a>(
    window: &'a Window,
    files: &'a Files,
    last: u64,
) -> impl Iterator<Item = Result<Page, StoreError>> + 'a {
    let mut found = files.pages.range(..=last.to_be_bytes());
    let (mut lowest, mut keys) = (last.saturating_add(1), None::<Vec<u64>>);
    std::iter::from_fn(move || {
        if keys.is_none() {
            match found.next_back()?.map_err(StoreError::from) {
                Ok((key, page)) => {
                    lowest = cursor_of(&key).ok()?;
                    return Some(Ok((lowest, page)));
                }
                Err(error @ StoreError::Damaged(_)) => window.note_damage(&error, lowest),
                Err(error) => return Some(Err(error)),
            }
        }
        let keys = keys.get_or_insert_with(|| {
            let pages = Pages::rising(window, files, 0, lowest.saturating_sub(1));
            pages.map_while(Result::ok).map(|(key, _)| key).collect()
        });
        let key = keys.pop()?;
        let page = files.pages.get(key.to_be_bytes()).map_err(StoreError::from).transpose()?;
        Some(page.map(|page| (key, page)))
    })
}

fn range(files: &Files, first: u64, last: u64) -> sled::Iter {
    files.pages.range(first.to_be_bytes()..=last.max(first).to_be_bytes())
}
