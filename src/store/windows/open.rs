//! Opens the log. A damaged window is moved to quarantine. A window that cannot be opened for
//! another reason stays in place and is retried.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, RwLock, atomic::Ordering::Relaxed},
};

use super::{FLOOR, Unopened, Windows};
use crate::{
    store::{
        StoreError,
        index::{self, Index},
        layout::{Summary, WindowName, cursor_of},
        measure::measured,
        page::PageBuilder,
        pool::{Files, Pool},
        quarantine,
        window::{Window, WindowList, read},
    },
    time::Monotonic,
};

/// Interval of attempts to open a window.
const RETRY_NS: u64 = 10_000_000_000;
/// Maximum size of an empty database on disk, bytes. A larger one without a record has lost its
/// records.
const EMPTY_DISK_BYTES: u64 = 1 << 20;

/// Result of opening a window.
struct Opened {
    /// The window; `None` if it has no record or is damaged as a whole.
    window: Option<Window>,
    /// Database of the window if records can be appended to it.
    filled: Option<Arc<Files>>,
    was_damaged: bool,
}

impl Windows {
    /// Reopens the log after a failure, with the list that is already shared with readers.
    pub(in super::super) fn reopen(
        directory: &Path,
        meta: &sled::Tree,
        at_least: u64,
        list: Arc<RwLock<WindowList>>,
    ) -> Result<Self, StoreError> {
        let found = Self::open(directory, meta, at_least)?;
        let windows = read(&found.list);
        let reopened = Self { list, ..found };
        reopened.replace(windows);
        Ok(reopened)
    }

    /// Opens the log in a directory. New records get cursors from `at_least` on, and after all
    /// records that exist or existed.
    pub(in super::super) fn open(
        directory: &Path,
        meta: &sled::Tree,
        at_least: u64,
    ) -> Result<Self, StoreError> {
        Self::open_pool(Pool::open(directory)?, meta, at_least)
    }

    /// Opens the log read-only, with copies of its databases in the directory `copies`.
    pub(in super::super) fn inspect(
        directory: &Path,
        meta: &sled::Tree,
        copies: &Path,
    ) -> Result<Self, StoreError> {
        Self::open_pool(Pool::inspect(directory, copies), meta, 1)
    }

    fn open_pool(pool: Arc<Pool>, meta: &sled::Tree, at_least: u64) -> Result<Self, StoreError> {
        let floor = meta.get(FLOOR)?.map_or(Ok(1), |floor| cursor_of(&floor))?;
        let at_least = at_least.max(floor);
        let index = index::read(pool.directory());
        let mut generations: BTreeMap<u64, Vec<WindowName>> = BTreeMap::new();
        for name in pool.names()? {
            generations.entry(name.first_cursor).or_default().push(name);
        }
        let last = generations.keys().next_back().copied();
        let (mut windows, mut newest, mut filled) = (Vec::new(), 0, None);
        let (mut was_damaged, mut unopened) = (false, Unopened::default());
        for (first_cursor, names) in generations {
            match open_one(&pool, &index, &names, last == Some(first_cursor)) {
                Ok(opened) => {
                    was_damaged |= opened.was_damaged;
                    filled = opened.filled;
                    if let Some(window) = opened.window {
                        newest = window.last_cursor();
                        windows.push(Arc::new(window));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, first_cursor, "failed to open a window of results");
                    newest = first_cursor;
                    unopened.windows.push(names);
                }
            }
        }
        let opened = Self {
            meta: meta.clone(),
            pool,
            list: Arc::new(RwLock::new(windows.into())),
            filled,
            leaving: Vec::new(),
            trim: None,
            trimmed_up_to: 0,
            page: PageBuilder::default(),
            numbers: Default::default(),
            next_cursor: at_least.max(newest + 1),
            newest: newest.max(at_least.saturating_sub(1)),
            found: newest.max(floor - 1),
            was_damaged,
            unopened,
        };
        if opened.pool.may_change() && opened.sealed() != index {
            opened.write_index();
        }
        Ok(opened)
    }

    /// Returns the number of windows that could not be opened, for a reason other than damage.
    pub(in super::super) fn unopened(&self) -> usize {
        self.unopened.windows.len()
    }

    /// Retries to open windows that could not be opened.
    /// Removes windows that could not be opened and are older than those that retention removes.
    pub(super) fn remove_unopened_before(&mut self, first_cursor: u64) {
        let Self { pool, unopened, .. } = self;
        for generations in &mut unopened.windows {
            generations.retain(|name| {
                name.first_cursor >= first_cursor
                    || pool
                        .remove(*name)
                        .inspect_err(|error| {
                            tracing::warn!(%error, "failed to remove a window of results");
                        })
                        .is_err()
            });
        }
        unopened.windows.retain(|generations| !generations.is_empty());
    }

