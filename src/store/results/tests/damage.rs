//! Damage to the files of the log.

#![allow(clippy::print_stdout)]

use super::*;
use crate::store::{
    window::Window,
    windows::{Allowed, Windows},
};
use std::fs;

/// The settings file is rewritten without loss of records.
#[test]
fn damaged_database_settings_are_rewritten() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    let (time, content) = (now().unix, vec![1].into());
    store
        .store
        .append(Entry { cursor: 1, time, subject: Arc::default(), kind: 1, content })
        .unwrap();
    wait_for(&store, |state| state.newest == 1);
    store.close();
    drop(store);
    let (pool, names) = windows_of(directory.path());
    let file = pool.path(names[0]).join("conf");
    let whole = fs::read(&file).unwrap();
    let flipped = |bit: usize| {
        let mut octets = whole.clone();
        octets[bit / 8] ^= 1 << (bit % 8);
        octets
    };
    let mut damaged: Vec<_> = (0..whole.len() * 8).step_by(37).map(flipped).collect();
    damaged.extend([Vec::new(), whole[..3].to_vec(), whole[..whole.len() / 2].to_vec()]);
    for octets in damaged {
        fs::write(&file, &octets).unwrap();
        let store = open(&state);
        assert_eq!((store.damage().len(), store.state().borrow().records), (0, 1), "{octets:?}");
        assert_eq!(fs::read(&file).unwrap(), whole);
    }
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("nowhere", &file).unwrap();
    assert_eq!(open(&state).state().borrow().records, 1);
}

/// A flipped bit in a full window loses only records near it.
#[test]
fn a_flipped_bit_loses_only_nearby_records() {
    let mut costly = 0;
    for damaged in [3u64, 11, 17, 26, 30] {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = open(&state);
        // The log has ten windows of forty records.
        for cursor in 1..=400u64 {
            let entry = Entry {
                cursor,
                time: UnixTime(now().unix.0 - 10 * MINUTE_NS + (cursor - 1) / 40 * MINUTE_NS),
                subject: Arc::default(),
                kind: 1,
                content: [vec![0xa5; 2_400], cursor.to_be_bytes().to_vec()].concat().into(),
            };
            store.store.append(entry).unwrap();
        }
        wait_for(&store, |state| state.newest == 400);
        store.close();
        drop(store);
        // A start stores which data it has checked, and the next one does not check it again.
        drop(open(&state));
        let (pool, names) = windows_of(directory.path());
        let window = names.iter().rev().find(|name| name.first_cursor <= damaged * 10).unwrap();
        let file = pool.path(*window).join("db");
        let mut octets = fs::read(&file).unwrap();
        let wanted = [&[0xa5; 40][..], &(damaged * 10).to_be_bytes()].concat();
        let positions: Vec<usize> =
            octets.windows(48).enumerate().filter(|(_, w)| *w == wanted).map(|(i, _)| i).collect();
        assert!(!positions.is_empty());
        for position in positions {
            octets[position] ^= 1;
        }
        fs::write(&file, octets).unwrap();
        let store = open(&state);
        if !store.damage().is_empty() {
            // The start found the damage.
            continue;
        }
        let read = |backwards| {
            let entries = store.entries(0, 400, 1_000, 16 << 20, backwards).unwrap();
            let mut cursors: Vec<u64> = entries.iter().map(|entry| entry.cursor).collect();
            cursors.sort_unstable();
            cursors
        };
        for cursors in [read(false), read(true)] {
            assert!(cursors.len() >= 360, "{damaged}: {}", cursors.len());
            assert!(cursors.contains(&400) && cursors.contains(&1));
            let costs = !cursors.contains(&(damaged * 10));
            let windows = window::read(&store.windows);
            assert_eq!(costs, windows.iter().any(|window| window.is_damaged.load(Relaxed)));
            costly += usize::from(costs);
        }
    }
    assert!(costly > 0, "some flips must lose records");
}

/// sled opens a database without damaged snapshots.
#[test]
fn damaged_snapshots_are_ignored() {
    let (directory, state) = one_record();
    for (name, octets) in [
        ("snap.0000000000FFFFFF.generating", &b""[..]),
        ("snap.0000000000FFFFFF", b""),
        ("snap.0000000000FFFFFF", b"no snapshot at all, but longer than one that is empty"),
    ] {
        let (pool, names) = windows_of(directory.path());
        fs::write(pool.path(names[0]).join(name), octets).unwrap();
        let store = open(&state);
        assert_eq!((store.damage(), store.state().borrow().records), ("", 1), "{name}");
    }
}

