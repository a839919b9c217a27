//! The one thread that writes results. What it has taken is handed to the kernel within
//! [`FLUSH_NS`], and only then do readers see it: what a reader saw survives the death of this
//! process. The disk is made to write every [`SYNC_NS`], the bound of what a loss of power costs.

use std::{
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use nix::sys::statvfs::statvfs;
use tokio::sync::{oneshot, watch};

use super::{
    Entry, StoreError, StoredStatistics,
    engine::Engine,
    high_water::HighWater,
    results::{NEXT_CURSOR, Trees},
    window::Windows,
};
use crate::{
    model::limits::MAXIMUM_CONSUMERS,
    time::{Now, UnixTime},
};

const FLUSH_NS: u64 = 50_000_000;
const SYNC_NS: u64 = 5_000_000_000;
const RETENTION_EVERY_NS: u64 = 1_000_000_000;
/// Free octets on the disk below which nothing is written: a database that hits the end of the
/// disk is worse than one that misses records.
pub(super) const RESERVE_OCTETS: u64 = 16 << 20;

/// How long records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Age at which records go, nanoseconds.
    pub age_ns: u64,
    /// Octets beyond which the oldest go.
    pub octets: u64,
}

/// What the store holds and how it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreState {
    /// What is wrong; empty when nothing is.
    pub detail: String,
    /// Cursor of the earliest record; 0 where there is none.
    pub earliest: u64,
    /// Cursor of the newest record that may be read; 0 where there never was one.
    pub newest: u64,
    /// Records stored.
    pub records: u64,
    /// Their octets.
    pub live_octets: u64,
    /// Octets on disk.
    pub disk_octets: u64,
    /// Records that could not be written.
    pub dropped: u64,
}

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Command {
    Append(Entry),
    SaveStatistics(Vec<(Vec<u8>, Option<StoredStatistics>)>),
    MoveConsumer(String, u64, oneshot::Sender<Result<u64, StoreError>>),
    DeleteConsumer(String, oneshot::Sender<Result<bool, StoreError>>),
    SetRetention(Retention),
    End,
}

/// The state of the thread.
pub(super) struct Writer {
    pub(super) engine: Engine,
    pub(super) trees: Trees,
    pub(super) windows: Windows,
    pub(super) retention: Retention,
    pub(super) state: watch::Sender<StoreState>,
    pub(super) now: fn() -> Now,
    pub(super) path: PathBuf,
    pub(super) mark: HighWater,
    /// Written and not yet handed to the kernel.
    pub(super) unflushed: bool,
    /// Handed to the kernel and not yet written by the disk.
    pub(super) unsynced: bool,
    pub(super) dropped: u64,
    pub(super) failure: Option<String>,
}

