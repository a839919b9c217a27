//! The one thread that writes results. What it has taken is handed to the kernel within
//! [`FLUSH_NS`], and only then do readers see it: what a reader saw survives the death of this
//! process. The disk is made to write every [`SYNC_NS`], the bound of what a loss of power costs.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Entry, StoreError,
    age_guard::AgeGuard,
    commands::{Command, StoreState, next_command},
    connections::Connections,
    cursor_reservation::CursorReservation,
    engine::Engine,
    incarnations::Incarnations,
    reserve::{self, RESERVE_OCTETS, free_octets},
    retention::Retention,
    state::{
        CACHE_OCTETS, Changed, NEXT_CURSOR, SEQUENCE, SharedTrees, Trees, position, snapshot_value,
    },
    window::WindowList,
    windows::{May, Windows},
};
use crate::{
    model::limits::MAXIMUM_CONSUMERS,
    time::{Monotonic, Now},
};

const FLUSH_NS: u64 = 20_000_000;
const SYNC_NS: u64 = 5_000_000_000;
const RETENTION_EVERY_NS: u64 = 1_000_000_000;
/// Between two steps of taking records out of a window: what is to be written comes first.
const TRIM_EVERY_NS: u64 = 100_000_000;
/// Time between two attempts to open a database that failed.
const OPEN_AGAIN_NS: u64 = 2_000_000_000;

/// The database while it is open.
pub(super) struct Open {
    pub(super) windows: Windows,
    pub(super) engine: Engine,
}

/// The state of the thread.
pub(super) struct Writer {
    /// `None` after a failure, until it could be opened anew.
    pub(super) open: Option<Open>,
    /// The list that readers share.
    pub(super) list: Arc<RwLock<WindowList>>,
    pub(super) trees: SharedTrees,
    pub(super) connections: Arc<Connections>,
    pub(super) incarnations: Arc<RwLock<Incarnations>>,
    pub(super) age_guard: AgeGuard,
    /// The newest cursor that came, stored or not.
    pub(super) newest: u64,
    pub(super) retention: Retention,
    pub(super) state: watch::Sender<StoreState>,
    pub(super) now: fn() -> Now,
    /// Path of the state database.
    pub(super) path: PathBuf,
    /// Directory of the log.
    pub(super) place: PathBuf,
    pub(super) reservation: CursorReservation,
    /// See [`SEQUENCE`].
    pub(super) state_sequence: u64,
    /// Written and not yet handed to the kernel.
    pub(super) unflushed: bool,
    /// Handed to the kernel and not yet written by the disk.
    pub(super) unsynced: bool,
    pub(super) dropped: u64,
    /// Parts of statistics that the database has yet to take, by key: at most all that there are.
    pub(super) unsaved: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pub(super) failure: Option<String>,
    /// When a database that failed is opened anew.
    pub(super) try_again: Option<Monotonic>,
}

