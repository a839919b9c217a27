//! Thread that writes results. It hands records to the kernel within [`FLUSH_NS`], and readers see
//! them only after that: a record that a reader has seen survives the death of this process. It
//! syncs the disk every [`SYNC_NS`], which limits the loss of records with a loss of power.

mod maintenance;

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
    disk_usage::DiskUsage,
    engine::Engine,
    identity::IdentityCopy,
    incarnations::Incarnations,
    presence::Presence,
    retention::Retention,
    state::{Changed, NEXT_CURSOR, SEQUENCE, SharedTrees, Trees, position, snapshot_value},
    window::WindowList,
    windows::Windows,
};
use crate::{
    model::limits::MAXIMUM_CONSUMERS,
    time::{Monotonic, Now},
};

const FLUSH_NS: u64 = 20_000_000;
const SYNC_NS: u64 = 5_000_000_000;
const RETENTION_INTERVAL_NS: u64 = 1_000_000_000;
/// Interval of the steps of a removal from a window, so that pending writes are not delayed.
const TRIM_INTERVAL_NS: u64 = 100_000_000;
/// Interval of attempts to reopen a database that failed.
const REOPEN_INTERVAL_NS: u64 = 2_000_000_000;

/// Databases while they are open.
pub(super) struct Open {
    pub(super) windows: Windows,
    pub(super) engine: Engine,
}

impl Open {
    fn disk_bytes(&self) -> u64 {
        self.engine.disk_bytes() + self.windows.disk_bytes()
    }
}

/// State of the thread.
pub(super) struct Writer {
    /// `None` after a failure, until the databases are reopened.
    pub(super) open: Option<Open>,
    /// List of windows that is shared with readers.
    pub(super) list: Arc<RwLock<WindowList>>,
    pub(super) trees: SharedTrees,
    pub(super) connections: Arc<Connections>,
    pub(super) incarnations: Arc<RwLock<Incarnations>>,
    pub(super) presence: Presence,
    pub(super) identity: IdentityCopy,
    pub(super) disk_usage: DiskUsage,
    pub(super) age_guard: AgeGuard,
    /// Newest cursor received, whether its record was stored or not.
    pub(super) newest: u64,
    pub(super) retention: Retention,
    pub(super) state: watch::Sender<StoreState>,
    pub(super) now: fn() -> Now,
    /// Path of the state database.
    pub(super) path: PathBuf,
    /// Directory of the log.
    pub(super) log_path: PathBuf,
    pub(super) reservation: CursorReservation,
    /// Last stored value of [`SEQUENCE`].
    pub(super) state_sequence: u64,
    /// True if data is not yet handed to the kernel.
    pub(super) unflushed: bool,
    /// True if data is not yet synced to the disk.
    pub(super) unsynced: bool,
    pub(super) dropped: u64,
    /// Parts of statistics that are not stored yet, by key; limited by the number of parts.
    pub(super) unsaved: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pub(super) failure: Option<String>,
    /// Time of the next attempt to reopen a database that failed.
    pub(super) reopen_due: Option<Monotonic>,
}

impl Writer {
    /// Runs until [`Command::End`], or until all senders are dropped.
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
                let wait_ns = if trimming { TRIM_INTERVAL_NS } else { RETENTION_INTERVAL_NS };
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

    /// Runs a step, and treats a panic as a failure: sled panics on some disk errors.
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
                // Each commit of the configuration sends the retention, changed or not.
                if self.retention != retention {
                    self.retention = retention;
                    if let Some(open) = &self.open {
                        open.windows.reset_trim_ages();
                    }
                }
                self.run_maintenance((self.now)());
            }
            Command::SaveConnections => self.unflushed = true,
            Command::BeginIncarnation(id) => self.begin_incarnation(&id),
            Command::Flush(answer) => {
                self.unflushed = true;
                self.check_presence();
                self.flush(false);
                let failure = self.failure.clone().map(StoreError::Database);
                let _ =
                    answer.send(self.presence.check().and_then(|()| failure.map_or(Ok(()), Err)));
            }
            Command::End => {}
        }
    }

    /// Begins an incarnation with the next record. Records received before belong to the previous
    /// one. Readers have not seen later records yet.
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
                // Readers that follow the log get the record from memory, so its cursor is used.
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

    /// Stores parts of statistics, including those of earlier failed attempts. After an error they
    /// are kept for the next attempt.
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
        // Records are written before the statistics that include them.
        if let Err(error) = self.open.as_mut().map_or(Ok(()), |open| open.windows.write_page()) {
            return self.fail(&error);
        }
        // The shortest key is written last: its presence shows that all others are complete.
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

    fn working_trees(&mut self) -> Result<Trees, StoreError> {
        self.check_presence();
        match &self.failure {
            Some(failure) => Err(StoreError::Database(failure.clone())),
            None => self.trees().ok_or(StoreError::Unavailable),
        }
    }

    fn trees(&self) -> Option<Trees> {
        self.trees.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn flush(&mut self, durably: bool) {
        let mut result = Ok(());
        let failed = self.failure.is_some();
        let trees = self.trees();
        if std::mem::take(&mut self.unflushed)
            && let (false, Some(Open { engine, windows }), Some(trees)) =
                (failed, &mut self.open, &trees)
        {
            // States of connections are stored after the events that report them.
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
        // The reservation is written before readers see the cursor.
        if result.is_ok()
            && !failed
            && let Err(error) = self.reservation.write(self.newest, durable_state)
            && durably
        {
            tracing::warn!(%error, "failed to store the newest cursor");
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
            disk_bytes: self.open.as_ref().map_or(0, Open::disk_bytes)
                + self.disk_usage.other_bytes(),
            dropped: self.dropped,
            keep_all_until: self.age_guard.keep_all_until(),
        };
        self.state.send_if_modified(|old| {
            let changed = *old != state;
            *old = state;
            changed
        });
    }

    /// Handles a failure of the database: logs and publishes it. Records are dropped until the
    /// database is reopened.
    fn fail(&mut self, error: &StoreError) {
        if self.failure.is_none() {
            tracing::error!(%error, "results database failed, results are not stored");
            // Reopening is delayed, because it hides the stored records from readers until it
            // succeeds.
            self.reopen_due = Some((self.now)().monotonic.plus_ns(REOPEN_INTERVAL_NS));
        }
        self.stop_storing(error.to_string());
        self.publish();
    }

    /// Stops storing. Later records are reported without being stored, so their cursors are
    /// reserved first.
    fn stop_storing(&mut self, reason: String) {
        if self.failure.replace(reason).is_none()
            && let Err(error) = self.reservation.reserve_unstored(self.newest)
        {
            tracing::error!(%error, "failed to reserve cursors, a restart may reuse some");
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
                tracing::error!(%error, "failed to mark the results as cleanly closed");
            }
        }
        self.publish();
        *self.trees.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
