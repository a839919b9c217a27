//! What a start makes of a state directory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{path::Path, process::Command};

use twamp_agent::{
    model::ResultKeeping,
    net::clock,
    proto::ProbeResult,
    results::{Results, Subject},
    store::{ConfigStore, ResultStore, Retention, StateDirectory},
};

fn agent(directory: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_twamp-agent"))
        .args(["run", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(directory)
        .output()
        .unwrap()
}

#[test]
fn a_newer_schema_is_refused_and_kept() {
    for database in ["config.sled", "results.sled"] {
        let directory = tempfile::tempdir().unwrap();
        if database == "results.sled" {
            drop(ConfigStore::open(&StateDirectory::open(directory.path()).unwrap()).unwrap());
        }
        let path = directory.path().join(database);
        let newer = 7u32.to_be_bytes();
        {
            let db = sled::open(&path).unwrap();
            db.insert("schema", &newer).unwrap();
            db.insert("treasure", "kept").unwrap();
            db.flush().unwrap();
        }
        let output = agent(directory.path());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(database) && said.contains("schema 7"), "{said}");
        let db = sled::open(&path).unwrap();
        assert_eq!(db.get("treasure").unwrap().as_deref(), Some(b"kept".as_slice()));
        assert_eq!(db.get("schema").unwrap().as_deref(), Some(newer.as_slice()));
    }
}

/// A start reads what came behind the statistics that are stored. Single probes are in none: they are
/// not read again, however many there are.
#[test]
fn statistics_say_up_to_where_they_are_whole() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let open = || {
        let retention = Retention::of_all(u64::MAX, 1 << 30);
        ResultStore::open(&state, retention, "agent", clock::now).unwrap()
    };
    let results = Results::open(open(), "boot".into()).unwrap();
    let subject = Subject::new("c", "s", Default::default(), ResultKeeping::Stored);
    for number in 0..20 {
        let probe = ProbeResult { sequence: number, ..ProbeResult::default() };
        results.probes(subject.clone(), vec![probe], clock::unix());
    }
    results.close();
    drop(results);
    let store = open();
    assert_eq!(store.state().borrow().newest, 20);
    let as_of: Vec<u64> =
        store.statistics().unwrap().iter().map(|kept| kept.as_of_cursor).collect();
    assert_eq!(as_of, [20]);
}
