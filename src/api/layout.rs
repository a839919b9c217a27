//! Memory of requests, counted before they are decoded: an element of two octets becomes a structure
//! of hundreds, so the length of a request tells little.

use prost::encoding::{WireType, decode_key, decode_varint};

/// Memory that any request may take, in octets.
const FREE_OCTETS: usize = 32 << 20;
/// Memory that each octet of a request may take in addition, in octets.
const OCTETS_EACH: usize = 4;
/// Memory of an element of a list of texts: pointer, length and capacity.
const TEXT_OCTETS: usize = 24;
/// Memory of an element of a list of numbers.
const NUMBER_OCTETS: usize = 8;
/// Memory of an entry of a map beside its texts: key and value, and their part of the nodes.
const ENTRY_OCTETS: usize = 100;
/// Levels of messages in messages; the decoder has the same limit.
const MAXIMUM_DEPTH: usize = 100;

/// Message of the API, request or answer.
pub(super) trait ApiMessage {
    /// Name without its package.
    const NAME: &'static str;
    /// Layout of a request; `None` for answers, which this agent makes.
    const LAYOUT: Option<&'static Layout>;
}

/// Memory of a message.
#[derive(Debug)]
pub(super) struct Layout {
    octets: usize,
    /// Number and name of the fields that take memory beyond that of the message.
    parts: &'static [(u32, &'static str, Part)],
}

#[derive(Debug)]
enum Part {
    /// A message, at most one of it.
    Message(&'static Layout),
    /// Element of a list of messages.
    Element(&'static Layout),
    Text,
    ElementText,
    ElementNumber,
    /// Entry of a map from text to text.
    Entry,
}

/// A request that would take too much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge {
    /// Octets of the request.
    pub(super) octets: usize,
    /// Memory that it may take, in octets.
    pub(super) limit: usize,
    /// Field whose element was the first beyond the limit.
    pub(super) field: &'static str,
    /// Elements of all lists up to that one.
    pub(super) elements: usize,
}

/// Checks a request. One that cannot be decoded passes up to the fault, which the decoder reports.
pub(super) fn check(layout: &Layout, request: &[u8]) -> Result<(), TooLarge> {
    let limit = FREE_OCTETS.saturating_add(request.len().saturating_mul(OCTETS_EACH));
    let mut count = Count { left: limit, elements: 0 };
    count.message(layout, request, MAXIMUM_DEPTH).map_err(|field| TooLarge {
        octets: request.len(),
        limit,
        field,
        elements: count.elements,
    })
}

struct Count {
    left: usize,
    elements: usize,
}

impl Count {
    /// Counts a message; the error is the field beyond the limit.
    fn message(
        &mut self,
        layout: &Layout,
        mut octets: &[u8],
        depth: usize,
    ) -> Result<(), &'static str> {
        while !octets.is_empty() && depth > 0 {
            let Some((number, content)) = next_field(&mut octets) else { return Ok(()) };
            let part = layout.parts.iter().find(|(known, ..)| *known == number);
            let Some((_, name, part)) = part else { continue };
            let text = content.unwrap_or_default();
            let (is_element, taken) = match part {
                Part::Message(_) => (false, 0),
                Part::Element(inner) => (true, inner.octets),
                Part::Text => (false, text.len()),
                Part::ElementText => (true, TEXT_OCTETS + text.len()),
                // Packed numbers are one field.
                Part::ElementNumber => (true, NUMBER_OCTETS * text.len().max(1)),
                Part::Entry => (true, ENTRY_OCTETS + text.len()),
            };
            self.elements += usize::from(is_element);
            self.left = self.left.checked_sub(taken).ok_or(*name)?;
            if let (Part::Message(inner) | Part::Element(inner), Some(content)) = (part, content) {
                self.message(inner, content, depth - 1)?;
            }
        }
        Ok(())
    }
}

/// Removes a field; returns its number, and its content if it has a length. `None` at a fault, and at
/// a group, which the messages of the API have not.
fn next_field<'a>(octets: &mut &'a [u8]) -> Option<(u32, Option<&'a [u8]>)> {
    let (number, wire_type) = decode_key(octets).ok()?;
    let length = match wire_type {
        WireType::Varint => {
            decode_varint(octets).ok()?;
            return Some((number, None));
        }
        WireType::ThirtyTwoBit => 4,
        WireType::SixtyFourBit => 8,
        WireType::LengthDelimited => usize::try_from(decode_varint(octets).ok()?).ok()?,
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    let (content, rest) = octets.split_at_checked(length)?;
    *octets = rest;
    Some((number, (wire_type == WireType::LengthDelimited).then_some(content)))
}

include!(concat!(env!("OUT_DIR"), "/layouts.rs"));

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{
        AgentConfig, ApplyConfigRequest, ClientConfig, ControlConnection, StopConnectionsRequest,
        TestSession,
    };

    fn checked<M: Message + ApiMessage>(request: &M) -> Result<(), TooLarge> {
        check(M::LAYOUT.unwrap(), &request.encode_to_vec())
    }

    fn apply(control_connections: Vec<ControlConnection>) -> ApplyConfigRequest {
        let client = ClientConfig { control_connections };
        let config = AgentConfig { client: Some(client), ..AgentConfig::default() };
        ApplyConfigRequest { config: Some(config), ..ApplyConfigRequest::default() }
    }

    #[test]
    fn many_empty_elements_are_refused_by_the_memory_that_they_would_take() {
        let refused = checked(&apply(vec![ControlConnection::default(); 6 << 20])).unwrap_err();
        assert_eq!(refused.field, "control_connections");
        assert!(refused.elements < 1 << 20, "{refused:?}");
        let connection = ControlConnection {
            test_sessions: vec![TestSession::default(); 2 << 20],
            ..ControlConnection::default()
        };
        assert_eq!(checked(&apply(vec![connection])).unwrap_err().field, "test_sessions");
        let names = vec![String::new(); 8 << 20];
        let stop = StopConnectionsRequest { names, ..StopConnectionsRequest::default() };
        assert_eq!(checked(&stop).unwrap_err().field, "names");
    }

    #[test]
    fn the_largest_configurations_pass() {
        let second = || Some(prost_types::Duration { seconds: 1, nanos: 0 });
        let session = TestSession {
            name: "session".into(),
            probe_count: Some(10),
            probe_interval: second(),
            loss_timeout: second(),
            ..TestSession::default()
        };
        let connection = |index: usize| ControlConnection {
            name: format!("connection-{index}"),
            target_address: "192.0.2.1".into(),
            test_sessions: vec![session.clone(); 3],
            labels: [("site".to_owned(), "north".to_owned())].into(),
            ..ControlConnection::default()
        };
        checked(&apply((0..20_000).map(connection).collect())).unwrap();
    }

    #[test]
    fn octets_that_are_no_message_are_left_to_the_decoder() {
        let layout = ApplyConfigRequest::LAYOUT.unwrap();
        for octets in [&[0xff; 40][..], &[0x0a, 0x7f], &[0x0b, 0x0c], &[0x0a; 9], &[]] {
            check(layout, octets).unwrap();
        }
        // A length of 2^64-1, and messages in messages without end.
        check(layout, &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).unwrap();
    }
}
