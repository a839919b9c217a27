//! Version of a state directory, in one small file. A directory of a newer agent is refused and left
//! as it is; one of an older agent is migrated forward, one version at a time.

use std::{fs, io, path::Path};

use super::{StoreError, disk};

/// Version of the layout that this agent writes.
pub(super) const SCHEMA: u32 = 4;
/// Oldest version that this agent reads. Layouts before it were never released.
const OLDEST: u32 = 4;
pub(super) const NAME: &str = "schema";
/// Present in a directory of the development layouts, which had no file of their own for the version.
const DEVELOPMENT: [&str; 2] = ["results.sled", "results.old"];

/// Checks the version of a state directory, and writes it into a new one.
pub(super) fn check(directory: &Path) -> Result<(), StoreError> {
    let path = directory.join(NAME);
    let failed = |source| StoreError::Directory { path: path.clone(), source };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if DEVELOPMENT.iter().any(|name| directory.join(name).exists()) {
                return Err(StoreError::OldSchema(directory.to_owned()));
            }
            return write(directory).map_err(failed);
        }
        // Not text: what it says is unknown.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
        Err(error) => return Err(failed(error)),
    };
    match text.trim().parse() {
        Ok(found) if found > SCHEMA => {
            Err(StoreError::NewerSchema { path: directory.to_owned(), found })
        }
        Ok(found) if found < OLDEST => Err(StoreError::OldSchema(directory.to_owned())),
        Ok(_) => Ok(()),
        // A newer agent would have written a number: the disk damaged it.
        Err(_) => {
            tracing::error!(file = %path.display(), "damaged, written again");
            write(directory).map_err(failed)
        }
    }
}

fn write(directory: &Path) -> io::Result<()> {
    disk::replace(
        &directory.join(NAME),
        &[format!(
            "{SCHEMA}
"
        )
        .as_bytes()],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_that_can_be_read_are_accepted() {
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

    #[test]
    fn a_directory_of_a_development_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("results.sled")).unwrap();
        let refused = check(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("db export") && refused.contains("db import"), "{refused}");
        assert!(!directory.path().join(NAME).exists());
    }
}
