//! Export, import, compaction and verification.

use super::{
    transfer::{IMPORT_JUMP, MAGIC, read_item, write_item},
    *,
};
use crate::{
    proto,
    store::{
        ConfigStore, Host, ResultStore, Retention, StoredRevision, Subject,
        cursor_reservation::CursorReservation, layout::WindowName, schema::SCHEMA,
    },
    time::{Monotonic, Now, UnixTime},
};
use std::{os::unix::fs::PermissionsExt, sync::Arc};

fn now() -> Now {
    Now { monotonic: Monotonic(1), unix: UnixTime(1_790_000_000_000_000_000) }
}

fn filled(directory: &Path, records: u64) -> StateDirectory {
    let state = StateDirectory::open(directory).unwrap();
    let config = ConfigStore::open(&state).unwrap();
    let revision = Some(proto::Revision { revision: 1, ..Default::default() });
    let stored = StoredRevision {
        revision,
        config: Some(proto::AgentConfig::default()),
        ..StoredRevision::default()
    };
    config.commit(1, &stored).unwrap();
    drop(config);
    let store =
        ResultStore::open(&state, Retention::of_all(u64::MAX, 1 << 30), "agent", now).unwrap();
    let subject = Arc::new(Subject { connection: "c".into(), ..Subject::default() });
    for cursor in 1..=records {
        let entry = Entry {
            cursor,
            time: now().unix,
            subject: subject.clone(),
            kind: 1,
            content: vec![cursor as u8; 200].into(),
        };
        // The queue may be full.
        while store.append(entry.clone()).is_err() {
            std::thread::yield_now();
        }
    }
    drop(store);
    state
}

fn verified(state: &StateDirectory) -> Verified {
    verify(state, |_| Ok(()), |_| true).unwrap()
}

#[test]
fn an_imported_export_equals_the_original_state() {
    let directory = tempfile::tempdir().unwrap();
    let state = filled(&directory.path().join("a"), 1000);
    let before = verified(&state);
    assert_eq!((before.records, before.cursors, before.missing), (1000, (1, 1000), 0));
    assert_eq!(before.revisions, 1);
    let mut file = Vec::new();
    let items = export(&state, &mut file).unwrap();
    let other = directory.path().join("b");
    assert_eq!(import(&other, &mut file.as_slice()).unwrap(), items);
    let refused = import(&other, &mut file.as_slice());
    assert!(matches!(refused, Err(MaintenanceError::NotEmpty(_))), "{refused:?}");
    let imported = StateDirectory::open(&other).unwrap();
    let after = verified(&imported);
    assert_eq!((after.records, after.cursors), (before.records, before.cursors));
    assert_eq!((after.revisions, after.live_bytes), (1, before.live_bytes));
    let store =
        ResultStore::open(&imported, Retention::of_all(u64::MAX, 1 << 30), "another", now).unwrap();
    // The original log may have continued.
    assert_eq!((store.agent_id(), store.next_cursor()), ("agent", 1001 + IMPORT_JUMP));
}

#[test]
fn importing_a_damaged_file_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let state = filled(&directory.path().join("a"), 50);
    let mut file = Vec::new();
    export(&state, &mut file).unwrap();
    for (index, at) in [0, 9, 13, file.len() / 2, file.len() - 3].into_iter().enumerate() {
        let target = directory.path().join(format!("b{index}"));
        let mut flipped = file.clone();
        flipped[at] ^= 0x40;
        for damaged in [&flipped[..], &file[..at]] {
            let refused = import(&target, &mut &*damaged);
            assert!(matches!(refused, Err(MaintenanceError::Damaged(..))), "{refused:?}");
            assert!(!target.exists());
            fs::create_dir(&target).unwrap();
            fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
            import(&target, &mut &*damaged).unwrap_err();
            assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
            assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
            fs::remove_dir(&target).unwrap();
        }
    }
}

#[test]
fn verification_repairs_nothing_and_names_the_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    drop(filled(path, 50));
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let inspected = || {
        let state = StateDirectory::inspect(path)?;
        verify(&state, |_| Ok(()), |_| true)
    };
    let unchanged = |told: Option<&str>| {
        let before = contents(path);
        let found = inspected().err().map(|error| error.to_string());
        assert!(contents(path) == before, "{told:?}");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o755);
        match told {
            None => assert_eq!(found, None),
            Some(told) => assert!(found.as_deref().unwrap().contains(told), "{found:?}"),
        }
    };
    unchanged(None);
    fs::remove_file(path.join("lock")).unwrap();
    unchanged(None);
    let schema = fs::read(path.join("schema")).unwrap();
    for damaged in [&b""[..], b"four", b"\xff\xfe"] {
        fs::write(path.join("schema"), damaged).unwrap();
        unchanged(Some("version of the layout (schema)"));
    }
    fs::remove_file(path.join("schema")).unwrap();
    unchanged(Some("schema: missing"));
    fs::write(path.join("schema"), schema).unwrap();
    fs::create_dir(path.join("state.compact")).unwrap();
    unchanged(None);
    fs::rename(path.join("state.sled"), path.join("state.old")).unwrap();
    unchanged(Some("state.old is left by an interrupted step"));
    fs::rename(path.join("state.old"), path.join("state.sled")).unwrap();
    fs::write(path.join("imported"), "").unwrap();
    unchanged(Some("imported is left by an interrupted step"));
}

