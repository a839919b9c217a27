//! Commits, rollbacks and recovery of the configuration store.

use super::*;
use prost::Message;

fn stored(revision: u64, names: usize) -> StoredRevision {
    let connection = |index| proto::ControlConnection {
        name: format!("c{index}"),
        ..proto::ControlConnection::default()
    };
    StoredRevision {
        revision: Some(proto::Revision { revision, ..proto::Revision::default() }),
        config: Some(proto::AgentConfig {
            client: Some(proto::ClientConfig {
                control_connections: (0..names).map(connection).collect(),
            }),
            ..proto::AgentConfig::default()
        }),
        ..StoredRevision::default()
    }
}

#[test]
fn a_commit_interrupted_at_any_step_leaves_the_old_or_the_new_revision() {
    for (step, survivor) in [("half", 1), ("written", 1), ("named", 2), ("whole", 2)] {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = ConfigStore::open(&state).unwrap();
        store.commit(1, &stored(1, 1)).unwrap();
        let second = stored(2, 3_000);
        if step == "whole" {
            store.commit(2, &second).unwrap();
        } else {
            store.with_database(|database, _| database.write(2, &(&second).into())).unwrap();
        }
        if step == "named" {
            store.with_database(|database, _| database.make_current(2)).unwrap();
        }
        drop(store);
        if step == "half" {
            let engine = Engine::open(&path(directory.path()), CACHE_OCTETS).unwrap();
            let last = engine.tree("revisions").unwrap().pop_max().unwrap();
            assert!(last.is_some());
        }
        let store = ConfigStore::open(&state).unwrap();
        let names = if survivor == 1 { 1 } else { 3_000 };
        assert_eq!(store.current().unwrap(), Some(stored(survivor, names)), "{step}");
        // The remains of the interrupted commit do not affect the next one.
        store.commit(survivor + 1, &stored(survivor + 1, 2)).unwrap();
        assert_eq!(store.current().unwrap(), Some(stored(survivor + 1, 2)));
    }
}

#[test]
fn fifty_revisions_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = ConfigStore::open(&StateDirectory::open(directory.path()).unwrap()).unwrap();
    for revision in 1..=60 {
        store.commit(revision, &stored(revision, 1)).unwrap();
    }
    let kept: Vec<u64> = store.revisions().unwrap().iter().map(|r| r.revision).collect();
    assert_eq!(kept, (11..=60).rev().collect::<Vec<_>>());
    assert_eq!(store.revision(10).unwrap(), None);
}

#[test]
fn the_rollback_target_is_kept_until_a_later_revision_is_confirmed() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = ConfigStore::open(&state).unwrap();
    store.commit(1, &stored(1, 1)).unwrap();
    let unconfirmed =
        Unconfirmed { until_unix_ns: 5, rollback_to: 1, timeout_ns: 5, ..Unconfirmed::default() };
    for revision in 2..=70 {
        let waits = StoredRevision { unconfirmed: Some(unconfirmed), ..stored(revision, 1) };
        store.commit(revision, &waits).unwrap();
    }
    assert!(store.revision(1).unwrap().is_some() && store.revision(2).unwrap().is_none());
    drop(store);
    let store = ConfigStore::open(&state).unwrap();
    assert_eq!(store.unconfirmed().unwrap(), Some((70, unconfirmed)));
    store.confirm(70).unwrap();
    assert_eq!(store.unconfirmed().unwrap(), None);
    store.commit(71, &stored(71, 1)).unwrap();
    assert_eq!(store.revision(1).unwrap(), None);
    drop(store);
    assert_eq!(ConfigStore::open(&state).unwrap().unconfirmed().unwrap(), None);
}

#[test]
fn a_copy_that_is_deleted_or_changed_is_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = ConfigStore::open(&state).unwrap();
    let path = directory.path().join("config.last");
    store.mend().unwrap();
    assert!(!path.exists(), "nothing was committed");
    store.commit(1, &stored(1, 3)).unwrap();
    let copy = std::fs::read(&path).unwrap();
    for touch in [
        (|path| std::fs::remove_file(path).unwrap()) as fn(&Path),
        |path| std::fs::write(path, "").unwrap(),
        |path| {
            std::fs::remove_file(path).unwrap();
            std::fs::write(path, "another file").unwrap();
        },
    ] {
        touch(&path);
        store.mend().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), copy);
    }
    assert_eq!(store.damage(), "");
}

#[test]
fn nothing_is_acknowledged_after_the_database_was_truncated_or_deleted() {
    for touch in [
        (|path| std::fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap())
            as fn(&Path),
        |path| std::fs::remove_file(path).unwrap(),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let store = ConfigStore::open(&state).unwrap();
        store.commit(1, &stored(1, 3)).unwrap();
        store.check_presence().unwrap();
        touch(&directory.path().join("config.sled/db"));
        assert!(store.damage().contains("put a backup in place"), "{}", store.damage());
        assert!(matches!(store.check_presence(), Err(StoreError::Removed(_))));
        for _ in 0..2 {
            let refused = store.commit(2, &stored(2, 3));
            assert!(matches!(refused, Err(StoreError::Removed(_))), "{refused:?}");
        }
        drop(store);
        let store = ConfigStore::open(&state).unwrap();
        assert_eq!(store.current().unwrap(), Some(stored(1, 3)), "from its copy");
    }
}

