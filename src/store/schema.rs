//! Version of the layout of a state directory, stored in a file. A directory of a newer agent is
//! refused and left unchanged; one of an older agent is migrated, one version at a time.

use std::{fs, io, path::Path};

use super::{StoreError, disk};

/// Version of the layout that this agent writes.
pub(super) const SCHEMA: u32 = 4;
/// Migrations from each version to the next, up to [`SCHEMA`]. An interrupted migration is run
/// again.
const MIGRATIONS: [Migration; 0] = [];
/// Oldest version that this agent reads. Layouts before it were never released.
const OLDEST: u32 = SCHEMA - MIGRATIONS.len() as u32;
pub(super) const NAME: &str = "schema";
/// Files of the development layouts, which had no version file.
const DEVELOPMENT: [&str; 2] = ["results.sled", "results.old"];

/// Migration of a state directory that is not open.
type Migration = fn(&Path) -> Result<(), StoreError>;

/// Reads and checks the version of a state directory; writes it in a new one. A directory with an
/// unsupported version is left unchanged.
pub(super) fn check(directory: &Path) -> Result<u32, StoreError> {
    match read(directory)? {
        Version::Number(found) => check_version(directory, found).map(|()| found),
        Version::Missing => write(directory, SCHEMA).map(|()| SCHEMA),
        Version::Damaged => {
            let file = directory.join(NAME);
            tracing::error!(file = %file.display(), "schema version damaged, rewriting");
            write(directory, SCHEMA).map(|()| SCHEMA)
        }
    }
}

/// Checks the version of a state directory that must not change.
pub(super) fn inspect(directory: &Path) -> Result<(), StoreError> {
    match read(directory)? {
        Version::Number(found) => check_version(directory, found),
        Version::Missing => Err(StoreError::Damaged("version of the layout (schema: missing)")),
        Version::Damaged => Err(StoreError::Damaged("version of the layout (schema)")),
    }
}

/// Content of the file.
enum Version {
    Number(u32),
    Missing,
    /// Any version of the agent writes a number.
    Damaged,
}

fn read(directory: &Path) -> Result<Version, StoreError> {
    let path = directory.join(NAME);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().parse().map_or(Version::Damaged, Version::Number)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if DEVELOPMENT.iter().any(|name| directory.join(name).exists()) {
                return Err(StoreError::OldSchema(directory.to_owned()));
            }
            Ok(Version::Missing)
        }
        // The file is not text.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Version::Damaged),
        Err(source) => Err(StoreError::Directory { path, source }),
    }
}

/// Returns an error for a version that this agent does not read.
pub(super) fn check_version(directory: &Path, found: u32) -> Result<(), StoreError> {
    if found > SCHEMA {
        return Err(StoreError::NewerSchema { path: directory.to_owned(), found });
    }
    if found < OLDEST {
        return Err(StoreError::OldSchema(directory.to_owned()));
    }
    Ok(())
}

/// Migrates a state directory from version `found` to [`SCHEMA`].
pub(super) fn migrate(directory: &Path, found: u32) -> Result<(), StoreError> {
    run(directory, found, OLDEST, &MIGRATIONS)
}

fn run(
    directory: &Path,
    found: u32,
    oldest: u32,
    migrations: &[Migration],
) -> Result<(), StoreError> {
    for (version, migration) in (oldest..).zip(migrations).filter(|(version, _)| *version >= found)
    {
        migration(directory)?;
        write(directory, version + 1)?;
        tracing::info!(from = version, to = version + 1, "state directory migrated");
    }
    Ok(())
}

/// Writes the version again in the directory of a running agent if it was deleted or changed.
pub(super) fn mend(directory: &Path) {
    if !matches!(read(directory), Ok(Version::Number(SCHEMA)) | Err(_)) {
        let file = directory.join(NAME);
        match write(directory, SCHEMA) {
            Ok(()) => {
                tracing::warn!(file = %file.display(), "version was deleted or changed, written again");
            }
            Err(error) => tracing::debug!(%error, "failed to write the version again, retrying"),
        }
    }
}

/// Writes the version of a state directory.
pub(super) fn write(directory: &Path, version: u32) -> Result<(), StoreError> {
    let path = directory.join(NAME);
    disk::replace(&path, &[format!("{version}\n").as_bytes()])
        .map_err(|source| StoreError::Directory { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_versions_are_refused_and_damaged_ones_rewritten() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(NAME);
        check(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{SCHEMA}\n"));
        check(directory.path()).unwrap();
        for damaged in [&b""[..], b"\xff\xfe", b"four"] {
            fs::write(&file, damaged).unwrap();
            check(directory.path()).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), format!("{SCHEMA}\n"));
        }
        fs::write(&file, "9\n").unwrap();
        let refused = check(directory.path());
        assert!(matches!(refused, Err(StoreError::NewerSchema { found: 9, .. })), "{refused:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "9\n");
        fs::write(&file, "3\n").unwrap();
        assert!(matches!(check(directory.path()), Err(StoreError::OldSchema(_))));
    }

    /// Migrations run in order; a failed one is run again, completed ones are not.
    #[test]
    fn migrations_run_one_version_at_a_time() {
        fn append(directory: &Path, name: &str) -> Result<(), StoreError> {
            let file = directory.join("steps");
            let before = fs::read_to_string(&file).unwrap_or_default();
            fs::write(&file, before + name).unwrap();
            match directory.join("fails").exists() {
                true if name == "b" => Err(StoreError::Damaged("step")),
                _ => Ok(()),
            }
        }
        let migrations: [Migration; 3] = [
            |directory| append(directory, "a"),
            |directory| append(directory, "b"),
            |directory| append(directory, "c"),
        ];
        for (found, steps) in [(7, "abbc"), (8, "bbc"), (9, "c"), (10, "")] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            write(path, found).unwrap();
            fs::write(path.join("fails"), "").unwrap();
            let failed = run(path, found, 7, &migrations).is_err();
            assert_eq!(failed, found < 9);
            fs::remove_file(path.join("fails")).unwrap();
            let version = fs::read_to_string(path.join(NAME)).unwrap().trim().parse().unwrap();
            run(path, version, 7, &migrations).unwrap();
            assert_eq!(fs::read_to_string(path.join("steps")).unwrap_or_default(), steps);
            assert_eq!(fs::read_to_string(path.join(NAME)).unwrap(), "10\n");
        }
    }

    #[test]
    fn a_directory_of_a_development_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("results.sled")).unwrap();
        let refused = check(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("another state directory"), "{refused}");
        assert!(!directory.path().join(NAME).exists());
    }
}
