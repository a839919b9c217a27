//! The log across restarts, retention and recovery.

use super::*;
use crate::{
    model::limits::MAXIMUM_CONSUMERS,
    store::{
        Subject, content, disk,
        layout::WindowName,
        measure::measured,
        pool::Pool,
        recovery::{CRASH_JUMP, CURSOR_JUMP},
        state::{KERNEL_BOOT, NEXT_CURSOR},
    },
    time::{Monotonic, UnixTime},
};
use std::{
    cell::Cell,
    fs,
    ops::Deref,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

mod clock;
mod damage;

const MINUTE_NS: u64 = 60_000_000_000;
fn retention() -> Retention {
    Retention::of_all(16 * MINUTE_NS, 1 << 30)
}

#[allow(clippy::disallowed_methods)]
fn now() -> Now {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let ns = since.as_nanos() as u64;
    Now { monotonic: Monotonic(ns), unix: UnixTime(ns) }
}

/// Store with the next cursor to append.
struct Opened {
    store: ResultStore,
    next: Cell<u64>,
}

impl Deref for Opened {
    type Target = ResultStore;

    fn deref(&self) -> &ResultStore {
        &self.store
    }
}

impl Opened {
    fn with(directory: &StateDirectory, retention: Retention) -> Self {
        let store = ResultStore::open(directory, retention, "agent", now).unwrap();
        Self { next: store.next_cursor().into(), store }
    }

    fn append(&self, time_ns: u64, octets: usize) {
        self.append_of("", time_ns, octets);
    }

    fn append_of(&self, connection: &str, time_ns: u64, octets: usize) {
        let subject = Subject { connection: connection.to_owned(), ..Subject::default() };
        let entry = Entry {
            cursor: self.next.replace(self.next.get() + 1),
            time: UnixTime(time_ns),
            subject: Arc::new(subject),
            kind: 1,
            content: vec![7; octets].into(),
        };
        self.store.append(entry).unwrap();
    }
}

fn open(directory: &StateDirectory) -> Opened {
    Opened::with(directory, retention())
}

/// Returns a state directory whose log has one record; its databases are closed.
fn one_record() -> (tempfile::TempDir, StateDirectory) {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    store.append(now().unix.0, 10);
    wait_for(&store, |state| state.newest == 1);
    drop(store);
    (directory, state)
}

/// Opens the state database, which must be closed.
fn state_engine(directory: &Path) -> Engine {
    Engine::open(&directory.join("state.sled"), CACHE_OCTETS).unwrap()
}

/// Returns the pool and the windows of a log, which must be closed.
fn windows_of(directory: &Path) -> (Arc<Pool>, Vec<WindowName>) {
    let pool = Pool::open(&directory.join(RESULTS)).unwrap();
    let names = pool.names().unwrap();
    (pool, names)
}

fn wait_for(store: &ResultStore, reached: impl Fn(&StoreState) -> bool) -> StoreState {
    for _ in 0..500 {
        let state = store.state().borrow().clone();
        if reached(&state) {
            return state;
        }
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("timeout in state {:?}", *store.state().borrow());
}

/// Has the writer apply a retention and flush, by a clock that only the test moves.
fn maintain(store: &ResultStore, retention: Retention) {
    store.set_retention(retention).unwrap();
    let (answer, answered) = oneshot::channel();
    store.command(Command::Flush(answer)).unwrap();
    answered.blocking_recv().unwrap().unwrap();
}

fn cursors(store: &ResultStore, after: u64) -> Vec<u64> {
    let newest = store.state().borrow().newest;
    let entries = store.entries(after, newest, 1000, 1 << 20, false).unwrap();
    entries.into_iter().map(|entry| entry.cursor).collect()
}

#[test]
fn cursors_rise_across_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    for run in 0..3 {
        let store = open(&state);
        for _ in 0..4 {
            store.append(now().unix.0, 10);
        }
        wait_for(&store, |state| state.newest == 4 * (run + 1));
        assert_eq!(cursors(&store, 0), (1..=4 * (run + 1)).collect::<Vec<_>>());
        store.close();
    }
}

#[test]
fn a_crash_of_the_host_skips_cursors() {
    let (directory, state) = one_record();
    let engine = state_engine(directory.path());
    let meta = engine.tree("meta").unwrap();
    meta.remove(NEXT_CURSOR).unwrap();
    meta.insert(KERNEL_BOOT, "another boot").unwrap();
    drop((meta, engine));
    let store = open(&state);
    store.append(now().unix.0, 10);
    wait_for(&store, |state| state.newest > 1 + CRASH_JUMP);
    assert_eq!(cursors(&store, 0), [1, 2 + CRASH_JUMP]);
}

#[test]
fn whole_windows_are_removed_by_age_and_by_size() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let retention = Retention::of_all(16 * MINUTE_NS, 160_000);
    let store = Opened::with(&state, retention);
    // The size limit makes windows of three pages.
    for _ in 0..80 {
        store.append(now().unix.0, 4_000);
    }
    let kept = wait_for(&store, |state| state.newest == 80 && state.live_bytes <= 160_000);
    assert!(kept.records >= 34, "{kept:?}");
    assert_eq!(kept.earliest, 80 - kept.records + 1);
    // All records exceed the new age; the cursors continue.
    store.set_retention(Retention::of_all(1, 160_000)).unwrap();
    let empty = wait_for(&store, |state| state.records == 0);
    assert_eq!((empty.newest, empty.earliest), (80, 0));
    store.close();
    drop(store);
    let store = open(&state);
    store.append(now().unix.0, 10);
    wait_for(&store, |state| state.newest == 81);
}

