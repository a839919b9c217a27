//! Tokens for callers of an agent.

use std::io;

use crate::{api::token_digest, document::hexadecimal, model::check_name, net::random};

/// Octets of a token: 256 bits.
const TOKEN_OCTETS: usize = 32;

/// Makes a token with a name. Returns the token and the line for the agent's file of tokens.
pub fn new_token(name: &str) -> io::Result<(String, String)> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    check_name(name).map_err(|reason| invalid(format!("name {name:?}: {reason}")))?;
    let token = hexadecimal(&random::bytes::<TOKEN_OCTETS>()?);
    let line = format!("{name} {}", token_digest(&token));
    Ok((token, line))
}