#[test]
fn a_state_directory_is_locked_by_one_agent() {
    let directory = tempfile::tempdir().unwrap();
    let _held = StateDirectory::open(directory.path()).unwrap();
    let error = StateDirectory::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
}

#[test]
fn the_copy_contains_the_rollback_target_of_a_pending_revision() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = ConfigStore::open(&state).unwrap();
    store.commit(1, &stored(1, 3)).unwrap();
    let unconfirmed =
        Unconfirmed { until_unix_ns: 5, rollback_to: 1, timeout_ns: 5, ..Unconfirmed::default() };
    let waits = StoredRevision { unconfirmed: Some(unconfirmed), ..stored(2, 5) };
    store.commit(2, &waits).unwrap();
    drop(store);
    std::fs::remove_dir_all(directory.path().join("config.sled")).unwrap();
    let store = ConfigStore::open(&state).unwrap();
    assert_eq!(store.current().unwrap(), Some(waits));
    assert_eq!(store.unconfirmed().unwrap(), Some((2, unconfirmed)));
    assert_eq!(store.revision(1).unwrap(), Some(stored(1, 3)));
    assert!(store.damage().contains("revision 2 was recovered from its copy"));
}

/// A change of one connection among many takes little more space than the change. Each revision can
/// be read, also after a restart and after older ones were removed.
#[test]
fn revisions_are_stored_as_differences() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = ConfigStore::open(&state).unwrap();
    let changed = |revision: u64| {
        let mut stored = stored(revision, 500);
        let client = stored.config.as_mut().unwrap().client.as_mut().unwrap();
        let target = &mut client.control_connections[revision as usize * 7];
        target.target_address = format!("192.0.2.{revision}");
        stored
    };
    for revision in 1..=60 {
        store.commit(revision, &changed(revision)).unwrap();
    }
    drop(store);
    let store = ConfigStore::open(&state).unwrap();
    for revision in 11..=60 {
        assert_eq!(store.revision(revision).unwrap(), Some(changed(revision)), "{revision}");
    }
    assert_eq!(store.revision(10).unwrap(), None);
    drop(store);
    let engine = Engine::open(&path(directory.path()), CACHE_OCTETS).unwrap();
    let pieces = engine.tree("revisions").unwrap();
    let octets: usize = pieces.iter().values().map(|piece| piece.unwrap().len()).sum();
    let whole = changed(60).config.unwrap().encode_to_vec().len();
    assert!(octets < 6 * whole, "{octets} of 50 times {whole}");
    // A difference whose base has changed is damage.
    let last = pieces.scan_prefix(60u64.to_be_bytes()).last().unwrap().unwrap();
    let flipped: Vec<u8> = last.1.iter().map(|octet| octet ^ (octet & 1)).collect();
    pieces.insert(last.0, flipped).unwrap();
    let revisions = Revisions::open(engine).unwrap();
    assert!(matches!(revisions.revision(59), Err(StoreError::Damaged(_))));
    assert!(revisions.revision(48).unwrap().is_some(), "stored whole");
}

/// The revision to roll back to stays whole, although the revisions after it are removed.
#[test]
fn the_rollback_target_is_stored_whole() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = ConfigStore::open(&state).unwrap();
    (1..=5).for_each(|revision| store.commit(revision, &stored(revision, 300)).unwrap());
    let unconfirmed = Unconfirmed { rollback_to: 5, ..Unconfirmed::default() };
    for revision in 6..=70 {
        let waits = StoredRevision { unconfirmed: Some(unconfirmed), ..stored(revision, 300) };
        store.commit(revision, &waits).unwrap();
    }
    assert_eq!(store.revision(5).unwrap(), Some(stored(5, 300)));
    assert_eq!(store.revision(6).unwrap(), None);
}

/// Contents of all files below a directory, one after the other.
fn all_octets(directory: &Path) -> Vec<u8> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(
            |path| if path.is_dir() { all_octets(&path) } else { std::fs::read(path).unwrap() },
        )
        .collect()
}

#[test]
fn a_secret_is_gone_from_the_disk_with_the_last_revision_that_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let store = ConfigStore::open(&state).unwrap();
    let with_secret = |revision: u64| {
        let mut stored = stored(revision, 1);
        let config = stored.config.as_mut().and_then(|config| config.client.as_mut()).unwrap();
        let secret = if revision <= 5 { "the-replaced-secret" } else { "another" };
        config.control_connections[0].secret = secret.into();
        stored
    };
    let holds_secret = || {
        let octets = all_octets(directory.path());
        octets.windows(b"replaced-secret".len()).any(|found| found == b"replaced-secret")
    };
    for revision in 1..=60 {
        store.commit(revision, &with_secret(revision)).unwrap();
        if revision == 50 {
            assert!(holds_secret(), "a rollback needs it");
        }
    }
    assert!(!holds_secret());
    assert_eq!(store.revisions().unwrap().len(), 50);
    drop(store);
    let store = ConfigStore::open(&state).unwrap();
    assert_eq!(store.current().unwrap(), Some(with_secret(60)));
    store.commit(61, &with_secret(61)).unwrap();
    assert_eq!(store.revision(12).unwrap(), Some(with_secret(12)));
}
