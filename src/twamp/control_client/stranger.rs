//! Recognition of servers of other protocols on the control port.

/// Octets that tell a protocol, with its article.
const BEGINNINGS: [(&[u8], &str); 7] = [
    (b"SSH-", "an SSH server"),
    (b"HTTP/", "an HTTP server"),
    (b"<!DOCTYPE", "an HTTP server"),
    (b"220 ", "an FTP or SMTP server"),
    (b"220-", "an FTP or SMTP server"),
    (b"+OK", "a POP3 server"),
    (b"* OK", "an IMAP server"),
];
/// Content types of TLS records (RFC 8446 §5.1).
const TLS_CONTENT: std::ops::RangeInclusive<u8> = 20..=23;
/// Octets at the beginning of a Server-Greeting that have no meaning (RFC 4656 §3.1). A server that
/// fills them with text alone is none of TWAMP.
const UNUSED_OCTETS: usize = 12;
/// Limit of the text that an error quotes.
const MAX_QUOTED: usize = 40;

/// A request of no protocol in particular: a ClientHello of TLS 1.2 (RFC 5246 §7.4.1.2), and an
/// empty line. A server that waits for its client to begin answers with an alert or an error, by
/// which it is recognised.
pub const PROVOCATION: &[u8] = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03\
    TWAMP control connection awaited\x00\x00\x02\xc0\x2f\x01\x00\r\n\r\n";

/// Returns what the beginning of a server's octets looks like; `None` if it may be a Server-Greeting.
/// `is_all` is true if no more will follow.
pub fn describe_stranger(octets: &[u8], is_all: bool) -> Option<String> {
    if let Some((_, name)) = BEGINNINGS.iter().find(|(start, _)| octets.starts_with(start)) {
        return Some(format!("{name} ({})", quoted(octets)));
    }
    if let [content, 3, 0..=4, _, _, ..] = octets
        && TLS_CONTENT.contains(content)
    {
        return Some("a TLS server".into());
    }
    let start = octets.get(..UNUSED_OCTETS).or_else(|| is_all.then_some(octets))?;
    let is_text = |octet: &u8| octet.is_ascii_graphic() || b" \t\r\n".contains(octet);
    (!start.is_empty() && start.iter().all(is_text))
        .then(|| format!("a server of a text protocol ({})", quoted(octets)))
}

fn quoted(octets: &[u8]) -> String {
    let line = octets.split(|octet| b"\r\n".contains(octet)).next().unwrap_or_default();
    format!("\"{}\"", line[..line.len().min(MAX_QUOTED)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_other_protocols_are_named() {
        for (octets, expected) in [
            (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], "an SSH server (\"SSH-2.0-OpenSSH_9.2\")"),
            (b"HTTP/1.1 400 Bad Request\r\n", "an HTTP server (\"HTTP/1.1 400 Bad Request\")"),
            (b"\x15\x03\x01\x00\x02\x02\x28", "a TLS server"),
            (b"220 mail.example\r\n", "an FTP or SMTP server (\"220 mail.example\")"),
            (b"Welcome to it", "a server of a text protocol (\"Welcome to it\")"),
        ] {
            assert_eq!(describe_stranger(octets, false).as_deref(), Some(expected));
        }
        assert!(describe_stranger(b"Hello\r\n", true).is_some());
    }

    #[test]
    fn a_greeting_and_its_beginning_are_no_stranger() {
        let mut greeting = [0; 64];
        greeting[15] = 1;
        for len in [0, 1, 4, 12, 64] {
            assert_eq!(describe_stranger(&greeting[..len], true), None);
        }
        // Unused octets may have any value.
        greeting[..12].copy_from_slice(b"\x16\x07random \xff..");
        assert_eq!(describe_stranger(&greeting, false), None);
        assert_eq!(describe_stranger(b"Hello\r\n", false), None);
    }

    #[test]
    fn the_provocation_is_one_record_of_its_length() {
        let record = PROVOCATION.len() - 4 - 5;
        assert_eq!(PROVOCATION[3..5], [0, record as u8]);
        assert_eq!(PROVOCATION[6..9], [0, 0, record as u8 - 4]);
    }
}
