//! The result log, the statistics over it and the positions of its consumers.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError, RwLock, mpsc},
    thread::JoinHandle,
};

use prost::Message;
use tokio::sync::{oneshot, watch};

use super::{
    Entry, Retention, StateDirectory, StoreError, StoreState,
    engine::Engine,
    window::{self, WindowList, Windows},
    writer::{Command, Writer},
};
use crate::{proto, time::Now};

const CACHE_OCTETS: u64 = 16 << 20;
/// Commands that wait for the writer. At 4 KiB each this bounds the memory of a disk that stalls;
/// beyond it, records are dropped and counted.
const QUEUE: usize = 16_384;
/// How far cursors jump when the host went down with cursors that readers may have seen and the
/// disk may not: far more than can be written between two syncs.
const CURSOR_JUMP: u64 = 1 << 20;

/// Only there after a clean end.
pub(super) const NEXT_CURSOR: &[u8] = b"next-cursor";
const AGENT: &[u8] = b"agent-id";
const KERNEL_BOOT: &[u8] = b"kernel-boot-id";

/// Statistics of a session as they are kept.
#[derive(Clone, PartialEq, Message)]
pub struct StoredStatistics {
    /// Over all tests.
    #[prost(message, optional, tag = "1")]
    pub all: Option<proto::Statistics>,
    /// Of the last test.
    #[prost(message, optional, tag = "2")]
    pub last: Option<proto::Statistics>,
    /// Results behind this cursor are not in them. Set by the writer.
    #[prost(uint64, tag = "3")]
    pub as_of_cursor: u64,
}

/// The trees beside the log.
#[derive(Clone, Debug)]
pub(super) struct Trees {
    pub(super) meta: sled::Tree,
    pub(super) consumers: sled::Tree,
    pub(super) statistics: sled::Tree,
}

/// The result database. Reading blocks on the disk; writing is handed to a thread.
#[derive(Debug)]
pub struct ResultStore {
    commands: mpsc::SyncSender<Command>,
    windows: Arc<RwLock<WindowList>>,
    trees: Trees,
    state: watch::Receiver<StoreState>,
    agent_id: String,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ResultStore {
    /// Opens the database in a state directory. A damaged one is put aside and a new one begun.
    /// `new_agent_id` is taken where there is none yet.
    pub fn open(
        directory: &StateDirectory,
        retention: Retention,
        new_agent_id: &str,
        now: fn() -> Now,
    ) -> Result<Self, StoreError> {
        let path = directory.path().join("results.sled");
        let engine = Engine::open(&path, CACHE_OCTETS)?;
        let trees = Trees {
            meta: engine.tree("meta")?,
            consumers: engine.tree("consumers")?,
            statistics: engine.tree("statistics")?,
        };
        let agent_id = agent_id(&trees.meta, new_agent_id)?;
        let at_least = first_cursor(&engine, &trees.meta)?;
        let windows = Windows::open(&engine, &trees.meta, at_least)?;
        engine.flush_durably()?;
        let state = StoreState {
            newest: windows.newest(),
            earliest: windows.figures().2.unwrap_or(0),
            ..StoreState::default()
        };
        let (publish, state) = watch::channel(state);
        let (commands, receiver) = mpsc::sync_channel(QUEUE);
        let shared = windows.shared();
        let writer = Writer {
            engine,
            trees: trees.clone(),
            windows,
            retention,
            state: publish,
            now,
            path,
            unflushed: false,
            unsynced: false,
            dropped: 0,
            failure: None,
        };
        let thread = std::thread::Builder::new()
            .name("result-writer".into())
            .spawn(move || writer.run(&receiver))
            .map_err(|source| StoreError::Directory { path: directory.path().into(), source })?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { commands, windows: shared, trees, state, agent_id, thread })
    }

    /// The agent, for ever.
    pub fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// What the store holds; changes when there is more to read.
    pub fn state(&self) -> watch::Receiver<StoreState> {
        self.state.clone()
    }

    /// Hands an entry to the writer; an error where the queue is full.
    pub fn append(&self, entry: Entry) -> Result<(), StoreError> {
        self.command(Command::Append(entry))
    }