/// Time of the quota's clock, nanoseconds.
static OF_THE_QUOTA: AtomicU64 = AtomicU64::new(1_790_000_000_000_000_000);

fn now_of_the_quota() -> Now {
    let ns = OF_THE_QUOTA.load(Relaxed);
    Now { monotonic: Monotonic(ns), unix: UnixTime(ns) }
}

#[test]
fn the_state_directory_keeps_within_its_quota_on_the_disk() {
    const QUOTA: u64 = 4 << 20;
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let opened = ResultStore::open(&state, retention(), "agent", now_of_the_quota).unwrap();
    let store = Opened { next: opened.next_cursor().into(), store: opened };
    // Each record has its own window, of a thousand times its size on the disk.
    for _ in 0..14 {
        let time_ns = OF_THE_QUOTA.fetch_add(2 * 1_000_000_000 + MINUTE_NS, Relaxed);
        store.append(time_ns, 10);
    }
    // The next measurement, and all that waits is stored.
    let measure = |quota: u64| {
        OF_THE_QUOTA.fetch_add(10_000_000_000, Relaxed);
        maintain(&store, retention().with_disk_quota(quota));
        store.state().borrow().clone()
    };
    let kept_by_age = measure(u64::MAX);
    assert_eq!((kept_by_age.newest, kept_by_age.records), (14, 14));
    measure(QUOTA);
    let kept = measure(QUOTA);
    assert!(kept.disk_bytes <= QUOTA && disk::disk_bytes(directory.path()) <= QUOTA, "{kept:?}");
    assert!(kept.records > 1 && kept.records < kept_by_age.records, "{kept:?} of {kept_by_age:?}");
    assert_eq!(kept.earliest, 14 - kept.records + 1);
    // The newest window is kept even if everything else exceeds the quota.
    measure(1);
    assert_eq!(measure(1).records, 1);
    assert_eq!(cursors(&store, 0), [14]);
}

#[test]
fn entries_are_read_forwards_and_backwards_across_windows() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    // The records are two minutes apart, so that each has its own window.
    for minute in 0..10 {
        store.append(now().unix.0 + minute * 2 * MINUTE_NS, 10);
    }
    wait_for(&store, |state| state.newest == 10);
    assert_eq!(window::read(&store.store.windows).len(), 10);
    let store_entries = |after, up_to, count, backwards| -> Vec<u64> {
        let entries = store.entries(after, up_to, count, 1 << 20, backwards).unwrap();
        entries.into_iter().map(|entry| entry.cursor).collect()
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

/// The log is empty after retention, and the agent is killed.
#[test]
fn cursors_rise_after_retention_emptied_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    for _ in 0..22 {
        store.append(now().unix.0 - 100 * MINUTE_NS, 10);
    }
    wait_for(&store, |state| state.newest == 22 && state.records == 0);
    drop(store);
    // The state of a killed agent lacks the next cursor.
    let engine = state_engine(directory.path());
    assert!(engine.tree("meta").unwrap().remove(NEXT_CURSOR).unwrap().is_some());
    engine.flush_durably().unwrap();
    drop(engine);
    let store = open(&state);
    assert_eq!(store.state().borrow().newest, 22);
    store.append(now().unix.0, 10);
    wait_for(&store, |state| state.newest == 23);
}