/// sled may skip unreadable data without an error.
#[test]
fn a_missing_page_is_reported() {
    for missing in [1u64, 3, 5] {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = open(&state);
        // The log has two windows of five pages each, and a third one.
        for cursor in 1..=11u64 {
            store.append(now().unix.0 + (cursor - 1) / 5 * 2 * MINUTE_NS, 4_000);
        }
        wait_for(&store, |state| state.newest == 11);
        drop(store);
        let (pool, names) = windows_of(directory.path());
        let files = pool.files(names[0]).unwrap();
        assert!(files.pages.remove(missing.to_be_bytes()).unwrap().is_some());
        files.engine.flush_durably().unwrap();
        drop((files, pool));
        let store = open(&state);
        let found = store.entries(0, 11, 100, 1 << 20, false).unwrap();
        assert_eq!(found.len(), 10);
        let damaged = |window: &Arc<Window>| window.is_damaged.load(Relaxed);
        let windows = window::read(&store.windows);
        assert_eq!(windows.iter().map(damaged).collect::<Vec<_>>(), [true, false, false]);
    }
}

/// Flips bits all over the file, after a clean end and after a kill. Losses are reported once, and
/// new records can be read, also after a restart.
#[test]
fn records_after_damage_are_read_back() {
    // The records fill more than one segment of the file.
    const RECORDS: u64 = 600;
    let flips = std::env::var("TWAMP_FLIPS").map_or(40, |flips| flips.parse().unwrap());
    let good = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(good.path()).unwrap();
    let store = open(&state);
    for round in 0..RECORDS / 20 {
        for _ in 0..20 {
            store.append(now().unix.0, 2_000 + (round as usize * 37) % 400);
        }
        // Each round makes a page, as in a running agent.
        wait_for(&store, |state| state.newest == (round + 1) * 20);
    }
    let killed = tempfile::tempdir().unwrap();
    copy(good.path(), killed.path());
    store.close();
    drop(store);
    // A start stores which data it has checked, and the next one does not check it again.
    drop(open(&state));
    drop(state);
    let readable = |store: &Opened| {
        let entries = store.entries(0, u64::MAX - 1, 10_000, 16 << 20, false).unwrap();
        entries.iter().map(|entry| entry.cursor).collect::<Vec<u64>>()
    };
    let database = Path::new(RESULTS).join(WindowName::new(1).to_string()).join("db");
    let mut reported = 0;
    for flip in 0..flips {
        let from = if flip % 2 == 0 { &good } else { &killed };
        let directory = tempfile::tempdir().unwrap();
        copy(from.path(), directory.path());
        let database = directory.path().join(&database);
        let mut octets = fs::read(&database).unwrap();
        let used = octets.iter().rposition(|octet| *octet != 0).unwrap() as u64;
        let bit = flip * 0x9e37_79b9 % (used * 8);
        octets[bit as usize / 8] ^= 1 << (bit % 8);
        fs::write(&database, octets).unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = open(&state);
        let whole = readable(&store).len() as u64 == RECORDS;
        assert!(whole || !store.damage().is_empty(), "{bit}: {} left", readable(&store).len());
        reported += usize::from(!store.damage().is_empty());
        let first = store.next.get();
        assert!(first > RECORDS);
        (0..30).for_each(|_| store.append(now().unix.0, 100));
        wait_for(&store, |state| state.newest == first + 29);
        let new: Vec<u64> = (first..first + 30).collect();
        assert!(readable(&store).ends_with(&new), "{bit}");
        store.close();
        drop(store);
        let store = open(&state);
        assert_eq!(store.damage(), "", "{bit}: reported before");
        assert!(readable(&store).ends_with(&new), "{bit}");
        assert_eq!(store.next.get(), first + 30, "{bit}");
    }
    assert!(reported > 0);
}

