//! The result log and the state database. The latter contains statistics, positions of consumers
//! and states of connections, so that damage to the log does not affect them.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock, mpsc},
    thread::JoinHandle,
};

use tokio::sync::{oneshot, watch};

use super::{
    Entry, PersistedConnection, Retention, StateDirectory, StoreError, StoreState,
    age_guard::AgeGuard,
    commands::Command,
    connections::Connections,
    cursor_reservation::CursorReservation,
    disk_usage::DiskUsage,
    engine::Engine,
    entries,
    identity::{self, IdentityCopy},
    incarnations::Incarnations,
    recovery::{Recovered, recover},
    state::{
        CACHE_OCTETS, Changed, RESULTS, STATE, SharedTrees, Snapshot, Trees, cursor_value,
        position, snapshot,
    },
    times,
    window::{self, WindowList},
    writer::{Open, Writer},
};
use crate::time::{Now, UnixTime};

/// Maximum number of commands that wait for the writer. A command has some hundred bytes, at most
/// 4 KiB, so this limits the memory while the disk stalls. Further records are dropped and counted.
const QUEUE: usize = 32_768;
/// Store of the log and the state. Reads block on the disk; writes are sent to a thread.
#[derive(Debug)]
pub struct ResultStore {
    commands: mpsc::SyncSender<Command>,
    windows: Arc<RwLock<WindowList>>,
    /// `None` inside while the state database is being reopened.
    trees: SharedTrees,
    connections: Arc<Connections>,
    incarnations: Arc<RwLock<Incarnations>>,
    directory: PathBuf,
    state: watch::Receiver<StoreState>,
    agent_id: String,
    damage: String,
    next_cursor: u64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ResultStore {
    /// Opens the store in a state directory. A damaged state database is renamed and replaced with
    /// a new one. `new_agent_id` is used if no identity is stored yet.
    pub fn open(
        directory: &StateDirectory,
        retention: Retention,
        new_agent_id: &str,
        now: fn() -> Now,
    ) -> Result<Self, StoreError> {
        let engine = Engine::open(&path(directory), CACHE_OCTETS)?;
        match Self::with(engine, directory, retention.clone(), new_agent_id, now) {
            Err(error @ (StoreError::Damaged(_) | StoreError::Database(_))) => {
                Self::open_anew(directory, retention, new_agent_id, now, &error)
            }
            opened => opened,
        }
    }

    /// Opens the store with a new state database, and renames the one whose content cannot be read.
    pub fn open_anew(
        directory: &StateDirectory,
        retention: Retention,
        new_agent_id: &str,
        now: fn() -> Now,
        error: &StoreError,
    ) -> Result<Self, StoreError> {
        let engine = Engine::open_replacement(&path(directory), CACHE_OCTETS, error)?;
        Self::with(engine, directory, retention, new_agent_id, now)
    }

    fn with(
        engine: Engine,
        directory: &StateDirectory,
        retention: Retention,
        new_agent_id: &str,
        now: fn() -> Now,
    ) -> Result<Self, StoreError> {
        let log_path = directory.path().join(RESULTS);
        let trees = Trees::open(&engine)?;
        let agent_id = identity::agent_id(directory.path(), &trees.meta, new_agent_id)?;
        let reservation = CursorReservation::new(directory.path());
        let Recovered { windows, damage, state_sequence } =
            recover(&log_path, &trees.meta, reservation.read(), engine.quarantined())?;
        engine.flush_durably()?;
        let (records, live_bytes, earliest) = windows.figures();
        let state = StoreState {
            newest: windows.newest(),
            earliest: earliest.unwrap_or(0),
            records,
            live_bytes,
            disk_bytes: engine.disk_bytes() + windows.disk_bytes(),
            ..StoreState::default()
        };
        let (publish, state) = watch::channel(state);
        let (commands, receiver) = mpsc::sync_channel(QUEUE);
        let shared = windows.shared();
        let next_cursor = windows.next_cursor();
        let connections = Arc::new(Connections::load(&trees.connections)?);
        let incarnations = Incarnations::load(directory.path(), &trees.incarnations)?;
        let incarnations = Arc::new(RwLock::new(incarnations));
        let trees: SharedTrees = Arc::new(RwLock::new(Some(trees)));
        let writer = Writer {
            open: Some(Open { windows, engine }),
            list: shared.clone(),
            trees: trees.clone(),
            connections: connections.clone(),
            incarnations: incarnations.clone(),
            disk_usage: DiskUsage::new(directory.path()),
            presence: directory.presence.clone(),
            identity: IdentityCopy::new(directory.path(), &agent_id),
            age_guard: AgeGuard::new(directory.host(), now()),
            newest: next_cursor - 1,
            retention,
            state: publish,
            now,
            path: path(directory),
            log_path,
            reservation,
            state_sequence,
            unflushed: false,
            unsynced: false,
            dropped: 0,
            unsaved: BTreeMap::new(),
            failure: None,
            reopen_due: None,
        };
        let thread = std::thread::Builder::new()
            .name("result-writer".into())
            .spawn(move || writer.run(&receiver))
            .map_err(|source| StoreError::Directory { path: directory.path().into(), source })?;
        let thread = Mutex::new(Some(thread));
        let windows = shared;
        Ok(Self {
            commands,
            windows,
            trees,
            connections,
            incarnations,
            directory: directory.path().to_owned(),
            state,
            agent_id,
            damage,
            next_cursor,
            thread,
        })
    }

    /// Returns a description of damage that was found at the start; empty if there was none.
    pub fn damage(&self) -> &str {
        &self.damage
    }

    /// Returns the permanent identity of the agent.
    pub fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// Begins an incarnation with the next record. Must be called before the first record is
    /// appended.
    pub fn begin_incarnation(&self, id: &str) -> Result<(), StoreError> {
        let trees = self.trees()?;
        let earliest = self.state.borrow().earliest;
        let mut incarnations = self.incarnations.write().unwrap_or_else(PoisonError::into_inner);
        let copies = (self.directory.as_path(), &trees.incarnations);
        incarnations.begin(copies, id, (earliest, self.next_cursor))
    }

    /// Begins another incarnation after a change of the host or its clock. Records appended after
    /// this call belong to it.
    pub fn change_incarnation(&self, id: String) -> Result<(), StoreError> {
        self.command(Command::BeginIncarnation(id))
    }

    /// Returns the incarnation that wrote a record; `None` if it is not stored.
    pub fn incarnation(&self, cursor: u64) -> Option<Arc<str>> {
        self.incarnations.read().unwrap_or_else(PoisonError::into_inner).at(cursor)
    }

    /// Returns the cursor of the first record after the start.
    pub fn next_cursor(&self) -> u64 {
        self.next_cursor
    }

    /// Returns a receiver of the store's size and health; it changes when new records can be read.
    pub fn state(&self) -> watch::Receiver<StoreState> {
        self.state.clone()
    }

    /// Sends an entry to the writer; an error if the queue is full. Cursors must rise by one.
    pub fn append(&self, entry: Entry) -> Result<(), StoreError> {
        self.command(Command::Append(entry))
    }

    /// Sends parts of statistics to the writer. They must include all entries appended so far;
    /// `None` removes a part. Returns them with the error if the queue is full.
    pub fn save_statistics(&self, statistics: Changed) -> Result<(), (Changed, StoreError)> {
        self.commands.try_send(Command::SaveStatistics(statistics)).map_err(|unsent| {
            let (mpsc::TrySendError::Full(command) | mpsc::TrySendError::Disconnected(command)) =
                unsent;
            let statistics = match command {
                Command::SaveStatistics(statistics) => statistics,
                Command::Append(_)
                | Command::MoveConsumer(..)
                | Command::DeleteConsumer(..)
                | Command::SetRetention(_)
                | Command::SaveConnections
                | Command::BeginIncarnation(_)
                | Command::Flush(_)
                | Command::End => Changed::default(),
            };
            (statistics, StoreError::Unavailable)
        })
    }

    /// Changes how long records are kept.
    pub fn set_retention(&self, retention: Retention) -> Result<(), StoreError> {
        self.command(Command::SetRetention(retention))
    }

    /// Returns all stored statistics.
    pub fn statistics(&self) -> Result<Vec<Snapshot>, StoreError> {
        let trees = self.trees()?;
        let read = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = entry?;
            snapshot(&key, &value)
        };
        trees.statistics.iter().map(read).collect()
    }