#[test]
fn a_start_does_not_read_sealed_windows() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    // Each record has its own window.
    let start = now().unix.0 - 10 * MINUTE_NS;
    for window in 0..5 {
        store.append(start + window * 2 * MINUTE_NS, 100);
    }
    wait_for(&store, |state| state.records == 5);
    let before = store.state().borrow().clone();
    drop(store);
    // A start uses the figures in the summaries without reading the records.
    let (pool, names) = windows_of(directory.path());
    for name in &names[..4] {
        let files = pool.files(*name).unwrap();
        files.pages.clear().unwrap();
        files.engine.flush_durably().unwrap();
    }
    drop(pool);
    let store = open(&state);
    wait_for(&store, |state| state.records == 5);
    let after = store.state().borrow().clone();
    assert_eq!((after.newest, after.earliest), (before.newest, before.earliest));
    assert_eq!(after.live_bytes, before.live_bytes);
}

#[tokio::test]
async fn the_number_of_consumers_is_limited() {
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

fn destroy(file: &Path) {
    let octets = fs::metadata(file).unwrap().len();
    fs::write(file, vec![0xa5; octets as usize]).unwrap();
}

#[test]
fn a_damaged_window_is_moved_to_quarantine() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    store.append(now().unix.0, 10);
    drop(store);
    let (pool, names) = windows_of(directory.path());
    destroy(&pool.path(names[0]).join("db"));
    let store = open(&state);
    store.append(now().unix.0, 10);
    // No cursor is assigned twice.
    wait_for(&store, |state| state.newest > CURSOR_JUMP && state.records == 1);
    assert!(store.damage().contains("up to 1 and"), "{}", store.damage());
    assert_eq!(fs::read_dir(directory.path().join("quarantine")).unwrap().count(), 1);
    assert_eq!(store.agent_id(), "agent");
}

/// Damage to the state database loses no record and not the identity of the agent.
#[tokio::test]
async fn a_damaged_state_database_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    store.append(now().unix.0, 10);
    store.move_consumer("c", 1).await.unwrap();
    drop(store);
    destroy(&directory.path().join("state.sled/db"));
    let store = ResultStore::open(&state, retention(), "another", now).unwrap();
    assert!(store.damage().contains("was moved to"), "{}", store.damage());
    assert!(directory.path().join("state.damaged").exists());
    assert_eq!(store.entries(0, u64::MAX - 1, 9, 9_999, false).unwrap().len(), 1);
    assert_eq!((store.agent_id(), store.consumer("c").unwrap()), ("agent", None));
    assert!(store.next_cursor() > CURSOR_JUMP);
}

/// sled returns to the latest intact state without an error.
#[tokio::test]
async fn loss_of_the_latest_state_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    store.move_consumer("c", 1).await.unwrap();
    drop(store);
    let file = directory.path().join("state.sled/db");
    let early = fs::read(&file).unwrap();
    let store = open(&state);
    assert_eq!(store.damage(), "");
    store.move_consumer("c", 5).await.unwrap();
    drop(store);
    fs::write(&file, early).unwrap();
    let store = open(&state);
    assert!(store.damage().contains("latest changes are lost"), "{}", store.damage());
    assert_eq!(store.consumer("c").unwrap(), Some(1));
    drop(store);
    assert_eq!(open(&state).damage(), "", "it was reported before");
    fs::remove_dir_all(directory.path().join("state.sled")).unwrap();
    assert!(open(&state).damage().contains("latest changes are lost"));
}

/// A reader sees a gap in place of a damaged sealed window, which is moved to quarantine.
#[test]
fn a_damaged_sealed_window_loses_only_its_own_records() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    for cursor in 0..5 {
        store.append(now().unix.0 - (10 - 2 * cursor) * MINUTE_NS, 100);
    }
    wait_for(&store, |state| state.records == 5);
    drop(store);
    let (pool, names) = windows_of(directory.path());
    destroy(&pool.path(names[2]).join("db"));
    drop(pool);
    let store = open(&state);
    assert_eq!(store.damage(), "", "not opened at the start");
    assert_eq!(cursors(&store, 0), [1, 2, 4, 5]);
    store.append(now().unix.0, 10);
    wait_for(&store, |state| state.records == 5 && state.newest == 6);
    assert_eq!(fs::read_dir(directory.path().join("quarantine")).unwrap().count(), 1);
    assert_eq!(cursors(&store, 0), [1, 2, 4, 5, 6]);
    drop(store);
    assert_eq!(cursors(&open(&state), 0), [1, 2, 4, 5, 6]);
}

