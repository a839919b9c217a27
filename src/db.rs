//! `twamp-agent db`: what is done to a state directory while no agent runs on it.

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
    },
};

/// Why a state directory could not be worked on.
#[derive(Debug, Error)]
pub enum DbError {
    /// The directory, or what is in it.
    #[error("{}: {source}", .path.display())]
    Maintenance {
        /// Which.
        path: PathBuf,
        /// Why.
        source: MaintenanceError,
    },
    /// A file.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no state to work on.
    #[error("{} holds no state of an agent", .0.display())]
    Nothing(PathBuf),
}

/// Reads everything that is stored; what there is, in words.
pub fn verify(directory: &Path) -> Result<String, DbError> {
    let found = maintenance::verify(&open(directory)?, check_content, is_statistics_key)
        .map_err(of(directory))?;
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

/// Writes everything into a file.
pub fn export(directory: &Path, file: &Path) -> Result<String, DbError> {
    let state = open(directory)?;
    let failed = |source| DbError::File { path: file.to_owned(), source };
    // The secrets of the configuration are in it.
    let mut private = File::options();
    let out = private.write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
    let mut out = BufWriter::new(out);
    let written = maintenance::export(&state, &mut out).map_err(of(directory));
    let written = written.and_then(|items| {
        let out = out.into_inner().map_err(|error| failed(error.into_error()))?;
        out.sync_all().map_err(failed)?;
        Ok(items)
    });
    if written.is_err() {
        // What is not whole is of no use.
        fs::remove_file(file).map_err(failed)?;
    }
    let items = written?;
    Ok(format!("{}: {items} items of {}", file.display(), directory.display()))
}

/// Makes a state directory of a file.
pub fn import(directory: &Path, file: &Path) -> Result<String, DbError> {
    let failed = |source| DbError::File { path: file.to_owned(), source };
    let mut from = BufReader::new(File::open(file).map_err(failed)?);
    let items = maintenance::import(directory, &mut from).map_err(of(directory))?;
    Ok(format!("{}: {items} items of {}", directory.display(), file.display()))
}

/// Writes the databases anew, without what was given back.
pub fn compact(directory: &Path) -> Result<String, DbError> {
    let (before, after) = maintenance::compact(&open(directory)?).map_err(of(directory))?;
    Ok(format!("{}: {before} octets on disk before, {after} now", directory.display()))
}

/// One that has never been used is not made by looking at it.
fn open(directory: &Path) -> Result<StateDirectory, DbError> {
    let is_there = |name: &str| directory.join(name).exists();
    if !["config.sled", "state.sled", "results.sled"].into_iter().any(is_there) {
        return Err(DbError::Nothing(directory.to_owned()));
    }
    StateDirectory::open(directory).map_err(|error| of(directory)(error.into()))
}

fn of(directory: &Path) -> impl Fn(MaintenanceError) -> DbError + '_ {
    move |source| DbError::Maintenance { path: directory.to_owned(), source }
}