    /// Returns entries after the cursor `after` up to `up_to`, limited to `records` and to `octets`
    /// of content, in ascending order. With `backwards`, returns the newest of them in descending
    /// order.
    pub fn entries(
        &self,
        after: u64,
        up_to: u64,
        records: usize,
        octets: usize,
        backwards: bool,
    ) -> Result<Vec<Entry>, StoreError> {
        // The windows are unknown while the database is being reopened.
        self.trees()?;
        let list = window::read(&self.windows);
        entries::entries(&list, after.saturating_add(1)..=up_to, records, octets, backwards)
    }

    /// Returns a range of cursors that contains all records with times in `times`. Its start is
    /// exact, its end may be too high. Empty if there is no such record.
    pub fn cursors_at(&self, times: Range<UnixTime>) -> Result<Range<u64>, StoreError> {
        self.trees()?;
        times::cursors(&window::read(&self.windows), times)
    }

    /// Returns the consumers with their positions.
    pub fn consumers(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let trees = self.trees()?;
        trees
            .consumers
            .iter()
            .map(|entry| {
                let (name, cursor) = entry?;
                let name = String::from_utf8(name.to_vec())
                    .map_err(|_| StoreError::Damaged("consumer"))?;
                Ok((name, cursor_value(&cursor)?))
            })
            .collect()
    }