/// A start finds the same log after an interruption of each step of creating, sealing and removing
/// a window, and without the index.
#[test]
fn an_interruption_at_any_step_of_a_window_loses_no_record() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    for cursor in 0..5 {
        store.append(now().unix.0 - (10 - 2 * cursor) * MINUTE_NS, 100);
    }
    let before = wait_for(&store, |state| state.records == 5);
    drop(store);
    let results = directory.path().join(RESULTS);
    let check = |step: &str| {
        let store = open(&state);
        assert_eq!(store.damage(), "", "{step}");
        assert_eq!(cursors(&store, 0), [1, 2, 3, 4, 5], "{step}");
        assert_eq!(store.state().borrow().live_bytes, before.live_bytes, "{step}");
    };
    fs::remove_file(results.join("index")).unwrap();
    check("the index was not written");
    fs::write(results.join("index"), "half").unwrap();
    check("the index is damaged");
    fs::create_dir(results.join(WindowName::new(6).to_string())).unwrap();
    let (pool, _) = windows_of(directory.path());
    drop(pool.create(WindowName::new(7)).unwrap());
    let path = pool.path(WindowName::new(8));
    drop(pool);
    check("a window was begun and has no record");
    drop(sled::open(&path).unwrap());
    check("a window was being created");
    let (pool, names) = windows_of(directory.path());
    fs::remove_file(pool.path(names[3]).join("created")).unwrap();
    drop(pool);
    fs::remove_file(results.join("index")).unwrap();
    check("a window was created and its marker is lost");
    assert!(results.join(names[3].to_string()).join("created").exists());
    fs::create_dir(results.join("00000000000000000001.removed")).unwrap();
    fs::write(results.join("00000000000000000001.removed").join("db"), "half").unwrap();
    check("a window was being removed");
    let (pool, names) = windows_of(directory.path());
    let unfinished = WindowName { generation: 1, ..names[1] };
    drop(pool.create(unfinished).unwrap());
    drop(pool);
    check("a copy was being made");
    let (pool, names) = windows_of(directory.path());
    assert_eq!(names, (1..=5).map(WindowName::new).collect::<Vec<_>>());
    let files = pool.files(names[4]).unwrap();
    files.seal(&measured(&pool, names[4]).unwrap().summary()).unwrap();
    drop((files, pool));
    check("a window was sealed and is not in the index");
}

/// sled returns to the latest intact state without an error.
#[test]
fn loss_of_the_latest_records_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    store.append(now().unix.0, 10);
    drop(store);
    let (pool, names) = windows_of(directory.path());
    let file = pool.path(names[0]).join("db");
    let early = fs::read(&file).unwrap();
    let store = open(&state);
    assert_eq!(store.damage(), "");
    for _ in 0..100 {
        store.append(now().unix.0, 10);
    }
    drop(store);
    fs::write(&file, early).unwrap();
    let store = open(&state);
    assert!(store.damage().contains("after cursor 1 are lost, up to 101"), "{}", store.damage());
    store.append(now().unix.0, 10);
    wait_for(&store, |state| state.newest > CURSOR_JUMP);
}

/// Time of the clock, nanoseconds.
static OF_THE_DAY: AtomicU64 = AtomicU64::new(0);

fn now_of_the_day() -> Now {
    let ns = OF_THE_DAY.load(Relaxed);
    Now { monotonic: Monotonic(ns), unix: UnixTime(ns) }
}

