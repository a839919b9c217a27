//! Takes the records of some connections out of a window. A database frees space only when it goes as
//! a whole, so the others are copied into a new one. What is taken keeps its place, without content:
//! a reader is told what it misses.

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

/// Stands in a subject whose records were taken, beside what [`Subject`] reads.
#[derive(Clone, PartialEq, Eq, Message)]
struct Taken {
    #[prost(bool, tag = "4")]
    taken: bool,
}

/// A copy that is being made.
#[derive(Debug)]
pub(super) struct Trim {
    from: Arc<Window>,
    to: Window,
    /// Database of the copy.
    files: Arc<Files>,
    /// Numbers of the subjects whose records go.
    goes: HashSet<u32>,
    /// The key that the next page is not below.
    next: u64,
    page: PageBuilder,
}

impl Trim {
    /// Begins to copy a window of an age; `None` where nothing in it goes.
    pub(super) fn begin(
        from: &Arc<Window>,
        retention: &Retention,
        age_ns: u64,
    ) -> Result<Option<Self>, StoreError> {
        let mut goes = HashSet::new();
        let source = from.files()?;
        for stored in source.stored_subjects() {
            let (number, octets) = stored?;
            // Nobody reads the records of one that is damaged, whatever becomes of them.
            let Ok(subject) = Subject::decode(octets.as_ref()) else { continue };
            let Ok(Taken { taken }) = Taken::decode(octets.as_ref()) else { continue };
            if !taken && !retention.keeps(&subject.connection, age_ns) {
                goes.insert(number);
            }
        }
        if goes.is_empty() {
            return Ok(None);
        }
        let (to, files) = from.successor()?;
        for stored in source.stored_subjects() {
            let (number, octets) = stored?;
            let mut octets = octets.to_vec();
            if goes.contains(&number) {
                octets.extend(Taken { taken: true }.encode_to_vec());
            }
            to.put_subject(&files, number, octets)?;
        }
        let page = PageBuilder::default();
        let next = from.name.first_cursor;
        Ok(Some(Self { from: from.clone(), to, files, goes, next, page }))
    }

    /// The window that is copied.
    pub(super) fn window(&self) -> &Arc<Window> {
        &self.from
    }

    /// Copies so many pages at most; whether that was the last.
    pub(super) fn copy(&mut self, pages: usize) -> Result<bool, StoreError> {
        let mut copied = 0;
        let source = self.from.files()?;
        for page in Pages::rising(&self.from, &source, self.next, u64::MAX).take(pages) {
            let (key, page) = page?;
            copied += 1;
            for mut record in readable(key, &page, &self.from) {
                let subject = record.subject;
                if self.goes.contains(&subject) && record.kind != content::NOTHING {
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

    /// Name of the copy, which nobody needs any more.
    pub(super) fn abandon(self) -> WindowName {
        self.to.name
    }

    /// The copy, once it is whole, sealed.
    pub(super) fn finish(self) -> Result<Window, StoreError> {
        self.to.seal(&self.files, self.from.last_cursor())?;
        Ok(self.to)
    }
}
