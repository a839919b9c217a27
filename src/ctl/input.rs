//! Input of commands: files, standard input, and answers on the terminal.

use std::{
    fs::File,
    io::{self, BufRead, IsTerminal, Read, Write},
    path::Path,
};

use super::error::CtlError;
use crate::{
    document::{DocumentError, read_config},
    proto::AgentConfig,
};

/// Largest file that is read; the API takes requests of this size.
const MAXIMUM_FILE_BYTES: u64 = 64 << 20;

/// Reads a text file; `-` is standard input.
pub fn read_file(path: &Path) -> Result<String, CtlError> {
    let text = match path.to_str() {
        Some("-") => read_bounded(io::stdin().lock()),
        _ => File::open(path).and_then(read_bounded),
    };
    text.map_err(|error| CtlError::File(path.display().to_string(), error))
}

fn read_bounded(source: impl Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(MAXIMUM_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAXIMUM_FILE_BYTES {
        let mebibytes = MAXIMUM_FILE_BYTES >> 20;
        return Err(io::Error::other(format!("the file is larger than {mebibytes} MiB")));
    }
    Ok(text)
}

/// Reads a configuration. An empty file is an error, because a truncated file must not remove the whole
/// configuration.
pub fn read_document(path: &Path) -> Result<AgentConfig, CtlError> {
    let text = read_file(path)?;
    let config = match text.trim() {
        "" => Err(DocumentError::empty()),
        _ => read_config(&text),
    };
    config.map_err(|error| CtlError::Document(path.display().to_string(), error))
}

/// Returns true if a question can be asked on the terminal.
pub(super) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question on the terminal. Returns true only after `y` or `yes`.
pub(super) fn confirm(question: &str) -> io::Result<bool> {
    let mut terminal = io::stderr().lock();
    write!(terminal, "{question} [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().lock().take(80).read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_files_are_refused_without_reading_them_whole() {
        let error = read_bounded(io::repeat(b'a')).unwrap_err().to_string();
        assert_eq!(error, "the file is larger than 64 MiB");
        let error = read_file(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(error, "/dev/zero: the file is larger than 64 MiB");
    }

    #[test]
    fn empty_documents_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = read_document(file.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("the document is empty: to remove everything, write {}"),
            "{error}"
        );
    }
}
