//! Helpers for files and directories: atomic replacement, sync, size on disk, copies.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use prost::Message;

const BLOCK_OCTETS: u64 = 512;

/// Replaces a file atomically by one with these contents. It is durable when this returns.
pub(super) fn replace(path: &Path, contents: &[&[u8]]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file: File =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    contents.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Replaces a file atomically by a magic number, a checksum and a message. It is durable when this
/// returns.
pub(super) fn replace_message(path: &Path, magic: &[u8], message: &impl Message) -> io::Result<()> {
    let message = message.encode_to_vec();
    let sum = crc32fast::hash(&message).to_be_bytes();
    replace(path, &[magic, &sum, &message])
}

/// Returns true for a file of [`replace_message`] that exists and cannot be read.
pub(super) fn is_damaged_message<M: Message + Default>(path: &Path, magic: &[u8]) -> bool {
    path.symlink_metadata().is_ok() && read_message::<M>(path, magic).is_none()
}

/// Reads a file of [`replace_message`]; `None` if it is missing or damaged.
pub(super) fn read_message<M: Message + Default>(path: &Path, magic: &[u8]) -> Option<M> {
    let octets = fs::read(path).ok()?;
    let (sum, message) = octets.strip_prefix(magic)?.split_first_chunk::<4>()?;
    let is_whole = crc32fast::hash(message) == u32::from_be_bytes(*sum);
    is_whole.then(|| M::decode(message).ok())?
}

/// Syncs the entries of a directory, so that files created or renamed in it survive a loss of
/// power.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Renames a file or a directory. The new name is durable when this returns.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    let (old, new) = (from.parent(), to.parent());
    new.map_or(Ok(()), sync_directory)?;
    if old == new { Ok(()) } else { old.map_or(Ok(()), sync_directory) }
}

/// Returns the size on disk of a file or of a directory with its content, bytes.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks() * BLOCK_OCTETS;
    let entries = metadata.is_dir().then(|| fs::read_dir(path).ok()).flatten();
    let inside = entries.into_iter().flatten().flatten();
    own + inside.map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}

/// Copies a directory with its content.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
