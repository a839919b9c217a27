//! Tokens of callers: a file with the name and the digest of each, read again when it changes.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use hyper::{HeaderMap, header::AUTHORIZATION};
use prost_types::Timestamp;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::{document::hexadecimal, model::check_name, net::clock, time::UnixTime};

/// Scheme of the header (RFC 6750 §2.1).
const SCHEME: &str = "Bearer ";
/// Size of a file, in octets: ten thousand tokens.
const MAXIMUM_FILE_OCTETS: u64 = 2 << 20;

/// Reason for which a file of tokens cannot be used.
#[derive(Debug, Error)]
#[error("{}: {reason}", .path.display())]
pub struct TokenError {
    path: PathBuf,
    reason: String,
}

/// The tokens of a file.
#[derive(Debug)]
pub(super) struct Tokens {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tokens: Vec<Token>,
    modified: Option<SystemTime>,
}

struct Token {
    name: String,
    /// SHA-256 of the token in hexadecimal digits.
    digest: String,
    expires: Option<UnixTime>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Reads a file. Only its owner may have access to it.
    pub(super) fn open(path: &Path) -> Result<Self, TokenError> {
        let modified = modified(path);
        let state = Mutex::new(State { tokens: read(path)?, modified });
        Ok(Self { path: path.to_owned(), state })
    }

    /// Returns the name of the token in the header of a request.
    pub(super) fn identify(&self, headers: &HeaderMap) -> Option<String> {
        let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let digest = digest(value.strip_prefix(SCHEME)?.trim());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let modified = modified(&self.path);
        if modified != state.modified {
            state.modified = modified;
            match read(&self.path) {
                Ok(tokens) => {
                    tracing::info!(tokens = tokens.len(), "tokens reloaded");
                    state.tokens = tokens;
                }
                // A token that was taken away must not stay valid because of a mistake beside it.
                Err(error) => {
                    tracing::error!(%error, "failed to reload tokens, none is valid");
                    state.tokens.clear();
                }
            }
        }
        find(&state.tokens, &digest, clock::unix())
    }
}

/// Returns the name of a token by its digest, in a time that does not depend on the digits.
fn find(tokens: &[Token], digest: &str, now: UnixTime) -> Option<String> {
    let mut found = None;
    for token in tokens {
        let is_same = bool::from(token.digest.as_bytes().ct_eq(digest.as_bytes()));
        if is_same && token.expires.is_none_or(|expires| now < expires) {
            found = Some(&token.name);
        }
    }
    found.cloned()
}

/// Returns the SHA-256 of a token in hexadecimal digits.
pub(crate) fn digest(token: &str) -> String {
    hexadecimal(&Sha256::digest(token.as_bytes()))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn read(path: &Path) -> Result<Vec<Token>, TokenError> {
    let failed = |reason: String| TokenError { path: path.to_owned(), reason };
    let of_system = |error: io::Error| failed(error.to_string());
    let metadata = fs::metadata(path).map_err(of_system)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(failed(format!("mode {mode:o}: others have access; expected 600")));
    }
    if metadata.len() > MAXIMUM_FILE_OCTETS {
        let octets = metadata.len();
        return Err(failed(format!("{octets} octets; at most {MAXIMUM_FILE_OCTETS}")));
    }
    let text = fs::read_to_string(path).map_err(of_system)?;
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#')
    });
    let parsed = lines.map(|(index, line)| {
        let line_number = index + 1;
        parse(line).map_err(|reason| failed(format!("line {line_number}: {reason}")))
    });
    parsed.collect()
}

/// Reads a line: the name, the digest and the time at which the token expires, if it does.
fn parse(line: &str) -> Result<Token, String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (name, digest, expires) = match fields[..] {
        [name, digest] => (name, digest, None),
        [name, digest, expires] => (name, digest, Some(expires)),
        _ => return Err("expected a name, a SHA-256 and the time of expiry or none".into()),
    };
    check_name(name).map_err(|reason| format!("name {name:?}: {reason}"))?;
    let is_digit = |letter: char| letter.is_ascii_hexdigit();
    if digest.len() != 64 || !digest.chars().all(is_digit) {
        return Err(format!("the SHA-256 of {name} is not 64 hexadecimal digits"));
    }
    let expires = expires.map(|text| {
        let time = Timestamp::from_str(text);
        time.map(|time| UnixTime::from_proto(&time)).map_err(|error| {
            format!("{text:?}: {error}; expected a time such as 2027-01-31T00:00:00Z")
        })
    });
    let expires = expires.transpose()?;
    Ok(Token { name: name.to_owned(), digest: digest.to_ascii_lowercase(), expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_its_digest_until_it_expires() {
        let line = format!("grafana {} 2026-01-01T00:00:10Z", digest("secret"));
        let expiry = UnixTime(1_767_225_610_000_000_000);
        let tokens = [parse(&line).unwrap(), parse(&format!("noc {}", digest("other"))).unwrap()];
        let before = UnixTime(expiry.0 - 1);
        assert_eq!(find(&tokens, &digest("secret"), before).as_deref(), Some("grafana"));
        assert_eq!(find(&tokens, &digest("secret"), expiry), None);
        assert_eq!(find(&tokens, &digest("other"), expiry).as_deref(), Some("noc"));
        assert_eq!(find(&tokens, &digest(""), before), None);
        assert!(!format!("{tokens:?}").contains(&digest("other")));
    }

    #[test]
    fn lines_that_are_wrong_say_why() {
        let digest = digest("secret");
        for (line, reason) in [
            ("grafana".to_owned(), "expected a name"),
            ("a b c d".to_owned(), "expected a name"),
            (format!("a/b {digest}"), "name \"a/b\""),
            (format!("a {}", &digest[1..]), "64 hexadecimal digits"),
            (format!("a {digest} tomorrow"), "2027-01-31T00:00:00Z"),
        ] {
            let error = parse(&line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_and_a_removed_token_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        fs::write(&path, format!("# comment\n\nnoc {}\n", digest("secret"))).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Tokens::open(&path).unwrap_err().to_string();
        assert!(error.contains("mode 640"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let tokens = Tokens::open(&path).unwrap();
        let headers = HeaderMap::from_iter([(AUTHORIZATION, "Bearer secret".parse().unwrap())]);
        assert_eq!(tokens.identify(&headers).as_deref(), Some("noc"));
        let mut later = modified(&path).unwrap();
        for content in ["", "broken"] {
            fs::write(&path, content).unwrap();
            // The clock of the file system may have stood still since.
            later += std::time::Duration::from_secs(5);
            fs::File::options().append(true).open(&path).unwrap().set_modified(later).unwrap();
            assert_eq!(tokens.identify(&headers), None);
        }
    }
}
