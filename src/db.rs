//! `twamp-agent db`: commands on the state directory of a stopped agent.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::{
    results::{check_content, is_statistics_key},
    store::{
        StateDirectory,
        maintenance::{self, MaintenanceError},
        renew_identity,
    },
};

/// Failure of a command on a state directory.
#[derive(Debug, Error)]
pub enum DbError {
    /// The state directory or its content is not usable.
    #[error("{}: {source}", .path.display())]
    Maintenance {
        /// Path of the directory or file.
        path: PathBuf,
        /// Error of the store or the file system.
        source: MaintenanceError,
    },
    /// The exported file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// Path of the directory or file.
        path: PathBuf,
        /// Error of the store or the file system.
        source: io::Error,
    },
    /// The directory has no state of an agent.
    #[error("{} holds no state of an agent", .0.display())]
    Nothing(PathBuf),
}

/// Reads everything that is stored and describes it. Nothing is repaired.
pub fn verify(directory: &Path) -> Result<String, DbError> {
    let found = maintenance::verify(&inspect(directory)?, check_content, is_statistics_key)
        .map_err(failed_at(directory))?;
    let (first, last) = found.cursors;
    let missing = match found.missing {
        0 => String::new(),
        missing => format!(", {missing} cursors between them without a record"),
    };
    Ok(format!(
        "{}: whole; {} revisions; {} records, cursors {first} to {last}{missing}; {} octets live, \
         {} on disk",
        directory.display(),
        found.revisions,
        found.records,
        found.live_bytes,
        found.disk_bytes
    ))
}

/// Writes everything into a new file.
pub fn export(directory: &Path, file: &Path) -> Result<String, DbError> {
    let state = inspect(directory)?;
    let failed = |source| DbError::File { path: file.to_owned(), source };
    // The file contains the secrets of the configuration.
    let mut private = File::options();
    let out = private.write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
    let mut out = BufWriter::new(out);
    let written = maintenance::export(&state, &mut out).map_err(failed_at(directory));
    let written = written.and_then(|items| {
        let out = out.into_inner().map_err(|error| failed(error.into_error()))?;
        out.sync_all().map_err(failed)?;
        Ok(items)
    });
    if written.is_err() {
        // An incomplete export is useless.
        fs::remove_file(file).map_err(failed)?;
    }
    let items = written?;
    Ok(format!("{}: {items} items of {}", file.display(), directory.display()))
}

/// Creates a state directory from an exported file.
pub fn import(directory: &Path, file: &Path) -> Result<String, DbError> {
    let failed = |source| DbError::File { path: file.to_owned(), source };
    let mut from = BufReader::new(File::open(file).map_err(failed)?);
    let items = maintenance::import(directory, &mut from).map_err(failed_at(directory))?;
    Ok(format!("{}: {items} items of {}", directory.display(), file.display()))
}

/// Rewrites the databases without unused space.
pub fn compact(directory: &Path) -> Result<String, DbError> {
    let (before, after) = maintenance::compact(&open(directory)?).map_err(failed_at(directory))?;
    Ok(format!("{}: {before} octets on disk before, {after} now", directory.display()))
}

/// Draws a new agent id, for one of two agents whose state directories are copies of one another.
pub fn new_identity(directory: &Path) -> Result<String, DbError> {
    let new = uuid::Uuid::new_v4().to_string();
    let before = renew_identity(&open(directory)?, &new)
        .map_err(|error| failed_at(directory)(error.into()))?;
    Ok(format!("{}: agent id {new} (was {before})", directory.display()))
}

/// Opens a state directory; one without state is an error and is not created.
fn open(directory: &Path) -> Result<StateDirectory, DbError> {
    refuse_other(directory)?;
    StateDirectory::open(directory).map_err(|error| failed_at(directory)(error.into()))
}

/// Opens a state directory that must not change.
fn inspect(directory: &Path) -> Result<StateDirectory, DbError> {
    refuse_other(directory)?;
    StateDirectory::inspect(directory).map_err(|error| failed_at(directory)(error.into()))
}

fn refuse_other(directory: &Path) -> Result<(), DbError> {
    let is_there = |name: &str| directory.join(name).exists();
    if ["config.sled", "state.sled", "results.sled"].into_iter().any(is_there) {
        return Ok(());
    }
    Err(DbError::Nothing(directory.to_owned()))
}

fn failed_at(directory: &Path) -> impl Fn(MaintenanceError) -> DbError + '_ {
    move |source| DbError::Maintenance { path: directory.to_owned(), source }
}