    pub(super) fn retry_unopened(&mut self, now: Monotonic) {
        let is_due = self.unopened.next_try.is_none_or(|next_try| next_try <= now);
        if self.unopened.windows.is_empty() || !is_due {
            return;
        }
        self.unopened.next_try = Some(now.plus_ns(RETRY_NS));
        let mut list = read(&self.list).to_vec();
        for names in std::mem::take(&mut self.unopened.windows) {
            match open_one(&self.pool, &Index::new(), &names, false) {
                Ok(Opened { window: Some(window), .. }) => {
                    let first_cursor = window.name.first_cursor;
                    tracing::info!(first_cursor, "window of results opened");
                    let position = list.partition_point(|other| other.name < window.name);
                    list.insert(position, Arc::new(window));
                }
                Ok(Opened { window: None, .. }) => {}
                Err(error) => {
                    tracing::debug!(%error, ?names, "failed to open a window of results");
                    self.unopened.windows.push(names);
                }
            }
        }
        self.replace(list.into());
        self.write_index();
    }

    /// Moves a window to quarantine. After an error the window stays in place and is retried.
    pub(super) fn quarantine(&mut self, name: WindowName) {
        if let Err(error) = move_to_quarantine(&self.pool, name) {
            tracing::error!(%error, "failed to move a window of results to quarantine");
            self.unopened.windows.push(vec![name]);
        }
    }
}

/// Opens the current generation of a window, and removes the others. `may_grow` is true for the
/// last window, to which records can be appended.
fn open_one(
    pool: &Arc<Pool>,
    index: &Index,
    names: &[WindowName],
    may_grow: bool,
) -> Result<Opened, StoreError> {
    let mut opened = Opened { window: None, filled: None, was_damaged: false };
    let current = current(pool, index, names, &mut opened.was_damaged)?;
    for other in names.iter().filter(|name| current.is_none_or(|(current, _)| current != **name)) {
        remove(pool, *other);
    }
    let Some((name, summary)) = current else { return Ok(opened) };
    if let Some(summary) = summary {
        let window = Window::new(pool.clone(), name, summary);
        window.note_disk_bytes();
        opened.window = Some(window);
        return Ok(opened);
    }
    let window = match measured(pool, name) {
        Err(error @ StoreError::Damaged(_)) => {
            opened.was_damaged = true;
            quarantine_damaged(pool, name, &error)?;
            return Ok(opened);
        }
        window => window?,
    };
    let is_damaged = window.is_damaged.load(Relaxed);
    opened.was_damaged |= is_damaged;
    if window.records() == 0 {
        if is_damaged || pool.disk_bytes(name) > EMPTY_DISK_BYTES {
            opened.was_damaged = true;
            quarantine_damaged(pool, name, &StoreError::Damaged("window of records"))?;
        } else {
            remove(pool, name);
        }
        return Ok(opened);
    }
    if may_grow && !is_damaged {
        opened.filled = Some(window.files()?);
    } else if pool.may_change() {
        window.seal(&*window.files()?, window.last_cursor())?;
    }
    opened.window = Some(window);
    Ok(opened)
}

/// Finds the current generation of a window: the newest sealed one, or the first if none is sealed;
/// `None` if there is neither.
fn current(
    pool: &Pool,
    index: &Index,
    names: &[WindowName],
    was_damaged: &mut bool,
) -> Result<Option<(WindowName, Option<Summary>)>, StoreError> {
    let mut filled = None;
    for name in names.iter().rev() {
        if let Some(summary) = index.get(name) {
            return Ok(Some((*name, Some(*summary))));
        }
        if !pool.is_created(*name)? {
            continue;
        }
        match pool.files(*name).and_then(|files| files.summary()) {
            Ok(Some(summary)) => return Ok(Some((*name, Some(summary)))),
            Ok(None) => filled = name.is_first().then_some((*name, None)),
            Err(error @ StoreError::Damaged(_)) => {
                *was_damaged = true;
                quarantine_damaged(pool, *name, &error)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Logs a damaged window, and moves it to quarantine unless the log is opened read-only.
fn quarantine_damaged(pool: &Pool, name: WindowName, error: &StoreError) -> Result<(), StoreError> {
    tracing::error!(%error, first_cursor = name.first_cursor, "window of results damaged");
    if pool.may_change() { move_to_quarantine(pool, name) } else { Ok(()) }
}

/// Moves a window to the quarantine in the state directory, the parent of the directory of the log.
fn move_to_quarantine(pool: &Pool, name: WindowName) -> Result<(), StoreError> {
    pool.close(name);
    let (path, directory) = (pool.path(name), pool.directory());
    match quarantine::put(directory.parent().unwrap_or(directory), &path) {
        // The window was moved before.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !path.exists() => Ok(()),
        done => done.map_err(|source| StoreError::Directory { path, source }),
    }
}

/// Removes a window without records or an outdated generation. After an error the next start finds
/// and removes it.
fn remove(pool: &Pool, name: WindowName) {
    if !pool.may_change() || !pool.path(name).exists() {
        return;
    }
    pool.close(name);
    if let Err(error) = pool.remove(name) {
        tracing::warn!(%error, "failed to remove a window of results");
    }
}
