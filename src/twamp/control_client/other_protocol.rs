//! Recognition of servers of other protocols on the control port.

/// First octets by which a protocol is recognised, and the name of its server with the article.
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
/// fills all of them with text is not a TWAMP server.
const UNUSED_OCTETS: usize = 12;
/// Limit of the text that an error quotes.
const MAX_QUOTED: usize = 40;

/// Request that makes servers of other protocols answer: a ClientHello of TLS 1.2 (RFC 5246
/// §7.4.1.2) and an empty line. A server that waits for the client to begin answers with an alert
/// or an error, which reveals its protocol.
pub const FOREIGN_REQUEST: &[u8] = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03\
    TWAMP control connection awaited\x00\x00\x02\xc0\x2f\x01\x00\r\n\r\n";

/// Marker at the beginning of a BGP message, before its length and type (RFC 4271 §4.1).
const BGP_MARKER: [u8; 16] = [0xff; 16];

/// Returns the protocol of a server that begins with octets other than text.
fn name_binary_protocol(octets: &[u8]) -> Option<&'static str> {
    match octets {
        _ if octets.len() >= UNUSED_OCTETS && FOREIGN_REQUEST.starts_with(octets) => {
            Some("an echo server")
        }
        _ if octets.starts_with(FOREIGN_REQUEST) => Some("an echo server"),
        [content, 3, 0..=4, _, _, ..] if TLS_CONTENT.contains(content) => Some("a TLS server"),
        // A SETTINGS frame (RFC 9113 §6.5): length, type, flags, stream 0.
        [0, 0, length, 4, 0, 0, 0, 0, 0, ..] if *length > 0 && length.is_multiple_of(6) => {
            Some("an HTTP/2 server")
        }
        // IAC WILL, WONT, DO or DONT (RFC 854).
        [0xff, 0xfb..=0xfe, ..] => Some("a telnet server"),
        // A packet of less than 64 KiB, numbered 0, of version 10 of the protocol.
        [_, _, 0, 0, 10, digit, b'.' | b'0'..=b'9', ..] if digit.is_ascii_digit() => {
            Some("a MySQL or MariaDB server")
        }
        _ => {
            let [length @ .., kind] = octets.strip_prefix(&BGP_MARKER)?.first_chunk::<3>()?;
            let is_message = (19..=4096).contains(&u16::from_be_bytes(*length));
            (is_message && (1..=5).contains(kind)).then_some("a BGP router")
        }
    }
}

/// Returns a description of the server that begins with these octets; `None` if they may begin a
/// Server-Greeting. `is_all` is true if no more octets will follow.
pub fn name_other_protocol(octets: &[u8], is_all: bool) -> Option<String> {
    if let Some((_, name)) = BEGINNINGS.iter().find(|(start, _)| octets.starts_with(start)) {
        return Some(format!("{name} ({})", quoted(octets)));
    }
    if let Some(name) = name_binary_protocol(octets) {
        return Some(name.into());
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
            (b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80", "an HTTP/2 server"),
            (b"\xff\xfd\x18\xff\xfd\x20", "a telnet server"),
            (b"\x4a\0\0\0\x0a8.0.36\0", "a MySQL or MariaDB server"),
            (b"\x5b\0\0\0\x0a11.4.2-MariaDB\0", "a MySQL or MariaDB server"),
            (FOREIGN_REQUEST, "an echo server"),
            (&[[0xff; 16].as_slice(), &[0, 29, 1, 4]].concat(), "a BGP router"),
            (b"220 mail.example\r\n", "an FTP or SMTP server (\"220 mail.example\")"),
            (b"Welcome to it", "a server of a text protocol (\"Welcome to it\")"),
        ] {
            assert_eq!(name_other_protocol(octets, false).as_deref(), Some(expected));
        }
        assert!(name_other_protocol(b"Hello\r\n", true).is_some());
    }

    #[test]
    fn a_greeting_and_its_beginning_are_of_no_other_protocol() {
        let mut greeting = [0; 64];
        greeting[15] = 1;
        for len in [0, 1, 4, 12, 64] {
            assert_eq!(name_other_protocol(&greeting[..len], true), None);
        }
        // Unused octets may have any value, and all modes may be offered.
        assert_eq!(name_other_protocol(&[0xff; 64], true), None);
        greeting[..12].copy_from_slice(b"\x16\x07random \xff..");
        assert_eq!(name_other_protocol(&greeting, false), None);
        assert_eq!(name_other_protocol(b"Hello\r\n", false), None);
    }

    #[test]
    fn the_foreign_request_is_one_record_of_its_length() {
        let record = FOREIGN_REQUEST.len() - 4 - 5;
        assert_eq!(FOREIGN_REQUEST[3..5], [0, record as u8]);
        assert_eq!(FOREIGN_REQUEST[6..9], [0, 0, record as u8 - 4]);
    }
}
