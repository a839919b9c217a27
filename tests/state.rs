//! A state directory that a newer agent wrote is left as it is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{path::Path, process::Command};

use twamp_agent::store::{ConfigStore, StateDirectory};

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