    /// Returns the state of a connection; the default if there is none.
    pub fn connection(&self, name: &str) -> PersistedConnection {
        self.connections.get(name)
    }

    /// Changes the state of a connection in memory; returns true if it has changed.
    /// [`Self::save_connection`] stores it.
    pub fn update_connection(
        &self,
        name: &str,
        change: impl FnOnce(&mut PersistedConnection),
    ) -> bool {
        self.connections.update(name, change)
    }

    /// Removes the states in memory for which `is_kept` returns false; returns their names.
    pub fn retain_connections(&self, is_kept: impl Fn(&str) -> bool) -> Vec<String> {
        self.connections.retain(is_kept)
    }

    /// Requests that the next flush stores the state of a connection, after the entries appended so
    /// far. Does not wait; a failed write is retried.
    pub fn save_connection(&self, name: &str) {
        self.connections.mark_unsaved(name);
        // If the queue is full, its commands cause the flush.
        let _ = self.command(Command::SaveConnections);
    }

    /// Returns the position of a consumer.
    pub fn consumer(&self, name: &str) -> Result<Option<u64>, StoreError> {
        position(&self.trees()?.consumers, name)
    }

    /// Moves a consumer forward, never backward; returns its position.
    pub async fn move_consumer(&self, name: &str, cursor: u64) -> Result<u64, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::MoveConsumer(name.to_owned(), cursor, answer))?;
        answered.await.map_err(|_| StoreError::Unavailable)?
    }

    /// Waits until everything sent so far is written and survives the death of this process; an error
    /// if the database has failed.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Flush(answer))?;
        answered.await.map_err(|_| StoreError::Unavailable)?
    }

    /// Deletes a consumer; returns true if it existed.
    pub async fn delete_consumer(&self, name: &str) -> Result<bool, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::DeleteConsumer(name.to_owned(), answer))?;
        answered.await.map_err(|_| StoreError::Unavailable)?
    }

    /// Writes all pending data durably, and ends the thread. Blocks.
    pub fn close(&self) {
        // Unlike other commands, the last one waits for space in the queue.
        let _ = self.commands.send(Command::End);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("result writer panicked, the latest results may be lost");
        }
    }

    fn trees(&self) -> Result<Trees, StoreError> {
        let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner);
        trees.clone().ok_or(StoreError::Unavailable)
    }

    fn command(&self, command: Command) -> Result<(), StoreError> {
        self.commands.try_send(command).map_err(|_| StoreError::Unavailable)
    }
}

impl Drop for ResultStore {
    fn drop(&mut self) {
        self.close();
    }
}

fn path(directory: &StateDirectory) -> PathBuf {
    directory.path().join(STATE)
}

#[cfg(test)]
mod tests;
