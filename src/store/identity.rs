//! Identity of the agent, stored in the state database and in a separate file. Either copy is
//! sufficient.

use std::{fs, io, path::Path};

use super::{
    StateDirectory, StoreError, disk,
    engine::Engine,
    presence::{Mark, mend},
    state::{CACHE_OCTETS, STATE, Trees},
};

const NAME: &str = "agent-id";
const KEY: &[u8] = b"agent-id";
/// Maximum length of an identity, bytes.
const MAXIMUM_OCTETS: usize = 256;

/// Returns the stored identity of the agent; stores and returns `new` if there is none.
pub(super) fn agent_id(
    directory: &Path,
    meta: &sled::Tree,
    new: &str,
) -> Result<String, StoreError> {
    let path = directory.join(NAME);
    let stored = match meta.get(KEY)? {
        Some(id) => {
            Some(String::from_utf8(id.to_vec()).map_err(|_| StoreError::Damaged("agent id"))?)
        }
        None => None,
    };
    let copy = fs::read_to_string(&path).ok().and_then(|text| parse(&text));
    let id = stored.clone().or_else(|| copy.clone()).unwrap_or_else(|| new.to_owned());
    if stored.is_none() {
        meta.insert(KEY, id.as_str())?;
    }
    if copy.as_ref() != Some(&id)
        && let Err(error) = write(directory, &id)
    {
        tracing::warn!(%error, file = %path.display(), "failed to write the copy of the agent id");
    }
    Ok(id)
}

/// Copy of the identity in the directory of a running agent.
#[derive(Debug)]
pub(super) struct IdentityCopy {
    id: String,
    mark: Option<Mark>,
}

impl IdentityCopy {
    /// Notes the copy that [`agent_id`] left.
    pub(super) fn new(directory: &Path, id: &str) -> Self {
        Self { id: id.to_owned(), mark: Mark::read(&directory.join(NAME)) }
    }

    /// Writes the copy again if it was deleted or changed.
    pub(super) fn mend(&mut self, directory: &Path) {
        mend(&directory.join(NAME), &mut self.mark, || write(directory, &self.id));
    }
}

/// Replaces the identity in the state directory of a stopped agent; returns the previous one.
pub fn renew(state: &StateDirectory, id: &str) -> Result<String, StoreError> {
    let engine = Engine::open_whole(&state.path().join(STATE), CACHE_OCTETS)?;
    let meta = Trees::open(&engine)?.meta;
    let before = agent_id(state.path(), &meta, id)?;
    meta.insert(KEY, id)?;
    engine.flush_durably()?;
    write(state.path(), id)
        .map_err(|source| StoreError::Directory { path: state.path().join(NAME), source })?;
    Ok(before)
}

/// Returns true for a copy that exists and cannot be read.
pub(super) fn is_damaged(directory: &Path) -> bool {
    let octets = fs::read(directory.join(NAME));
    octets.is_ok_and(|octets| String::from_utf8(octets).ok().and_then(|id| parse(&id)).is_none())
}

/// Parses the file: an identity and its checksum, one line each.
fn parse(text: &str) -> Option<String> {
    let (id, sum) = text.split_once('\n')?;
    let is_whole = sum.trim() == checksum(id) && !id.is_empty() && id.len() <= MAXIMUM_OCTETS;
    is_whole.then(|| id.to_owned())
}

fn checksum(id: &str) -> String {
    format!("{:08x}", crc32fast::hash(id.as_bytes()))
}

fn write(directory: &Path, id: &str) -> io::Result<()> {
    let content = format!("{id}\n{}\n", checksum(id));
    disk::replace(&directory.join(NAME), &[content.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_copy_is_sufficient() {
        let directory = tempfile::tempdir().unwrap();
        let database = || sled::Config::new().temporary(true).open().unwrap();
        let (one, other) = (database(), database());
        let id = |meta: &sled::Tree, new| agent_id(directory.path(), meta, new).unwrap();
        assert_eq!(id(&one, "a"), "a");
        assert_eq!(id(&other, "b"), "a", "from the file");
        let file = directory.path().join(NAME);
        for damaged in ["", "x\n00000000\n", "\n00000000\n"] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(id(&one, "b"), "a", "from the database");
            assert_eq!(id(&database(), "b"), "a", "from the file again");
        }
        fs::remove_file(&file).unwrap();
        assert_eq!(id(&database(), "b"), "b");
    }
}
