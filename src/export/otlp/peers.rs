//! Peers of measurements, as attributes of OpenTelemetry's semantic conventions.

use std::{collections::HashMap, fmt, sync::Arc};

use opentelemetry_proto::tonic::common::v1::KeyValue;

use super::values::{number, text};
use crate::{proto::Record, session::client::Peer};

/// Function that returns the peer of a session or, if the second name is empty, of a connection;
/// `None` if it is not configured.
pub type FindPeer = Arc<dyn Fn(&str, &str) -> Option<Peer> + Send + Sync>;

/// Maximum number of remembered peers. When it is reached, all are forgotten.
const MAX_REMEMBERED: usize = 200_000;

/// Peers of connections and sessions. The latest peer of each is remembered, so that the attributes of
/// a series do not change while a connection is down or after it was removed.
pub(super) struct Peers {
    find: FindPeer,
    known: HashMap<(String, String), Peer>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl Peers {
    pub(super) fn new(find: FindPeer) -> Self {
        Self { find, known: HashMap::new() }
    }

    /// Returns the attributes of the peer of a record.
    pub(super) fn attributes(&mut self, record: &Record) -> Vec<KeyValue> {
        if record.connection.is_empty() {
            return Vec::new();
        }
        if self.known.len() >= MAX_REMEMBERED {
            self.known.clear();
        }
        let found = (self.find)(&record.connection, &record.session);
        let key = (record.connection.clone(), record.session.clone());
        let Some(mut peer) = found else {
            return self.known.get(&key).map(attributes).unwrap_or_default();
        };
        if let Some(before) = self.known.get(&key).filter(|before| before.address == peer.address) {
            peer.is_ipv6 = peer.is_ipv6.or(before.is_ipv6);
        }
        let attributes = attributes(&peer);
        self.known.insert(key, peer);
        attributes
    }
}

fn attributes(peer: &Peer) -> Vec<KeyValue> {
    let mut attributes = vec![text("server.address", &peer.address)];
    if let Some(port) = peer.port {
        attributes.push(number("server.port", port.into()));
    }
    attributes.push(text("network.transport", if peer.is_tcp { "tcp" } else { "udp" }));
    if let Some(is_ipv6) = peer.is_ipv6 {
        attributes.push(text("network.type", if is_ipv6 { "ipv6" } else { "ipv4" }));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry_proto::tonic::common::v1::any_value::Value;

    use super::*;
    use crate::export::otlp::values::PEER_KEYS;

    fn shown(attributes: &[KeyValue]) -> Vec<(String, String)> {
        let value = |attribute: &KeyValue| {
            let value = attribute.value.as_ref()?.value.as_ref()?;
            if let Value::IntValue(number) = value {
                return Some(number.to_string());
            }
            if let Value::StringValue(text) = value { Some(text.clone()) } else { None }
        };
        attributes.iter().filter_map(|a| Some((a.key.clone(), value(a)?))).collect()
    }

    #[test]
    fn the_attributes_of_a_series_stay_while_its_connection_is_down_and_removed() {
        let peer = |address: &str, is_ipv6| Peer {
            address: address.into(),
            port: Some(862),
            is_tcp: false,
            is_ipv6,
        };
        let now = Arc::new(Mutex::new(Some(peer("far.example", Some(true)))));
        let source = now.clone();
        let mut peers =
            Peers::new(Arc::new(move |_: &str, _: &str| source.lock().unwrap().clone()));
        let record = Record { connection: "c".into(), session: "s".into(), ..Record::default() };
        let expected = [
            ("server.address", "far.example"),
            ("server.port", "862"),
            ("network.transport", "udp"),
            ("network.type", "ipv6"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        assert_eq!(expected.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), PEER_KEYS);
        for state in [Some(peer("far.example", Some(true))), Some(peer("far.example", None)), None]
        {
            *now.lock().unwrap() = state;
            assert_eq!(shown(&peers.attributes(&record)), expected);
        }
        // Another host has another address family.
        *now.lock().unwrap() = Some(peer("other.example", None));
        assert_eq!(shown(&peers.attributes(&record)).len(), 3);
        assert_eq!(peers.attributes(&Record::default()), []);
    }
}
