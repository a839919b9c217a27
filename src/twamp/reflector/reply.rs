//! Replies of a reflector.

use crate::{
    time::ErrorEstimate,
    twamp::PacketMeta,
    wire::format::{PacketFormat, ProbeHeader, ReplyHeader},
};

/// Returns the header of the reply to a probe, without T3.
pub(super) fn reply_header(
    meta: &PacketMeta,
    probe: &ProbeHeader,
    sequence: u32,
    error_estimate: ErrorEstimate,
    receive_timestamp: u64,
) -> ReplyHeader {
    ReplyHeader {
        sequence,
        timestamp: 0,
        error_estimate,
        receive_timestamp,
        probe: *probe,
        sender_ttl: meta.ttl.unwrap_or(255),
        sender_tos: meta.tos,
    }
}

/// Writes a reply as long as its probe if possible (RFC 5357 §4.2.1), with the padding of the
/// probe from its beginning (RFC 6038 §5). Returns its octets.
pub(super) fn write_reply(
    format: &PacketFormat,
    header: &ReplyHeader,
    packet: &[u8],
    reply: &mut [u8],
) -> Option<usize> {
    let base = format.reply_octets();
    let octets = packet.len().max(base);
    let reply = reply.get_mut(..octets)?;
    format.write_reply(header, reply);
    let padding = packet.get(format.probe_octets()..)?;
    let room = octets - base;
    reply[base..].copy_from_slice(padding.get(..room)?);
    Some(octets)
}