#[test]
fn disk_usage_is_bounded_over_a_day() {
    const HOUR_NS: u64 = 60 * MINUTE_NS;
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let retention = Retention::of_all(HOUR_NS, 1 << 30);
    OF_THE_DAY.store(1_790_000_000_000_000_000, Relaxed);
    let store = ResultStore::open(&state, retention, "agent", now_of_the_day).unwrap();
    let (mut cursor, mut noise, mut written) = (0, 1u64, 0);
    for minute in (5..=24 * 60).step_by(5) {
        for _ in 0..1000 {
            cursor += 1;
            // The content cannot be compressed.
            let content: Vec<u8> = (0..128)
                .flat_map(|_| {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    noise.to_be_bytes()
                })
                .collect();
            written += content.len() as u64;
            let entry = Entry {
                cursor,
                time: now_of_the_day().unix,
                subject: Arc::default(),
                kind: 1,
                content: content.into(),
            };
            store.append(entry).unwrap();
        }
        OF_THE_DAY.fetch_add(5 * MINUTE_NS, Relaxed);
        let kept = wait_for(&store, |state| {
            // The writer waits for this clock.
            OF_THE_DAY.fetch_add(25_000_000, Relaxed);
            state.newest == cursor
        });
        if minute % 60 == 0 {
            let limit = 3 * kept.live_bytes + (64 << 20);
            assert!(kept.disk_bytes <= limit, "after {minute} minutes: {kept:?}");
        }
    }
    let kept = store.state().borrow().clone();
    // The records of an hour remain, and those in the same window.
    assert!((11_000..=14_000).contains(&kept.records), "{kept:?}");
    assert!(written > 10 * kept.live_bytes);
}

#[test]
fn a_malformed_page_is_skipped_and_reported() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    store.append(now().unix.0, 10);
    drop(store);
    let (pool, names) = windows_of(directory.path());
    let files = pool.files(names[0]).unwrap();
    files.pages.insert(1u64.to_be_bytes(), b"no page").unwrap();
    files.engine.flush_durably().unwrap();
    drop((files, pool));
    let store = open(&state);
    assert!(store.damage().contains("up to 1 and"), "{}", store.damage());
    store.append(now().unix.0, 10);
    wait_for(&store, |state| state.newest > CURSOR_JUMP && state.records == 1);
    assert_eq!(store.entries(0, u64::MAX - 1, 9, 9_999, false).unwrap().len(), 1);
}

/// Records of a connection with a shorter age are removed before those of others.
#[test]
fn records_of_a_connection_with_a_shorter_age_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let ages = [("brief".to_owned(), 4 * MINUTE_NS)].into();
    let retention = retention().with_connection_ages(ages);
    let store = Opened::with(&state, retention.clone());
    let begun_ns = now().unix.0;
    // The records span ten minutes, in windows of a quarter of a minute.
    let age_ns = |cursor: u64| (400 - cursor) * MINUTE_NS / 40;
    for cursor in 1..=400 {
        let connection = if cursor % 2 == 0 { "brief" } else { "other" };
        store.append_of(connection, begun_ns - age_ns(cursor), 300);
    }
    wait_for(&store, |state| state.newest == 400);
    let check = |store: &ResultStore| {
        let entries = store.entries(0, 400, 1000, 1 << 20, false).unwrap();
        assert_eq!(entries.len(), 400);
        let mut gone = 0;
        for (entry, cursor) in entries.iter().zip(1..) {
            let is_brief = entry.subject.connection == "brief";
            assert_eq!((entry.cursor, is_brief), (cursor, cursor % 2 == 0));
            let removed = entry.kind == 1 | content::REMOVED && entry.content.is_empty();
            assert!(removed || entry.kind == 1 && entry.content.len() == 300, "{entry:?}");
            assert!(!removed || is_brief && age_ns(cursor) > 3 * MINUTE_NS, "{entry:?}");
            assert!(removed || !is_brief || age_ns(cursor) < 5 * MINUTE_NS, "{entry:?}");
            gone += u64::from(removed);
        }
        gone
    };
    // The records in windows whose latest record is more than four minutes old are removed.
    let kept = wait_for(&store, |state| state.trimmed_up_to == 240);
    let gone = check(&store);
    assert_eq!((gone, kept.records), (120, 400));
    let live_bytes = store.state().borrow().live_bytes;
    let content_bytes = (400 - gone) * 300;
    assert!((content_bytes..content_bytes + 8_000).contains(&live_bytes), "{live_bytes}");
    store.close();
    drop(store);

    // A copy that the end of the agent interrupted is removed, and no window is copied again.
    let (pool, whole) = windows_of(directory.path());
    let unfinished = WindowName { generation: 7, ..whole[0] };
    let files = pool.create(unfinished).unwrap();
    files.pages.insert(1u64.to_be_bytes(), b"half").unwrap();
    files.engine.flush_durably().unwrap();
    drop((files, pool));
    let store = Opened::with(&state, retention);
    assert_eq!(check(&store), gone);
    let again = wait_for(&store, |state| state.records == 400);
    assert!(again.live_bytes == live_bytes, "{again:?} {live_bytes}");
    store.close();
    drop(store);
    assert_eq!(windows_of(directory.path()).1, whole);
}