/// After an error other than damage the window stays in place, other windows are read, and the
/// window is read as soon as it can be opened.
#[test]
fn a_window_that_cannot_be_opened_is_retried() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = open(&state);
    for cursor in 0..4 {
        store.append(now().unix.0 - (10 - 2 * cursor) * MINUTE_NS, 100);
    }
    drop(store);
    let results = directory.path().join(RESULTS);
    let (pool, names) = windows_of(directory.path());
    for unreadable in [1, 3] {
        let (file, away) = (pool.path(names[unreadable]).join("db"), directory.path().join("away"));
        fs::remove_file(results.join("index")).unwrap();
        fs::rename(&file, &away).unwrap();
        std::os::unix::fs::symlink(&file, &file).unwrap();
        let store = open(&state);
        assert!(store.damage().contains("cannot be opened"), "{}", store.damage());
        let left: Vec<u64> = (1..=4).filter(|cursor| cursor - 1 != unreadable as u64).collect();
        assert_eq!(cursors(&store, 0), left);
        assert!(store.next_cursor() > CURSOR_JUMP);
        drop(store);
        assert!(file.is_symlink() && !directory.path().join("quarantine").exists());

        let engine = state_engine(directory.path());
        let meta = engine.tree("meta").unwrap();
        let mut windows = Windows::open(&results, &meta, 1).unwrap();
        assert_eq!((windows.unopened(), window::read(&windows.shared()).len()), (1, 3));
        fs::remove_file(&file).unwrap();
        fs::rename(&away, &file).unwrap();
        windows
            .retain(
                &retention(),
                now(),
                Allowed { delete_by_age: true, copy: true, disk_excess: 0 },
                || Ok(()),
            )
            .unwrap();
        assert_eq!((windows.unopened(), window::read(&windows.shared()).len()), (0, 4));
        drop((windows, meta, engine));
        let store = open(&state);
        assert_eq!((store.damage(), cursors(&store, 0)), ("", vec![1, 2, 3, 4]));
    }
}

/// A window whose database can be opened but has lost its records is kept for diagnosis.
#[test]
fn a_window_that_lost_all_records_is_moved_to_quarantine() {
    let (directory, state) = one_record();
    let (pool, names) = windows_of(directory.path());
    let files = pool.files(names[0]).unwrap();
    for number in 0..2_000u64 {
        files.pages.insert(number.to_be_bytes(), vec![7; 1_000]).unwrap();
    }
    files.engine.flush_durably().unwrap();
    files.pages.clear().unwrap();
    files.engine.flush_durably().unwrap();
    drop((files, pool));
    assert!(!open(&state).damage().is_empty());
    assert_eq!(fs::read_dir(directory.path().join("quarantine")).unwrap().count(), 1);
}

/// Flips bits all over the log; each affects only its own window.
#[test]
fn a_flipped_bit_affects_at_most_one_window() {
    const WINDOWS: u64 = 6;
    const RECORDS: u64 = 40;
    let good = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(good.path()).unwrap();
    let store = open(&state);
    for window in 0..WINDOWS {
        for _ in 0..RECORDS {
            store.append(now().unix.0 - (WINDOWS - 1 - window) * 2 * MINUTE_NS, 1_000);
        }
        wait_for(&store, |state| state.newest == (window + 1) * RECORDS);
    }
    store.close();
    drop((store, state));
    for flip in 0..24u64 {
        let directory = tempfile::tempdir().unwrap();
        copy(good.path(), directory.path());
        let (pool, names) = windows_of(directory.path());
        let hit = names[(flip % WINDOWS) as usize];
        let file = pool.path(hit).join("db");
        drop(pool);
        let mut octets = fs::read(&file).unwrap();
        let used = octets.iter().rposition(|octet| *octet != 0).unwrap() as u64;
        let bit = (flip * 0x9e37_79b9 % (used * 8)) as usize;
        octets[bit / 8] ^= 1 << (bit % 8);
        fs::write(&file, octets).unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = open(&state);
        let left = cursors(&store, 0);
        let lost = (1..=WINDOWS * RECORDS).filter(|cursor| !left.contains(cursor));
        let window = hit.first_cursor..hit.first_cursor + RECORDS;
        assert!(lost.clone().all(|cursor| window.contains(&cursor)), "{flip}: {hit}");
        println!("flip {flip} in window {hit}: {} records", lost.count());
    }
}

/// Copies a state directory, which a running agent may have open.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            fs::create_dir(to.join(&name)).unwrap();
            copy(&entry.path(), &to.join(name));
        } else if name != "lock" && !name.starts_with("snap.") {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}