    /// Hands statistics to the writer, as of the entries handed to it so far; `None` removes.
    pub fn save_statistics(
        &self,
        statistics: Vec<(Vec<u8>, Option<StoredStatistics>)>,
    ) -> Result<(), StoreError> {
        self.command(Command::SaveStatistics(statistics))
    }

    /// Changes how long records are kept.
    pub fn set_retention(&self, retention: Retention) -> Result<(), StoreError> {
        self.command(Command::SetRetention(retention))
    }

    /// All statistics with their keys.
    pub fn statistics(&self) -> Result<Vec<(Vec<u8>, StoredStatistics)>, StoreError> {
        self.trees
            .statistics
            .iter()
            .map(|entry| {
                let (key, value) = entry?;
                let stored = StoredStatistics::decode(value.as_ref())
                    .map_err(|_| StoreError::Damaged("statistics"))?;
                Ok((key.to_vec(), stored))
            })
            .collect()
    }

    /// Entries behind `after` and up to `up_to`, at most so many records and octets. Rising; with
    /// `backwards` the newest of them, falling.
    pub fn entries(
        &self,
        after: u64,
        up_to: u64,
        records: usize,
        octets: usize,
        backwards: bool,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let list = window::read(&self.windows);
        window::entries(&list, after.saturating_add(1)..=up_to, records, octets, backwards)
    }

    /// The consumers with their positions.
    pub fn consumers(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.trees
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

    /// Position of a consumer.
    pub fn consumer(&self, name: &str) -> Result<Option<u64>, StoreError> {
        position(&self.trees.consumers, name)
    }

    /// Moves a consumer forward, never back; returns where it is then.
    pub async fn move_consumer(&self, name: &str, cursor: u64) -> Result<u64, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::MoveConsumer(name.to_owned(), cursor, answer))?;
        answered.await.map_err(|_| StoreError::Unavailable)?
    }

    /// Forgets a consumer; whether there was one.
    pub async fn delete_consumer(&self, name: &str) -> Result<bool, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::DeleteConsumer(name.to_owned(), answer))?;
        answered.await.map_err(|_| StoreError::Unavailable)?
    }

    /// Writes what waits, durably, and ends the thread. Blocks.
    pub fn close(&self) {
        // Unlike everything else this waits for room in the queue: it is the last command.
        let _ = self.commands.send(Command::End);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the result writer failed; the latest results may be missing");
        }
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

/// Position of a consumer.
pub(super) fn position(consumers: &sled::Tree, name: &str) -> Result<Option<u64>, StoreError> {
    consumers.get(name.as_bytes())?.map(|value| cursor_value(&value)).transpose()
}

fn cursor_value(value: &[u8]) -> Result<u64, StoreError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Damaged("position"))
}

fn agent_id(meta: &sled::Tree, new: &str) -> Result<String, StoreError> {
    match meta.get(AGENT)? {
        Some(id) => String::from_utf8(id.to_vec()).map_err(|_| StoreError::Damaged("agent id")),
        None => {
            meta.insert(AGENT, new)?;
            Ok(new.to_owned())
        }
    }
}

