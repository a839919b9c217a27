//! Checks the configuration of the server role.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;

use super::{
    super::{
        AuthenticationMode, ClientList, Extensions, LightReflector, ListenAddress, ServerConfig,
        StampReflector, TestPort, UdpListen, limits,
    },
    Check,
    security::extensions,
};
use crate::proto;

const CLIENT_LIST_REQUIRED: &str = "required: a server answers only whom it lists, for example \
                                    {name: all, prefixes: [\"0.0.0.0/0\", \"::/0\"]}";

impl Check {
    pub(super) fn server(&mut self, s: &proto::ServerConfig) -> Option<ServerConfig> {
        let light = s.light.as_ref().map(|light| self.at("light", |check| check.light(light)));
        let stamp = s.stamp.as_ref().map(|stamp| self.at("stamp", |c| c.stamp_server(stamp)));
        self.same_addresses(light.as_ref(), stamp.as_ref());
        let listen = match &s.listen[..] {
            [] if light.is_some() || stamp.is_some() => Vec::new(),
            [] => self.listen(&[proto::ListenAddress::default()]),
            given => self.listen(given),
        };
        let authentication_modes = self.authentication_modes(&s.authentication_modes);
        let keys = self.key_chains(&s.key_chains);
        let is_protected = |mode: &AuthenticationMode| *mode != AuthenticationMode::None;
        if keys.is_empty() && authentication_modes.iter().any(is_protected) {
            self.report("key_chains", "required: a mode other than NONE needs keys of clients");
        }
        let key_derivation_count = self.key_derivation_count(s.key_derivation_count);
        let client_lists = self.client_lists(&s.client_list);
        if !listen.is_empty() && s.client_list.is_empty() {
            self.report("client_list", CLIENT_LIST_REQUIRED);
        }
        let config = ServerConfig {
            listen,
            client_lists,
            inactivity_timeout_ns: self.duration(
                "server_inactivity_timeout",
                s.server_inactivity_timeout,
                &limits::SERVER_INACTIVITY_TIMEOUT,
            ),
            max_connection_duration_ns: self.duration(
                "max_connection_duration",
                s.max_connection_duration,
                &limits::MAX_CONNECTION_DURATION,
            ),
            maximum_connections: self.number(
                "maximum_connections",
                s.maximum_connections,
                &limits::SERVER_CONNECTIONS,
            ) as usize,
            maximum_connections_per_client: self.number(
                "maximum_connections_per_client",
                s.maximum_connections_per_client,
                &limits::SERVER_CONNECTIONS_PER_CLIENT,
            ) as usize,
            maximum_sessions: self.number(
                "maximum_sessions",
                s.maximum_sessions,
                &limits::SERVER_SESSIONS,
            ) as usize,
            maximum_sessions_per_connection: self.number(
                "maximum_sessions_per_connection",
                s.maximum_sessions_per_connection,
                &limits::SERVER_SESSIONS_PER_CONNECTION,
            ) as usize,
            keepalive: self.keepalive(s.tcp_keepidle, s.tcp_keepintvl, s.tcp_keepcnt),
            test_port: s.test_port.as_ref().map_or(TestPort::Auto { shared_port: None }, |port| {
                self.at("test_port", |check| check.test_port(port))
            }),
            light,
            stamp,
            authentication_modes,
            keys,
            key_derivation_count,
            extensions: extensions(s.extensions.as_ref(), Extensions::SERVER),
            timestamps: self.timestamp_format(s.timestamp_format),
            refwait_ns: self.duration("refwait", s.refwait, &limits::REFWAIT),
            maximum_packets_per_second_per_sender: self.rate(
                "maximum_packets_per_second_per_sender",
                s.maximum_packets_per_second_per_sender,
            ),
            strict_error_estimate: s.strict_error_estimate,
            refuse_silently: s.refuse_silently,
        };
        self.overlaps(&config);
        (!s.inactive).then_some(config)
    }

    /// Refuses an address of both reflectors without sessions.
    fn same_addresses(&mut self, light: Option<&LightReflector>, stamp: Option<&StampReflector>) {
        if let (Some(light), Some(stamp)) = (light, stamp)
            && light.listen.iter().any(|address| stamp.listen.contains(address))
        {
            self.report(
                "stamp.listen",
                "an address is that of `light`, too: it answers one of them",
            );
        }
    }

    fn key_derivation_count(&mut self, given: Option<u32>) -> u32 {
        let count = self.number("key_derivation_count", given, &limits::KEY_DERIVATION_COUNT);
        if !count.is_power_of_two() {
            self.report(
                "key_derivation_count",
                format!("{count} is not a power of two (RFC 4656 section 3.1)"),
            );
        }
        count as u32
    }

