//! Takes the records of some connections out of a window. A tree gives room back only when it goes as
//! a whole, so the others are copied into a new one. What is taken keeps its place, without content:
//! a reader is told what it misses.

use std::{collections::HashSet, sync::Arc};

use prost::Message;

use super::{
    StoreError, content,
    engine::Engine,
    entries::readable,
    page::PageBuilder,
    pages::Pages,
    retention::Retention,
    window::{Subject, Window},
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
    /// Numbers of the subjects whose records go.
    goes: HashSet<u32>,
    /// The key that the next page is not below.
    next: u64,
    page: PageBuilder,
}

impl Trim {
    /// Begins to copy a window of an age; `None` where nothing in it goes.
    pub(super) fn begin(
        engine: &Engine,
        from: &Arc<Window>,
        retention: &Retention,
        age_ns: u64,
    ) -> Result<Option<Self>, StoreError> {
        let mut goes = HashSet::new();
        for stored in from.stored_subjects() {
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
        let to = from.successor(engine)?;
        for stored in from.stored_subjects() {
            let (number, octets) = stored?;
            let mut octets = octets.to_vec();
            if goes.contains(&number) {
                octets.extend(Taken { taken: true }.encode_to_vec());
            }
            to.put_subject(number, octets)?;
        }
        let page = PageBuilder::default();
        Ok(Some(Self { from: from.clone(), to, goes, next: from.name.first_cursor, page }))
    }

    /// The window that is copied.
    pub(super) fn window(&self) -> &Arc<Window> {
        &self.from
    }

    /// Copies so many pages at most; whether that was the last.
    pub(super) fn copy(&mut self, pages: usize) -> Result<bool, StoreError> {
        let mut copied = 0;
        for page in Pages::of(&self.from, self.next, u64::MAX).take(pages) {
            let (key, page) = page?;
            copied += 1;
            for mut record in readable(key, &page, &self.from) {
                let subject = record.subject;
                if self.goes.contains(&subject) && record.kind != content::NOTHING {
                    record.kind |= content::REMOVED;
                    record.content.clear();
                }
                let entry = record.entry(Arc::default());
                if !self.page.takes(&entry) {
                    self.to.put_page(self.page.take())?;
                }
                self.page.push(&entry, subject);
            }
            self.next = key + 1;
        }
        if copied == pages {
            return Ok(false);
        }
        if !self.page.is_empty() {
            self.to.put_page(self.page.take())?;
        }
        Ok(true)
    }

    /// Nobody needs the copy any more.
    pub(super) fn give_up(self, engine: &Engine) -> Result<(), StoreError> {
        let name = self.to.name;
        drop(self);
        name.remove(engine)
    }

    /// The copy, once it is whole.
    pub(super) fn done(self) -> Window {
        self.to
    }
}