/// The cursor from which on none was ever given out. After a clean end it is known. After the
/// death of the process alone everything that was seen is found. After a crash of the host what
/// was seen may not be there, and cursors jump: a cursor never names two records.
fn first_cursor(engine: &Engine, meta: &sled::Tree) -> Result<u64, StoreError> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = boot.trim().as_bytes();
    let last_boot = meta.insert(KERNEL_BOOT, boot)?;
    let clean = meta.remove(NEXT_CURSOR)?;
    match (clean, last_boot) {
        (Some(next), _) => cursor_value(&next),
        (None, Some(last)) if last.as_ref() != boot => {
            let found = Windows::open(engine, meta, 1)?.next_cursor();
            tracing::warn!(found, "the host went down while results were written; cursors jump");
            Ok(found + CURSOR_JUMP)
        }
        _ => Ok(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::limits::MAXIMUM_CONSUMERS,
        time::{Monotonic, UnixTime},
    };
    use std::time::{Duration, SystemTime};

    const MINUTE_NS: u64 = 60_000_000_000;
    const RETENTION: Retention = Retention { age_ns: 16 * MINUTE_NS, octets: 1 << 30 };

    #[allow(clippy::disallowed_methods)]
    fn now() -> Now {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let ns = since.as_nanos() as u64;
        Now { monotonic: Monotonic(ns), unix: UnixTime(ns) }
    }

    fn open(directory: &StateDirectory) -> ResultStore {
        ResultStore::open(directory, RETENTION, "agent", now).unwrap()
    }

    fn entry(time_ns: u64, octets: usize) -> Entry {
        Entry { time: UnixTime(time_ns), octets: vec![7; octets] }
    }

    fn wait_for(store: &ResultStore, what: impl Fn(&StoreState) -> bool) -> StoreState {
        for _ in 0..500 {
            let state = store.state().borrow().clone();
            if what(&state) {
                return state;
            }
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the store did not get there: {:?}", *store.state().borrow());
    }

    fn cursors(store: &ResultStore, after: u64) -> Vec<u64> {
        let newest = store.state().borrow().newest;
        let entries = store.entries(after, newest, 1000, 1 << 20, false).unwrap();
        entries.into_iter().map(|(cursor, _)| cursor).collect()
    }

    #[test]
    fn cursors_rise_over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        for run in 0..3 {
            let store = open(&state);
            for _ in 0..4 {
                store.append(entry(now().unix.0, 10)).unwrap();
            }
            wait_for(&store, |state| state.newest == 4 * (run + 1));
            assert_eq!(cursors(&store, 0), (1..=4 * (run + 1)).collect::<Vec<_>>());
            store.close();
        }
    }

    #[test]
    fn a_crash_of_the_host_leaves_a_gap_and_no_cursor_twice() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = open(&state);
        store.append(entry(now().unix.0, 10)).unwrap();
        wait_for(&store, |state| state.newest == 1);
        store.close();
        let meta = store.trees.meta.clone();
        meta.remove(NEXT_CURSOR).unwrap();
        meta.insert(KERNEL_BOOT, "another boot").unwrap();
        drop((meta, store));
        let store = open(&state);
        store.append(entry(now().unix.0, 10)).unwrap();
        wait_for(&store, |state| state.newest > 1 + CURSOR_JUMP);
        assert_eq!(cursors(&store, 0), [1, 2 + CURSOR_JUMP]);
    }

    #[test]
    fn windows_go_whole_by_age_and_by_octets() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let retention = Retention { age_ns: 16 * MINUTE_NS, octets: 160_000 };
        let store = ResultStore::open(&state, retention, "agent", now).unwrap();
        // One window each, by octets: the quota holds sixteen of them.
        for _ in 0..40 {
            store.append(entry(now().unix.0, 5_000)).unwrap();
            store.append(entry(now().unix.0, 5_000)).unwrap();
        }
        let kept = wait_for(&store, |state| state.newest == 80 && state.live_octets <= 160_000);
        assert!(kept.records >= 28 && kept.records % 2 == 0, "{kept:?}");
        assert_eq!(kept.earliest, 80 - kept.records + 1);
        // All of it is older than the new age allows; the cursors go on.
        store.set_retention(Retention { age_ns: 1, octets: 160_000 }).unwrap();
        let empty = wait_for(&store, |state| state.records == 0);
        assert_eq!((empty.newest, empty.earliest), (80, 0));
        store.close();
        drop(store);
        let store = open(&state);
        store.append(entry(now().unix.0, 10)).unwrap();
        wait_for(&store, |state| state.newest == 81);
    }

    #[test]
    fn reads_forwards_and_backwards_over_windows() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = open(&state);
        // Two minutes apart, so that each has a window of its own.
        for minute in 0..10 {
            store.append(entry(now().unix.0 + minute * 2 * MINUTE_NS, 10)).unwrap();
        }
        wait_for(&store, |state| state.newest == 10);
        assert_eq!(window::read(&store.windows).len(), 10);
        let store_entries = |after, up_to, count, backwards| -> Vec<u64> {
            let entries = store.entries(after, up_to, count, 1 << 20, backwards).unwrap();
            entries.into_iter().map(|(cursor, _)| cursor).collect()
        };
        assert_eq!(store_entries(0, 10, 100, false), (1..=10).collect::<Vec<_>>());
        assert_eq!(store_entries(0, 10, 100, true), (1..=10).rev().collect::<Vec<_>>());
        assert_eq!(store_entries(3, 8, 2, false), [4, 5]);
        assert_eq!(store_entries(3, 8, 2, true), [8, 7]);
        assert!(store_entries(10, 10, 5, false).is_empty());
    }

    #[tokio::test]
    async fn consumers_only_move_forward() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = open(&state);
        assert_eq!(store.consumer("c").unwrap(), None);
        assert_eq!(store.move_consumer("c", 5).await.unwrap(), 5);
        assert_eq!(store.move_consumer("c", 3).await.unwrap(), 5);
        drop(store);
        let store = open(&state);
        assert_eq!(store.consumers().unwrap(), [("c".to_owned(), 5)]);
        assert!(store.delete_consumer("c").await.unwrap());
        assert!(!store.delete_consumer("c").await.unwrap());
    }

    /// A log that retention emptied, and an end without warning.
    #[test]
    fn cursors_rise_also_when_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = open(&state);
        for _ in 0..22 {
            store.append(entry(now().unix.0 - 100 * MINUTE_NS, 10)).unwrap();
        }
        wait_for(&store, |state| state.newest == 22 && state.records == 0);
        drop(store);
        // As if it had been killed.
        let engine = Engine::open(&directory.path().join("results.sled"), CACHE_OCTETS).unwrap();
        assert!(engine.tree("meta").unwrap().remove(NEXT_CURSOR).unwrap().is_some());
        engine.flush_durably().unwrap();
        drop(engine);
        let store = open(&state);
        assert_eq!(store.state().borrow().newest, 22);
        store.append(entry(now().unix.0, 10)).unwrap();
        wait_for(&store, |state| state.newest == 23);
    }

    #[test]
    fn windows_that_are_full_are_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = open(&state);
        // Each in a window of its own.
        let start = now().unix.0 - 10 * MINUTE_NS;
        for window in 0..5 {
            store.append(entry(start + window * 2 * MINUTE_NS, 100)).unwrap();
        }
        wait_for(&store, |state| state.records == 5);
        let before = store.state().borrow().clone();
        drop(store);
        let engine = Engine::open(&directory.path().join("results.sled"), CACHE_OCTETS).unwrap();
        // What is behind a summary is taken as it says, without a look.
        for name in engine.tree_names().iter().filter(|name| name.starts_with(b"log/")) {
            if engine.tree("meta").unwrap().contains_key(name).unwrap() {
                engine.tree(name).unwrap().clear().unwrap();
            }
        }
        engine.flush_durably().unwrap();
        drop(engine);
        let store = open(&state);
        wait_for(&store, |state| state.records == 5);
        let after = store.state().borrow().clone();
        assert_eq!((after.newest, after.earliest), (before.newest, before.earliest));
        assert_eq!(after.live_octets, before.live_octets);
    }

    #[tokio::test]
    async fn consumers_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&StateDirectory::open(directory.path()).unwrap());
        for consumer in 0..MAXIMUM_CONSUMERS {
            store.move_consumer(&format!("c{consumer}"), 1).await.unwrap();
        }
        let refused = store.move_consumer("one-too-many", 1).await.unwrap_err();
        assert!(matches!(refused, StoreError::TooManyConsumers(_)), "{refused}");
        store.move_consumer("c0", 2).await.unwrap();
        store.delete_consumer("c1").await.unwrap();
        store.move_consumer("one-too-many", 1).await.unwrap();
    }

    #[test]
    fn a_damaged_database_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        drop(open(&state));
        let file = directory.path().join("results.sled/db");
        let octets = fs::metadata(&file).unwrap().len();
        fs::write(&file, vec![0xa5; octets as usize]).unwrap();
        let store = open(&state);
        store.append(entry(now().unix.0, 10)).unwrap();
        wait_for(&store, |state| state.newest == 1);
        assert!(directory.path().join("results.damaged").exists());
    }
}