#[test]
fn compaction_keeps_all_data_also_if_it_is_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let state = filled(directory.path(), 20_000);
    let before = verified(&state);
    compact(&state).unwrap();
    let after = verified(&state);
    assert_eq!(Verified { disk_bytes: 0, ..after }, Verified { disk_bytes: 0, ..before });
    drop(state);
    // State between the two renames.
    let pool = Pool::open(&directory.path().join(RESULTS)).unwrap();
    let window = pool.path(pool.names().unwrap()[0]);
    for whole in [directory.path().join("state.sled"), window] {
        fs::rename(&whole, whole.with_extension("old")).unwrap();
    }
    let state = StateDirectory::open(directory.path()).unwrap();
    assert_eq!(verified(&state).records, 20_000);
}

/// Returns the contents of all files in a directory and its subdirectories.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn verification_and_export_change_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let state = filled(directory.path(), 100);
    let window = directory.path().join(RESULTS).join(WindowName::new(1).to_string());
    for file in ["nothing", "results/index", "config.sled/conf"] {
        let _ = fs::write(directory.path().join(file), "damaged");
        let before = contents(directory.path());
        assert_eq!(verified(&state).records, 100);
        export(&state, &mut Vec::new()).unwrap();
        assert!(contents(directory.path()) == before, "{file}");
    }
    let mut octets = fs::read(window.join("db")).unwrap();
    octets[70..90].fill(0xa5);
    fs::write(window.join("db"), octets).unwrap();
    let before = contents(directory.path());
    assert!(verify(&state, |_| Ok(()), |_| true).is_err());
    assert!(contents(directory.path()) == before);
}

#[test]
fn verification_finds_damage_and_moves_nothing_to_quarantine() {
    let directory = tempfile::tempdir().unwrap();
    let state = filled(directory.path(), 100);
    let damaged = |_: &Entry| Err(StoreError::Damaged("record"));
    let found = verify(&state, damaged, |_| true);
    assert!(matches!(found, Err(MaintenanceError::Record(1, _))), "{found:?}");
    let pool = Pool::open(&directory.path().join(RESULTS)).unwrap();
    let file = pool.path(pool.names().unwrap()[0]).join("db");
    let octets = fs::metadata(&file).unwrap().len();
    fs::write(&file, vec![0xa5; octets as usize]).unwrap();
    assert!(verify(&state, |_| Ok(()), |_| true).is_err());
    assert!(!directory.path().join("quarantine").exists());
}

#[test]
fn importing_a_file_of_a_newer_agent_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let state = filled(&directory.path().join("a"), 10);
    let mut file = Vec::new();
    let items = export(&state, &mut file).unwrap();
    for (newer, schema, refusal) in [
        ("config", SCHEMA + 1, "newer agent"),
        ("results", SCHEMA + 1, "newer agent"),
        ("results", 3, "development version"),
    ] {
        let (mut from, mut changed) = (&file[MAGIC.len()..], MAGIC.to_vec());
        for number in 0..=items {
            let mut item = read_item(&mut from, number).unwrap();
            if item.database == newer && item.key == b"schema" {
                item.value = schema.to_be_bytes().to_vec();
            }
            write_item(&mut changed, &item).unwrap();
        }
        let other = directory.path().join(format!("{newer}-{schema}"));
        let refused = import(&other, &mut changed.as_slice());
        let says = |error: &MaintenanceError| error.to_string().contains(refusal);
        assert!(refused.as_ref().is_err_and(says), "{refused:?}");
        import(&other, &mut file.as_slice()).unwrap();
    }
}

#[test]
fn verification_reports_a_missing_end_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let state = filled(directory.path(), 10);
    assert_eq!(verified(&state).records, 10);
    CursorReservation::new(directory.path()).write(12, None).unwrap();
    let found = verify(&state, |_| Ok(()), |_| true);
    assert!(matches!(found, Err(MaintenanceError::Gone { found: 10, known: 12 })), "{found:?}");
}

#[test]
fn a_directory_of_somebody_else_keeps_its_mode_and_gets_no_file() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let state = filled(&directory.path().join("a"), 5);
    let mut file = Vec::new();
    export(&state, &mut file).unwrap();
    let target = directory.path().join("home");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("letter"), "dear").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = import(&target, &mut file.as_slice());
    assert!(matches!(refused, Err(MaintenanceError::NotEmpty(_))), "{refused:?}");
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
}

#[test]
fn a_damaged_file_beside_the_databases_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let state = filled(directory.path(), 5);
    state.note_host(Host::default(), now());
    let store =
        ResultStore::open(&state, Retention::of_all(u64::MAX, 1 << 30), "agent", now).unwrap();
    store.begin_incarnation("run").unwrap();
    drop(store);
    verified(&state);
    for name in ["config.last", "agent-id", "incarnations", "results.last", "host"] {
        let file = directory.path().join(name);
        let whole = fs::read(&file).unwrap();
        for damaged in [&whole[..whole.len() / 2], &[]] {
            fs::write(&file, damaged).unwrap();
            let refused = verify(&state, |_| Ok(()), |_| true).unwrap_err();
            assert!(refused.to_string().contains(name), "{refused}");
        }
        if name == "results.last" {
            fs::write(&file, whole).unwrap();
        } else {
            // The next start makes another one.
            fs::remove_file(&file).unwrap();
        }
        verified(&state);
    }
}
