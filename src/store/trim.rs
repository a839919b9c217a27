//! Removes the records of some connections from a window. sled frees space only with a whole
//! database, so the window is copied without their contents. The records keep their cursors, so
//! that a reader sees which are missing.

use std::{collections::HashSet, sync::Arc};

use prost::Message;

use super::{
    StoreError, content,
    entries::readable,
    layout::{Subject, WindowName},
    page::PageBuilder,
    pages::Pages,
    pool::Files,
    retention::Retention,
    window::Window,
};

/// Additional field of a stored [`Subject`] whose records were removed.
#[derive(Clone, PartialEq, Eq, Message)]
struct RemovalMark {
    #[prost(bool, tag = "4")]
    is_removed: bool,
}

/// Copy of a window in progress.
#[derive(Debug)]
pub(super) struct Trim {
    from: Arc<Window>,
    to: Window,
    /// Database of the copy.
    files: Arc<Files>,
    /// Numbers of the subjects whose records are removed.
    removed: HashSet<u32>,
    /// Minimum key of the next page.
    next: u64,
    page: PageBuilder,
}

impl Trim {
    /// Begins to copy a window of age `age_ns`; `None` if no record is to be removed.
    pub(super) fn begin(
        from: &Arc<Window>,
        retention: &Retention,
        age_ns: u64,
    ) -> Result<Option<Self>, StoreError> {
        let mut removed = HashSet::new();
        let source = from.files()?;
        for stored in source.stored_subjects() {
            let (number, octets) = stored?;
            // Records of a damaged subject are unreadable, so they are copied unchanged.
            let Ok(subject) = Subject::decode(octets.as_ref()) else { continue };
            let Ok(mark) = RemovalMark::decode(octets.as_ref()) else { continue };
            if !mark.is_removed && !retention.keeps(&subject.connection, age_ns) {
                removed.insert(number);
            }
        }
        if removed.is_empty() {
            return Ok(None);
        }
        let (to, files) = from.successor()?;
        for stored in source.stored_subjects() {
            let (number, octets) = stored?;
            let mut octets = octets.to_vec();
            if removed.contains(&number) {
                octets.extend(RemovalMark { is_removed: true }.encode_to_vec());
            }
            to.put_subject(&files, number, octets)?;
        }
        let page = PageBuilder::default();
        let next = from.name.first_cursor;
        Ok(Some(Self { from: from.clone(), to, files, removed, next, page }))
    }

    /// Returns the window that is being copied.
    pub(super) fn window(&self) -> &Arc<Window> {
        &self.from
    }

    /// Copies at most `pages` pages; returns true after the last page.
    pub(super) fn copy(&mut self, pages: usize) -> Result<bool, StoreError> {
        let mut copied = 0;
        let source = self.from.files()?;
        for page in Pages::rising(&self.from, &source, self.next, u64::MAX).take(pages) {
            let (key, page) = page?;
            copied += 1;
            for mut record in readable(key, &page, &self.from) {
                let subject = record.subject;
                if self.removed.contains(&subject) && record.kind != content::NOTHING {
                    record.kind |= content::REMOVED;
                    record.content.clear();
                }
                let entry = record.entry(Arc::default());
                if !self.page.fits(&entry) {
                    self.to.put_page(&self.files, self.page.finish())?;
                }
                self.page.push(&entry, subject);
            }
            self.next = key + 1;
        }
        if copied == pages {
            return Ok(false);
        }
        if !self.page.is_empty() {
            self.to.put_page(&self.files, self.page.finish())?;
        }
        Ok(true)
    }

    /// Ends the copy before it is complete; returns its name, to remove it.
    pub(super) fn abandon(self) -> WindowName {
        self.to.name
    }

    /// Seals the complete copy and returns it.
    pub(super) fn finish(self) -> Result<Window, StoreError> {
        self.to.seal(&self.files, self.from.last_cursor())?;
        Ok(self.to)
    }
}