/// Records written while the clock was ahead are removed together with the records after them, and
/// do not delay their removal.
#[test]
fn records_from_the_future_are_removed_with_later_ones() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    let now_ns = now().unix.0;
    let hours = |hours: u64| hours * 60 * MINUTE_NS;
    for time_ns in [now_ns - hours(3), now_ns + hours(9), now_ns - hours(2), now_ns] {
        store.append(time_ns, 10);
    }
    let left = wait_for(&store, |state| state.newest == 4 && state.records == 1);
    assert_eq!(left.earliest, 4);
    // A window that is filled while the clock is ahead is sealed when the clock is right again.
    store.append(now_ns + hours(9), 10);
    store.append(now_ns, 10);
    wait_for(&store, |state| state.newest == 6);
    let windows: Vec<_> =
        window::read(&store.store.windows).iter().map(|w| w.name.first_cursor).collect();
    assert_eq!(windows, [4, 5, 6]);
}

/// Each commit of the configuration sets the retention, also during a removal.
#[test]
fn setting_the_retention_during_a_removal_loses_no_other_records() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    let begun_ns = now().unix.0;
    for cursor in 1..=4_000 {
        let connection = if cursor % 2 == 0 { "brief" } else { "other" };
        store.append_of(connection, begun_ns - (4_000 - cursor) * MINUTE_NS / 400, 1_000);
        if cursor % 1_000 == 0 {
            wait_for(&store, |state| state.newest == cursor);
        }
    }
    let ages = [("brief".to_owned(), MINUTE_NS)].into();
    let brief = retention().with_connection_ages(ages);
    for _ in 0..40 {
        store.set_retention(brief.clone()).unwrap();
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_for(&store, |state| state.trimmed_up_to >= 3_000);
    store.close();
    drop(store);
    let store = Opened::with(&state, brief);
    let entries = store.entries(0, 4_000, 5_000, 16 << 20, false).unwrap();
    let others = entries.iter().filter(|entry| entry.subject.connection == "other");
    assert_eq!(others.filter(|entry| entry.content.len() == 1_000).count(), 2_000);
    assert_eq!((entries.len(), store.state().borrow().records), (4_000, 4_000));
}

/// An unreadable subject loses only its own records, and the removal succeeds.
#[test]
fn records_are_removed_from_a_window_with_a_damaged_subject() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    let begun_ns = now().unix.0;
    for cursor in 1..=300u64 {
        let connection = ["brief", "other", "third"][(cursor % 3) as usize];
        store.append_of(connection, begun_ns - (300 - cursor) * MINUTE_NS / 30, 300);
    }
    wait_for(&store, |state| state.newest == 300);
    store.close();
    drop(store);
    let (pool, names) = windows_of(directory.path());
    let mut damaged = 0;
    for name in names {
        let files = pool.files(name).unwrap();
        for entry in files.stored_subjects() {
            let (number, octets) = entry.unwrap();
            if octets.windows(5).any(|octets| octets == b"other") {
                files.put_subject(number, b"\xff\xff".to_vec()).unwrap();
                damaged += 1;
            }
        }
        files.engine.flush_durably().unwrap();
    }
    assert!(damaged > 5, "{damaged}");
    drop(pool);
    let ages = [("brief".to_owned(), 2 * MINUTE_NS)].into();
    let store = Opened::with(&state, retention().with_connection_ages(ages));
    let state = wait_for(&store, |state| state.trimmed_up_to >= 200);
    assert_eq!(state.detail, "");
    store.append(begun_ns, 10);
    wait_for(&store, |state| state.newest == 301 && state.detail.is_empty());
    let entries = store.entries(0, 400, 1_000, 1 << 20, false).unwrap();
    let whole = |name: &str| {
        entries.iter().filter(|e| e.subject.connection == name && e.content.len() == 300).count()
    };
    assert_eq!((whole("third"), whole("brief") < 100), (100, true));
}