impl Writer {
    /// Until it is told to end, or nobody is left who could tell.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let start = (self.now)().monotonic;
        let (mut flush_due, mut sync_due, mut retention_due) =
            (start, start.plus_ns(SYNC_NS), start);
        loop {
            let now = (self.now)();
            if retention_due <= now.monotonic {
                retention_due = now.monotonic.plus_ns(RETENTION_EVERY_NS);
                self.keep_house(now.unix);
            }
            if sync_due <= now.monotonic {
                sync_due = now.monotonic.plus_ns(SYNC_NS);
                self.flush(true);
            } else if self.unflushed && flush_due <= now.monotonic {
                self.flush(false);
            }
            let wake = if self.unflushed { flush_due } else { sync_due.min(retention_due) };
            let wait = Duration::from_nanos(wake.since_ns(now.monotonic));
            let command = match commands.recv_timeout(wait) {
                Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(command) => command,
                Err(RecvTimeoutError::Timeout) => continue,
            };
            let was_clean = !self.unflushed;
            self.carry_out(command);
            if was_clean && self.unflushed {
                flush_due = (self.now)().monotonic.plus_ns(FLUSH_NS);
            }
        }
        self.end();
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Append(entry) => self.append(&entry),
            Command::SaveStatistics(statistics) => self.save(statistics),
            Command::MoveConsumer(name, cursor, answer) => {
                let _ = answer.send(self.move_consumer(&name, cursor));
            }
            Command::DeleteConsumer(name, answer) => {
                let removed = self.trees.consumers.remove(name.as_bytes());
                self.unflushed = true;
                let _ = answer.send(removed.map(|old| old.is_some()).map_err(Into::into));
            }
            Command::SetRetention(retention) => {
                self.retention = retention;
                self.keep_house((self.now)().unix);
            }
            Command::End => {}
        }
    }

    fn append(&mut self, entry: &Entry) {
        if self.failure.is_some() {
            self.dropped += 1;
            return;
        }
        match self.windows.append(&self.engine, self.retention, entry) {
            Ok(_) => self.unflushed = true,
            Err(error) => {
                self.dropped += 1;
                self.fail(&error);
            }
        }
    }

    fn save(&mut self, statistics: Vec<(Vec<u8>, Option<StoredStatistics>)>) {
        if self.failure.is_some() {
            return;
        }
        let as_of_cursor = self.windows.next_cursor() - 1;
        for (key, stored) in statistics {
            let tree = &self.trees.statistics;
            let done = match stored {
                Some(stored) => {
                    let stored = StoredStatistics { as_of_cursor, ..stored };
                    tree.insert(key, prost::Message::encode_to_vec(&stored))
                }
                None => tree.remove(key),
            };
            if let Err(error) = done {
                return self.fail(&error.into());
            }
            self.unflushed = true;
        }
    }

    fn move_consumer(&mut self, name: &str, cursor: u64) -> Result<u64, StoreError> {
        if let Some(failure) = &self.failure {
            return Err(StoreError::Database(failure.clone()));
        }
        let known = super::results::position(&self.trees.consumers, name)?;
        if known.is_none() && self.trees.consumers.len() >= MAXIMUM_CONSUMERS {
            return Err(StoreError::TooManyConsumers(MAXIMUM_CONSUMERS));
        }
        let old = known.unwrap_or(0);
        if cursor > old {
            self.trees.consumers.insert(name.as_bytes(), &cursor.to_be_bytes())?;
            self.engine.flush()?;
            self.unsynced = true;
        }
        Ok(cursor.max(old))
    }

    /// Retention, and whether the disk has room.
    fn keep_house(&mut self, now: UnixTime) {
        match free_octets(&self.path) {
            Some(free) if free < RESERVE_OCTETS => {
                self.failure = Some(full(free));
            }
            _ if self.failure.as_ref().is_some_and(|failure| failure.starts_with(FULL)) => {
                self.failure = None;
                tracing::info!("the disk has room again; results are stored");
            }
            _ => {}
        }
        if let Err(error) = self.windows.retain(&self.engine, self.retention, now) {
            self.fail(&error);
        }
        self.publish();
    }

    fn flush(&mut self, durably: bool) {
        let mut result = Ok(());
        if std::mem::take(&mut self.unflushed) {
            result = self.engine.flush();
            self.unsynced = true;
        }
        if durably && result.is_ok() && std::mem::take(&mut self.unsynced) {
            result = self.engine.flush_durably();
            if let Err(error) = self.mark.write(self.windows.newest()) {
                tracing::warn!(%error, "the newest cursor was not noted");
            }
        }
        match result {
            Ok(()) => self.publish(),
            Err(error) => self.fail(&error),
        }
    }

    fn publish(&mut self) {
        let (records, live_octets, earliest) = self.windows.figures();
        let newest =
            if self.unflushed { self.state.borrow().newest } else { self.windows.newest() };
        let state = StoreState {
            detail: self.failure.clone().unwrap_or_default(),
            earliest: earliest.unwrap_or(0),
            newest,
            records,
            live_octets,
            disk_octets: self.engine.disk_octets(),
            dropped: self.dropped,
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
        }
        self.failure = Some(error.to_string());
        self.publish();
    }

    fn end(mut self) {
        let next = self.windows.next_cursor().to_be_bytes();
        if let Err(error) = self.trees.meta.insert(NEXT_CURSOR, &next) {
            tracing::error!(%error, "cannot mark the results as cleanly closed");
        }
        self.unflushed = true;
        self.flush(true);
    }
}

const FULL: &str = "the disk is full";

fn full(free: u64) -> String {
    format!("{FULL}: {free} octets free, {RESERVE_OCTETS} needed; results are not stored")
}

/// Free octets for this user; `None` where the system does not tell.
pub(super) fn free_octets(path: &std::path::Path) -> Option<u64> {
    let figures = statvfs(path).ok()?;
    Some(figures.blocks_available() as u64 * figures.fragment_size() as u64)
}