    /// Refuses sockets that cannot be open at the same time.
    fn overlaps(&mut self, config: &ServerConfig) {
        let advice = "give one of them another port, or name the addresses of both one by one";
        let tcp: Vec<_> = config.listen.iter().map(ListenAddress::sockets_by_family).collect();
        for (index, sockets) in tcp.iter().enumerate() {
            let before = tcp[..index].iter().flatten();
            let mut pairs = before.flat_map(|one| sockets.iter().map(move |other| (one, other)));
            let is_in_the_way =
                |one: &UdpListen, other: &UdpListen| one == other || one.overlaps(other);
            if let Some((one, other)) = pairs.find(|(one, other)| is_in_the_way(one, other)) {
                let why = format!("TCP {other} conflicts with TCP {one}: {advice}");
                self.report(&format!("listen[{index}]"), why);
            }
        }
        let udp = config.reflector_sockets();
        for (index, one) in udp.iter().enumerate() {
            for other in udp[index + 1..].iter().filter(|other| one.overlaps(other)) {
                let fields = [config.field_of(one), config.field_of(other)];
                let mut open = ["light.listen", "stamp.listen"].into_iter();
                let field = open.find(|open| fields.contains(open)).unwrap_or("test_port");
                self.report(field, format!("UDP {other} conflicts with UDP {one}: {advice}"));
            }
        }
    }

    pub(super) fn light(&mut self, light: &proto::LightReflector) -> LightReflector {
        let all = [proto::ListenAddress::default()];
        LightReflector {
            listen: self.listen(if light.listen.is_empty() { &all } else { &light.listen }),
            stateful: light.stateful,
            prefixes: self.prefixes(&light.prefixes),
            maximum_packets_per_second: self
                .rate("maximum_packets_per_second", light.maximum_packets_per_second),
        }
    }

    fn rate(&mut self, field: &str, given: Option<u32>) -> Option<u32> {
        let limit = self.number(field, given, &limits::PACKETS_PER_SECOND) as u32;
        (limit > 0).then_some(limit)
    }

    pub(super) fn listen(&mut self, addresses: &[proto::ListenAddress]) -> Vec<ListenAddress> {
        if addresses.len() > limits::MAXIMUM_LISTS {
            self.report(
                "listen",
                format!(
                    "{} addresses: expected at most {}",
                    addresses.len(),
                    limits::MAXIMUM_LISTS
                ),
            );
        }
        let mut listen = Vec::new();
        for (index, entry) in addresses.iter().enumerate() {
            self.at(format!("listen[{index}]"), |check| {
                let interface = check.interface(&entry.interface);
                let address = check.listen_address("address", &entry.address, interface.is_some());
                let parsed = ListenAddress {
                    address: address.unwrap_or_else(|| IpAddr::from([0u16; 8])),
                    port: check.number("port", entry.port, &limits::PORT) as u16,
                    interface,
                };
                if listen.contains(&parsed) {
                    check.report("", "appears twice in this list");
                }
                listen.push(parsed);
            });
        }
        listen
    }

    pub(super) fn client_lists(&mut self, lists: &[proto::ClientList]) -> Vec<ClientList> {
        if lists.len() > limits::MAXIMUM_LISTS {
            self.report(
                "client_list",
                format!("{} lists: expected at most {}", lists.len(), limits::MAXIMUM_LISTS),
            );
        }
        let mut names = HashSet::new();
        let parse = |(index, list): (usize, &proto::ClientList)| {
            self.at(format!("client_list[{index}]"), |check| {
                check.entry_name(&list.name);
                if !names.insert(list.name.clone()) {
                    check.duplicate(&list.name);
                }
                ClientList { name: list.name.clone(), prefixes: check.prefixes(&list.prefixes) }
            })
        };
        lists.iter().enumerate().map(parse).collect()
    }

    pub(super) fn prefixes(&mut self, prefixes: &[String]) -> Vec<IpNet> {
        if prefixes.is_empty() || prefixes.len() > limits::MAXIMUM_PREFIXES {
            self.report(
                "prefixes",
                format!("{} prefixes: expected 1 to {}", prefixes.len(), limits::MAXIMUM_PREFIXES),
            );
        }
        let mut parsed = Vec::new();
        for (index, text) in prefixes.iter().enumerate() {
            match prefix(text) {
                Ok(prefix) => parsed.push(prefix),
                Err(description) => self.report(&format!("prefixes[{index}]"), description),
            }
        }
        parsed
    }

    pub(super) fn test_port(&mut self, port: &proto::TestPort) -> TestPort {
        let shared_port = self.optional_port("shared_port", port.shared_port);
        let minimum = self.optional_port("range_min", port.range_min);
        let maximum = self.optional_port("range_max", port.range_max);
        let mode = self.enumeration::<proto::TestPortMode>("mode", port.mode);
        if mode == proto::TestPortMode::Range {
            if port.shared_port.is_some() {
                self.report("shared_port", "not valid with mode RANGE");
            }
            return match (minimum, maximum) {
                (Some(minimum), Some(maximum)) if minimum <= maximum => {
                    TestPort::Range { minimum, maximum }
                }
                _ => {
                    self.report("", "mode RANGE needs range_min and range_max, range_min first");
                    TestPort::Auto { shared_port: None }
                }
            };
        }
        if port.range_min.is_some() || port.range_max.is_some() {
            self.report("", "range_min and range_max are only valid with mode RANGE");
        }
        if mode == proto::TestPortMode::Shared {
            TestPort::Shared { shared_port }
        } else {
            TestPort::Auto { shared_port }
        }
    }
}

/// Parses a prefix; an address alone is a prefix of full length.
pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    let prefix = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    prefix.map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        format!("{shown:?} is not a prefix: expected one such as 192.0.2.0/24 or 2001:db8::/32")
    })
}
