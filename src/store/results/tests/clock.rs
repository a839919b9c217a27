//! Clock steps while records are stored, and the incarnations that they begin.

use super::*;
use crate::store::{Host, KEEP_ALL_NS};

const DAY_NS: u64 = 86_400_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;
/// Arbitrary start time, nanoseconds since 1970.
const BEGIN_NS: u64 = 1_800_000_000 * SECOND_NS;

/// Uptime and offset of the realtime clock, nanoseconds; used by one test only.
static UPTIME_NS: AtomicU64 = AtomicU64::new(SECOND_NS);
static AHEAD_NS: AtomicU64 = AtomicU64::new(0);

fn set_clock() -> Now {
    let uptime_ns = UPTIME_NS.load(Relaxed);
    let unix = UnixTime(BEGIN_NS + uptime_ns + AHEAD_NS.load(Relaxed));
    Now { monotonic: Monotonic(uptime_ns), unix }
}

/// Advances the clock, and waits until the writer has seen it.
fn advance(store: &ResultStore, ns: u64) {
    UPTIME_NS.fetch_add(ns, Relaxed);
    maintain(store, Retention::of_all(DAY_NS, 1 << 30));
}

#[test]
fn a_large_clock_step_removes_no_record() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let host = || Host { boot: 7, ..Host::default() };
    let open = || {
        let findings = state.note_host(host(), set_clock());
        let retention = Retention::of_all(DAY_NS, 1 << 30);
        let store = ResultStore::open(&state, retention, "agent", set_clock).unwrap();
        (Opened { next: store.next_cursor().into(), store }, findings.step_ns)
    };
    let (store, step_ns) = open();
    assert_eq!(step_ns, 0);
    for _ in 0..3 {
        store.append(set_clock().unix.0, 10);
    }
    advance(&store, SECOND_NS);
    AHEAD_NS.store(8 * DAY_NS, Relaxed);
    for _ in 0..4 {
        advance(&store, SECOND_NS);
    }
    assert_eq!(cursors(&store, 0), [1, 2, 3], "four seconds ahead by 8 days");
    assert!(store.state().borrow().keep_all_until.is_some());
    drop(store);
    // The agent is restarted while the clock is ahead.
    let (store, step_ns) = open();
    assert_eq!(step_ns, 0, "stored when it was detected");
    advance(&store, SECOND_NS);
    assert_eq!(cursors(&store, 0), [1, 2, 3]);
    drop(store);
    // The clock is set back while no agent is running.
    AHEAD_NS.store(0, Relaxed);
    let (store, step_ns) = open();
    assert_eq!(step_ns, -(8 * DAY_NS).cast_signed());
    advance(&store, SECOND_NS);
    // The suspension ends after a day, and the records exceed their age.
    advance(&store, KEEP_ALL_NS - 2 * SECOND_NS);
    assert_eq!(cursors(&store, 0), [1, 2, 3]);
    advance(&store, 8 * SECOND_NS);
    assert_eq!(cursors(&store, 0).len(), 0);
    assert_eq!(store.state().borrow().keep_all_until, None);
}

#[test]
fn another_incarnation_begins_with_the_next_record() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    store.begin_incarnation("a").unwrap();
    for _ in 0..4 {
        store.append(now().unix.0, 10);
    }
    store.change_incarnation("b".into()).unwrap();
    for _ in 0..4 {
        store.append(now().unix.0, 10);
    }
    wait_for(&store, |state| state.newest == 8);
    let of = |cursors: [u64; 4]| cursors.map(|cursor| store.incarnation(cursor).unwrap());
    assert_eq!(of([1, 4, 5, 8]).each_ref().map(|id| &**id), ["a", "a", "b", "b"]);
    drop(store);
    let store = open(&state);
    assert_eq!(store.incarnation(4).as_deref(), Some("a"), "after a restart");
    assert_eq!(store.incarnation(5).as_deref(), Some("b"));
}