impl Writer {
    /// Runs until it is ended, or until no sender is left.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let start = (self.now)().monotonic;
        let (mut flush_due, mut sync_due, mut retention_due) =
            (start, start.plus_ns(SYNC_NS), start);
        let mut appended = false;
        loop {
            let now = (self.now)();
            if retention_due <= now.monotonic {
                self.guarded(|writer| writer.run_maintenance(now));
                let trimming = self.open.as_ref().is_some_and(|open| open.windows.is_trimming());
                let wait_ns = if trimming { TRIM_EVERY_NS } else { RETENTION_EVERY_NS };
                retention_due = now.monotonic.plus_ns(wait_ns);
            }
            if sync_due <= now.monotonic {
                sync_due = now.monotonic.plus_ns(SYNC_NS);
                self.guarded(|writer| writer.flush(true));
            } else if self.unflushed && flush_due <= now.monotonic {
                self.guarded(|writer| writer.flush(false));
            }
            let wake = if self.unflushed { flush_due } else { sync_due.min(retention_due) };
            let wait = Duration::from_nanos(wake.since_ns(now.monotonic));
            let command = match next_command(commands, wait, appended) {
                Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(command) => command,
                Err(RecvTimeoutError::Timeout) => continue,
            };
            appended = matches!(command, Command::Append(_));
            let was_clean = !self.unflushed;
            self.guarded(|writer| writer.carry_out(command));
            if was_clean && self.unflushed {
                flush_due = (self.now)().monotonic.plus_ns(FLUSH_NS);
            }
        }
        self.end();
    }

    /// sled panics over some failures of the disk: that is one like any other.
    fn guarded(&mut self, step: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| step(self))).is_err() {
            self.fail(&StoreError::database_panicked());
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Append(entry) => self.append(&entry),
            Command::SaveStatistics(statistics) => self.save(statistics),
            Command::MoveConsumer(name, cursor, answer) => {
                let _ = answer.send(self.move_consumer(&name, cursor));
            }
            Command::DeleteConsumer(name, answer) => {
                let _ = answer.send(self.delete_consumer(&name));
            }
            Command::SetRetention(retention) => {
                // Each commit tells it, whatever it changed.
                if self.retention != retention {
                    self.retention = retention;
                    if let Some(open) = &self.open {
                        open.windows.look_for_what_goes();
                    }
                }
                self.run_maintenance((self.now)());
            }
            Command::SaveConnections => self.unflushed = true,
            Command::BeginIncarnation(id) => self.begin_incarnation(&id),
            Command::Flush(answer) => {
                self.unflushed = true;
                self.flush(false);
                let _ = answer.send(());
            }
            Command::End => {}
        }
    }

    /// Begins an incarnation with the next record. Those handed over before belong to the earlier
    /// one; none behind it was shown yet.
    fn begin_incarnation(&mut self, id: &str) {
        let earliest = self.state.borrow().earliest;
        let Some(trees) = self.trees() else { return };
        let begun = self.incarnations.write().unwrap_or_else(PoisonError::into_inner).begin(
            (self.directory(), &trees.incarnations),
            id,
            (earliest, self.newest + 1),
        );
        match begun {
            Ok(()) => self.unflushed = true,
            Err(error) => self.fail(&error),
        }
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    fn append(&mut self, entry: &Entry) {
        self.newest = entry.cursor;
        self.unflushed = true;
        let stored = match (&self.failure, &mut self.open) {
            (None, Some(Open { windows, .. })) => windows.append(&self.retention, entry),
            (_, open) => {
                self.dropped += 1;
                // Readers that are there see it all the same.
                if let Some(open) = open {
                    open.windows.pass(entry.cursor);
                }
                return;
            }
        };
        if let Err(error) = stored {
            self.dropped += 1;
            self.fail(&error);
        }
    }

    /// Saves parts of statistics; those that the database did not take yet are kept for when it does.
    fn save(&mut self, statistics: Changed) {
        let as_of = self.newest;
        let values = statistics
            .into_iter()
            .map(|(key, content)| (key, content.map(|content| snapshot_value(as_of, &content))));
        self.unsaved.extend(values);
        if self.failure.is_some() || self.unsaved.is_empty() {
            return;
        }
        let Some(trees) = self.trees() else { return };
        // The log holds all that the statistics count before it holds them.
        if let Err(error) = self.open.as_mut().map_or(Ok(()), |open| open.windows.write_page()) {
            return self.fail(&error);
        }
        // The shortest key is last: it says that all others are there.
        for (key, value) in self.unsaved.iter().rev() {
            let done = match value {
                Some(value) => trees.statistics.insert(key, value.as_slice()),
                None => trees.statistics.remove(key),
            };
            if let Err(error) = done {
                return self.fail(&error.into());
            }
        }
        self.unsaved.clear();
        self.unflushed = true;
    }

    fn move_consumer(&mut self, name: &str, cursor: u64) -> Result<u64, StoreError> {
        let trees = self.working_trees()?;
        let known = position(&trees.consumers, name)?;
        if known.is_none() && trees.consumers.len() >= MAXIMUM_CONSUMERS {
            return Err(StoreError::TooManyConsumers(MAXIMUM_CONSUMERS));
        }
        let old = known.unwrap_or(0);
        if cursor > old {
            trees.consumers.insert(name.as_bytes(), &cursor.to_be_bytes())?;
            if let Some(open) = &self.open {
                open.engine.flush()?;
            }
            self.unsynced = true;
        }
        Ok(cursor.max(old))
    }

    fn delete_consumer(&mut self, name: &str) -> Result<bool, StoreError> {
        let removed = self.working_trees()?.consumers.remove(name.as_bytes())?;
        if let Some(open) = &self.open {
            open.engine.flush()?;
        }
        self.unsynced = true;
        Ok(removed.is_some())
    }

    fn working_trees(&self) -> Result<Trees, StoreError> {
        match &self.failure {
            Some(failure) => Err(StoreError::Database(failure.clone())),
            None => self.trees().ok_or(StoreError::Unavailable),
        }
    }

    fn trees(&self) -> Option<Trees> {
        self.trees.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Applies the retention, checks the space on the disk, and tries a database again that failed.
    fn run_maintenance(&mut self, now: Now) {
        let too_few = free_octets(&self.path).filter(|free| *free < RESERVE_OCTETS);
        match (too_few, &self.failure) {
            (Some(free), _) => self.stop_storing(full(free)),
            (None, Some(failure)) if failure.starts_with(FULL) && self.open.is_some() => {
                self.failure = None;
                tracing::info!("disk has space again, storing results");
                reserve::prepare(self.directory());
            }
            (None, Some(_)) if self.try_again.is_none_or(|again| again <= now.monotonic) => {
                self.try_again = Some(now.monotonic.plus_ns(OPEN_AGAIN_NS));
                self.open_anew();
            }
            (None, _) => {}
        }
        if self.failure.is_none() && !self.unsaved.is_empty() {
            self.save(Vec::new());
        }
        self.unflushed |= self.connections.has_unsaved();
        let may = May { delete_by_age: self.age_guard.update(now), copy: self.failure.is_none() };
        if let Some(Open { engine, windows }) = &mut self.open
            && let Err(error) = windows.retain(&self.retention, now, may, || engine.flush_durably())
        {
            self.fail(&error);
        }
        self.publish();
    }

    /// After an error sled takes nothing more: only a database that is opened anew does.
    fn open_anew(&mut self) {
        *self.trees.write().unwrap_or_else(PoisonError::into_inner) = None;
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        self.open = None;
        let opened = Engine::open(&self.path, CACHE_OCTETS).and_then(|engine| {
            let trees = Trees::open(&engine)?;
            let windows =
                Windows::reopen(&self.place, &trees.meta, self.newest + 1, self.list.clone())?;
            engine.flush_durably()?;
            Ok((trees, Open { windows, engine }))
        });
        match opened {
            Ok((trees, open)) => {
                *self.trees.write().unwrap_or_else(PoisonError::into_inner) = Some(trees);
                self.open = Some(open);
                self.failure = None;
                self.try_again = None;
                tracing::info!("results are stored again");
            }
            Err(error) => self.failure = Some(error.to_string()),
        }
    }

    fn flush(&mut self, durably: bool) {
        let mut result = Ok(());
        let failed = self.failure.is_some();
        let trees = self.trees();
        if std::mem::take(&mut self.unflushed)
            && let (false, Some(Open { engine, windows }), Some(trees)) =
                (failed, &mut self.open, &trees)
        {
            // The state of connections follows the events that report it.
            result = windows
                .flush(false)
                .and_then(|()| self.connections.save(&trees.connections))
                .and_then(|()| engine.flush());
            self.unsynced = true;
        }
        if durably
            && result.is_ok()
            && std::mem::take(&mut self.unsynced)
            && let (false, Some(Open { engine, windows }), Some(trees)) =
                (failed, &mut self.open, &trees)
        {
            self.state_sequence += 1;
            let number = self.state_sequence.to_be_bytes();
            result = windows.flush(true).and_then(|()| {
                trees.meta.insert(SEQUENCE, &number)?;
                engine.flush_durably()
            });
        }
        let durable_state = durably.then_some(self.state_sequence);
        // Before anybody hears of it.
        if result.is_ok()
            && !failed
            && let Err(error) = self.reservation.write(self.newest, durable_state)
            && durably
        {
            tracing::warn!(%error, "the newest cursor was not noted");
        }
        match result {
            Ok(()) => self.publish(),
            Err(error) => self.fail(&error),
        }
    }

    fn publish(&mut self) {
        let figures = self.open.as_ref().map(|open| open.windows.figures());
        let (records, live_bytes, earliest) = figures.unwrap_or_default();
        let trimmed_up_to = self.open.as_ref().map_or(0, |open| open.windows.trimmed_up_to());
        let newest = if self.unflushed { self.state.borrow().newest } else { self.newest };
        let state = StoreState {
            detail: self.failure.clone().unwrap_or_default(),
            earliest: earliest.unwrap_or(0),
            trimmed_up_to,
            newest,
            records,
            live_bytes,
            disk_bytes: self
                .open
                .as_ref()
                .map_or(0, |open| open.engine.disk_bytes() + open.windows.disk_bytes()),
            dropped: self.dropped,
            keep_all_until: self.age_guard.keep_all_until(),
        };
        self.state.send_if_modified(|old| {
            let changed = *old != state;
            *old = state;
            changed
        });
    }

    /// The database does not take more: say so, and go on without it.
    fn fail(&mut self, error: &StoreError) {
        if self.failure.is_none() {
            tracing::error!(%error, "results are no longer stored");
            // Records in the database are lost to readers for now, not to the log.
            self.try_again = Some((self.now)().monotonic.plus_ns(OPEN_AGAIN_NS));
        }
        self.stop_storing(error.to_string());
        self.publish();
    }

    /// Stops storing. Records are reported from now on that are not stored: before the first of them,
    /// their cursors are reserved.
    fn stop_storing(&mut self, why: String) {
        if self.failure.replace(why).is_none()
            && let Err(error) = self.reservation.reserve_unstored(self.newest)
        {
            tracing::error!(%error, "failed to reserve cursors: a restart may give some out again");
        }
    }

    fn end(mut self) {
        self.age_guard.write_note((self.now)());
        self.save(Vec::new());
        self.flush(true);
        if let (None, Some(open), Some(trees)) = (&self.failure, &self.open, self.trees()) {
            let next = (self.newest + 1).to_be_bytes();
            let marked = trees.meta.insert(NEXT_CURSOR, &next);
            if let Err(error) =
                marked.map_err(StoreError::from).and_then(|_| open.engine.flush_durably())
            {
                tracing::error!(%error, "cannot mark the results as cleanly closed");
            }
        }
        self.publish();
        *self.trees.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

const FULL: &str = "the disk is full";

fn full(free: u64) -> String {
    format!("{FULL}: {free} octets free, {RESERVE_OCTETS} needed; results are not stored")
}