/// Cursors of records that were reported without being stored are not assigned to other records.
#[test]
fn reserved_cursors_are_not_assigned_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    store.append(now().unix.0, 10);
    drop(store);
    CursorReservation::new(directory.path()).reserve_unstored(1).unwrap();
    let store = open(&state);
    assert_eq!(store.damage(), "", "nothing is damaged");
    store.append(now().unix.0, 10);
    let newest = wait_for(&store, |state| state.records == 2).newest;
    assert!(newest > CURSOR_JUMP);
    assert_eq!(cursors(&store, 0), [1, newest]);
    drop(store);
    let store = open(&state);
    store.append(now().unix.0, 10);
    wait_for(&store, |state| (state.newest, state.records) == (newest + 1, 3));
}

/// The search by time finds the same records as a scan of all records, also if times decrease
/// within a window or from one window to the next.
#[test]
fn records_are_found_by_time() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    let begun_ns = now().unix.0 / MINUTE_NS * MINUTE_NS - 10 * MINUTE_NS;
    let mut times = Vec::new();
    for number in 0..600u64 {
        // The windows span a minute, and the clock sometimes steps back.
        let step_ns = if number % 97 < 5 { 20_000_000_000 } else { 0 };
        times.push(begun_ns + number * 1_000_000_000 - step_ns);
        store.append(*times.last().unwrap(), 500);
    }
    wait_for(&store, |state| state.newest == 600);
    let check = |store: &ResultStore| {
        for start in (0..650u64).step_by(7) {
            for length_ns in [1, 3_000_000_000, 90_000_000_000, u64::MAX / 2] {
                let start_ns = begun_ns + start * 1_000_000_000 - 500_000_000;
                let range = UnixTime(start_ns)..UnixTime(start_ns.saturating_add(length_ns));
                let wanted = |(_, time): &(u64, &u64)| range.contains(&UnixTime(**time));
                let found: Vec<u64> = (1..).zip(&times).filter(wanted).map(|(c, _)| c).collect();
                let cursors = store.cursors_at(range.clone()).unwrap();
                assert!(found.iter().all(|cursor| cursors.contains(cursor)), "{start} {cursors:?}");
                let first = (1..).zip(&times).find(|(_, time)| **time >= start_ns);
                assert_eq!(first.map_or(u64::MAX, |(cursor, _)| cursor), cursors.start, "{start}");
                let near = cursors.end.min(601) - cursors.start.min(601);
                assert!(near <= found.len() as u64 + 70, "{start}: {cursors:?} {}", found.len());
            }
        }
    };
    check(&store);
    assert!(window::read(&store.store.windows).len() >= 10);
    drop(store);
    check(&open(&state));
}

/// With `TWAMP_LOG_MIB` and `--nocapture`, measures the time to open a log of that size and to find
/// a record by time.
#[test]
#[allow(clippy::print_stdout, clippy::disallowed_methods)]
fn records_of_a_large_log_are_found_by_time() {
    let megabytes: u64 = std::env::var("TWAMP_LOG_MIB").map_or(40, |mib| mib.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let retention = Retention::of_all(u64::MAX, 1 << 40);
    let store = Opened::with(&state, retention.clone());
    let (begun_ns, records) = (now().unix.0 / 1_000 * 1_000 - 3_600_000_000_000, megabytes << 10);
    for number in 0..records {
        while store.state().borrow().newest + 8_000 < number {
            std::thread::sleep(Duration::from_millis(1));
        }
        store.append(begun_ns + number * 1_000_000, 1_000);
    }
    wait_for(&store, |state| state.newest == records);
    println!("{:?}", store.state().borrow());
    drop(store);
    let begun = std::time::Instant::now();
    let store = Opened::with(&state, retention);
    println!("{megabytes} MiB opened in {:?}", begun.elapsed());
    for part in 1..10 {
        let begun = std::time::Instant::now();
        let number = records * part / 10;
        let from = UnixTime(begun_ns + number * 1_000_000);
        let cursors = store.cursors_at(from..UnixTime(u64::MAX)).unwrap();
        assert_eq!(cursors.start, number + 1);
        let first = store.entries(cursors.start - 1, cursors.end, 1, 1 << 20, false).unwrap();
        assert_eq!(first[0].cursor, number + 1);
        println!("record {number} found in {:?}", begun.elapsed());
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!("{:?}", status.lines().filter(|line| line.starts_with("VmRSS")).collect::<Vec<_>>());
}
