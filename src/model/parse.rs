//! From the document of the API to the checked configuration. All violations are found in one
//! pass, each with the path of its field as the `.proto` spells it.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    AgentConfig, ClientList, ControlConnection, ControlType, Dscp, Endpoint, Keepalive,
    LightServer, ListenAddress, Schedule, ServerConfig, StorageConfig, TestPort, TestSession,
    limits::{self, Limit},
};
use crate::{proto, time::NANOS_PER_SECOND};

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, such as `client.control_connections[2].test_sessions[0].ttl`.
    pub field: String,
    /// What was wrong, and what would be right.
    pub description: String,
}

/// Checks a document and fills in its defaults.
pub fn parse(document: &proto::AgentConfig) -> Result<AgentConfig, Vec<Violation>> {
    let mut check = Check::default();
    let connections = document
        .client
        .as_ref()
        .map_or_else(BTreeMap::new, |client| check.at("client", |check| check.client(client)));
    let server = document
        .server
        .as_ref()
        .and_then(|server| check.at("server", |check| check.server(server)))
        .map(Arc::new);
    let storage = document
        .storage
        .as_ref()
        .map_or_else(StorageConfig::default, |s| check.at("storage", |check| check.storage(s)));
    if check.violations.is_empty() {
        Ok(AgentConfig { connections, server, storage })
    } else {
        Err(check.violations)
    }
}

/// What is allowed but probably not meant.
pub fn warnings(config: &AgentConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    for connection in config.connections.values() {
        for session in &connection.sessions {
            if session.data_size < 41 {
                warnings.push(format!(
                    "client/{}: session {} sends {} octets and gets 41 back: loss and delay of \
                     unequal packets; data_size of 41 or more makes them equal",
                    connection.name, session.name, session.data_size
                ));
            }
        }
        if connection.sessions.is_empty() && !connection.inactive {
            warnings.push(format!("client/{}: all its sessions are inactive", connection.name));
        }
    }
    warnings
}

/// Checks a name of the API.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    if limits::NAME_OCTETS.contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "{:?} is not a name: 1 to 64 characters from A-Z a-z 0-9 . _ : -",
        name.chars().take(80).collect::<String>()
    ))
}

/// Collects violations; `path` is where the check is.
#[derive(Default)]
struct Check {
    path: Vec<String>,
    violations: Vec<Violation>,
}

impl Check {
    fn at<T>(&mut self, part: impl Into<String>, check: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(part.into());
        let value = check(self);
        self.path.pop();
        value
    }

    fn report(&mut self, field: &str, description: impl Into<String>) {
        let mut path = self.path.clone();
        if !field.is_empty() {
            path.push(field.to_owned());
        }
        self.violations.push(Violation { field: path.join("."), description: description.into() });
    }

    fn client(&mut self, client: &proto::ClientConfig) -> BTreeMap<String, Arc<ControlConnection>> {
        let count = client.control_connections.len();
        if count > limits::MAXIMUM_CONNECTIONS {
            self.report(
                "control_connections",
                format!("{count} connections; at most {}", limits::MAXIMUM_CONNECTIONS),
            );
            return BTreeMap::new();
        }
        let mut connections = BTreeMap::new();
        for (index, connection) in client.control_connections.iter().enumerate() {
            self.at(format!("control_connections[{index}]"), |check| {
                let parsed = check.connection(connection);
                if connections.insert(parsed.name.clone(), Arc::new(parsed)).is_some() {
                    check.duplicate(&connection.name);
                }
            });
        }
        connections
    }

    fn connection(&mut self, c: &proto::ControlConnection) -> ControlConnection {
        self.name(&c.name);
        self.text("description", &c.description);
        let labels = self.labels(&c.labels);
        let control_type = match self.enumeration("control_type", c.control_type) {
            proto::ControlType::Light => ControlType::Light,
            _ => ControlType::Managed,
        };
        let managed = control_type == ControlType::Managed;
        let target = self.endpoint("target_address", &c.target_address);
        if managed && c.target_address.is_empty() {
            self.report("target_address", "required: the address or name of the TWAMP server");
        }
        if !managed && c.destination_port.is_some() {
            self.report(
                "destination_port",
                "is the TCP port of a server, which a LIGHT connection has not; give the UDP port \
                 in the session",
            );
        }
        let test_interval_ns =
            self.duration("test_interval", c.test_interval, &limits::TEST_INTERVAL);
        let default_timeout = test_interval_ns.clamp(
            *limits::DEFAULT_CONNECT_TIMEOUT.start(),
            *limits::DEFAULT_CONNECT_TIMEOUT.end(),
        );
        let connect_timeout_ns = match c.connect_timeout {
            None => default_timeout,
            given => self.duration("connect_timeout", given, &limits::CONNECT_TIMEOUT),
        };
        let source_address = self.address("source_address", &c.source_address);
        let sessions = self.sessions(c, managed);
        ControlConnection {
            name: c.name.clone(),
            inactive: c.inactive,
            control_type,
            target,
            destination_port: self.number("destination_port", c.destination_port, &limits::PORT)
                as u16,
            source_address,
            interface: self.interface(&c.interface),
            control_dscp: self.dscp("control_dscp", &c.control_dscp),
            test_count: self.number("test_count", Some(c.test_count), &limits::TEST_COUNT),
            test_interval_ns,
            manual_start: self.enumeration::<proto::TestStart>("test_start", c.test_start)
                == proto::TestStart::Manual,
            keepalive: self.keepalive(c.tcp_keepidle, c.tcp_keepintvl, c.tcp_keepcnt),
            connect_timeout_ns,
            sessions: sessions
                .into_iter()
                .map(|mut session| {
                    let own = std::mem::replace(&mut session.labels, labels.clone());
                    session.labels.extend(own);
                    self.label_octets(&session.labels);
                    session
                })
                .collect(),
            labels,
        }
    }

    fn sessions(&mut self, c: &proto::ControlConnection, managed: bool) -> Vec<TestSession> {
        let count = c.test_sessions.len();
        if count == 0 || count > limits::MAXIMUM_SESSIONS_PER_CONNECTION {
            self.report(
                "test_sessions",
                format!("{count} sessions; 1 to {}", limits::MAXIMUM_SESSIONS_PER_CONNECTION),
            );
        }
        let mut names = HashSet::new();
        let mut sessions = Vec::new();
        for (index, session) in c.test_sessions.iter().enumerate() {
            self.at(format!("test_sessions[{index}]"), |check| {
                let parsed = check.session(session);
                if !names.insert(&session.name) {
                    check.duplicate(&session.name);
                }
                if !managed && session.target_address.is_empty() && c.target_address.is_empty() {
                    check.report(
                        "target_address",
                        "required here or in the connection: the address or name of the reflector",
                    );
                }
                if !session.inactive {
                    sessions.push(parsed);
                }
            });
        }
        sessions
    }

    fn session(&mut self, s: &proto::TestSession) -> TestSession {
        self.name(&s.name);
        TestSession {
            name: s.name.clone(),
            labels: self.labels(&s.labels),
            target: self.endpoint("target_address", &s.target_address),
            destination_port: self.optional_port("destination_port", s.destination_port),
            source_address: self.address("source_address", &s.source_address),
            source_port: self.optional_port("source_port", s.source_port),
            data_size: self.number("data_size", s.data_size, &limits::DATA_SIZE) as u16,
            zero_padding: s.data_fill_with_zeros,
            dscp: self.dscp("dscp_code_points", &s.dscp_code_points),
            ttl: self.number("ttl", s.ttl, &limits::TTL) as u8,
            probe_count: (self.number("probe_count", s.probe_count, &limits::PROBE_COUNT) as u32)
                .max(1),
            probe_interval_ns: self.duration(
                "probe_interval",
                s.probe_interval,
                &limits::PROBE_INTERVAL,
            ),
            schedule: match self.enumeration("schedule", s.schedule) {
                proto::Schedule::Poisson => Schedule::Poisson,
                _ => Schedule::Periodic,
            },
            loss_timeout_ns: self.duration("loss_timeout", s.loss_timeout, &limits::LOSS_TIMEOUT),
            store_probes: self.enumeration::<proto::StoreProbes>("store_probes", s.store_probes)
                != proto::StoreProbes::None,
        }
    }

    fn server(&mut self, s: &proto::ServerConfig) -> Option<ServerConfig> {
        let light = s.light.as_ref().map(|light| self.at("light", |check| check.light(light)));
        let all = [proto::ListenAddress::default()];
        let listen = match (&s.listen[..], &light) {
            ([], Some(_)) => Vec::new(),
            ([], None) => self.listen(&all),
            (given, _) => self.listen(given),
        };
        let client_lists = self.client_lists(&s.client_list);
        if !listen.is_empty() && s.client_list.is_empty() {
            self.report(
                "client_list",
                "required: a server answers only whom it lists, for example \
                 {name: all, prefixes: [\"0.0.0.0/0\", \"::/0\"]}",
            );
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
                &limits::SERVER_CONNECTIONS,
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
            refwait_ns: self.duration("refwait", s.refwait, &limits::REFWAIT),
        };
        (!s.inactive).then_some(config)
    }

    fn light(&mut self, light: &proto::LightServer) -> LightServer {
        let all = [proto::ListenAddress::default()];
        LightServer {
            listen: self.listen(if light.listen.is_empty() { &all } else { &light.listen }),
            stateful: light.stateful,
            prefixes: self.prefixes(&light.prefixes),
        }
    }

    fn listen(&mut self, addresses: &[proto::ListenAddress]) -> Vec<ListenAddress> {
        if addresses.len() > limits::MAXIMUM_LISTS {
            self.report(
                "listen",
                format!("{} addresses; at most {}", addresses.len(), limits::MAXIMUM_LISTS),
            );
        }
        let mut listen = Vec::new();
        for (index, entry) in addresses.iter().enumerate() {
            self.at(format!("listen[{index}]"), |check| {
                let parsed = ListenAddress {
                    address: check
                        .address("address", &entry.address)
                        .unwrap_or_else(|| IpAddr::from([0u16; 8])),
                    port: check.number("port", entry.port, &limits::PORT) as u16,
                };
                if listen.contains(&parsed) {
                    check.report("", "stands twice in this list");
                }
                listen.push(parsed);
            });
        }
        listen
    }

    fn client_lists(&mut self, lists: &[proto::ClientList]) -> Vec<ClientList> {
        if lists.len() > limits::MAXIMUM_LISTS {
            self.report(
                "client_list",
                format!("{} lists; at most {}", lists.len(), limits::MAXIMUM_LISTS),
            );
        }
        let mut names = HashSet::new();
        let parse = |(index, list): (usize, &proto::ClientList)| {
            self.at(format!("client_list[{index}]"), |check| {
                check.name(&list.name);
                if !names.insert(list.name.clone()) {
                    check.duplicate(&list.name);
                }
                ClientList { name: list.name.clone(), prefixes: check.prefixes(&list.prefixes) }
            })
        };
        lists.iter().enumerate().map(parse).collect()
    }

    fn prefixes(&mut self, prefixes: &[String]) -> Vec<IpNet> {
        if prefixes.is_empty() || prefixes.len() > limits::MAXIMUM_PREFIXES {
            self.report(
                "prefixes",
                format!("{} prefixes; 1 to {}", prefixes.len(), limits::MAXIMUM_PREFIXES),
            );
        }
        let mut parsed = Vec::new();
        for (index, text) in prefixes.iter().enumerate() {
            let prefix = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            match prefix {
                Ok(prefix) => parsed.push(prefix),
                Err(_) => self.report(
                    &format!("prefixes[{index}]"),
                    format!("{text:?} is not a prefix such as 192.0.2.0/24 or 2001:db8::/32"),
                ),
            }
        }
        parsed
    }

    fn test_port(&mut self, port: &proto::TestPort) -> TestPort {
        let shared_port = self.optional_port("shared_port", port.shared_port);
        let minimum = self.optional_port("range_min", port.range_min);
        let maximum = self.optional_port("range_max", port.range_max);
        let mode = self.enumeration::<proto::TestPortMode>("mode", port.mode);
        if mode == proto::TestPortMode::Range {
            if port.shared_port.is_some() {
                self.report("shared_port", "has no meaning with mode RANGE");
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
            self.report("", "range_min and range_max have no meaning but with mode RANGE");
        }
        if mode == proto::TestPortMode::Shared {
            TestPort::Shared { shared_port }
        } else {
            TestPort::Auto { shared_port }
        }
    }

    fn storage(&mut self, storage: &proto::StorageConfig) -> StorageConfig {
        StorageConfig {
            retention_age_ns: self.duration(
                "retention_age",
                storage.retention_age,
                &limits::RETENTION_AGE,
            ),
            retention_octets: self.number(
                "retention_octets",
                storage.retention_octets,
                &limits::RETENTION_OCTETS,
            ),
        }
    }

    fn keepalive(
        &mut self,
        idle: Option<prost_types::Duration>,
        interval: Option<prost_types::Duration>,
        count: Option<u32>,
    ) -> Keepalive {
        for (field, given) in [("tcp_keepidle", idle), ("tcp_keepintvl", interval)] {
            if given.is_some_and(|duration| duration.nanos != 0) {
                self.report(field, "must be whole seconds: the kernel counts keepalive in seconds");
            }
        }
        Keepalive {
            idle_ns: self.duration("tcp_keepidle", idle, &limits::TCP_KEEPIDLE),
            interval_ns: self.duration("tcp_keepintvl", interval, &limits::TCP_KEEPINTVL),
            count: self.number("tcp_keepcnt", count, &limits::TCP_KEEPCNT) as u32,
        }
    }

    fn name(&mut self, name: &str) {
        if let Err(description) = check_name(name) {
            self.report("name", description);
        }
    }

    fn duplicate(&mut self, name: &str) {
        self.report("name", format!("{name:?} is used twice; names must be unique here"));
    }

    fn text(&mut self, field: &str, text: &str) {
        if text.len() > limits::MAXIMUM_TEXT_OCTETS {
            self.report(
                field,
                format!("{} octets; at most {}", text.len(), limits::MAXIMUM_TEXT_OCTETS),
            );
        }
    }

    fn labels(&mut self, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        if labels.len() > limits::MAXIMUM_LABELS {
            self.report(
                "labels",
                format!("{} labels; at most {}", labels.len(), limits::MAXIMUM_LABELS),
            );
        }
        if labels.contains_key("") {
            self.report("labels", "a label has an empty key");
        }
        self.label_octets(labels);
        labels.clone()
    }

    /// Every record carries its labels, and a record has room for so many.
    fn label_octets(&mut self, labels: &BTreeMap<String, String>) {
        let octets: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if octets > limits::MAXIMUM_LABEL_OCTETS {
            self.report(
                "labels",
                format!(
                    "{octets} octets of keys and values, those of the connection and a session \
                     together; at most {}",
                    limits::MAXIMUM_LABEL_OCTETS
                ),
            );
        }
    }

    /// The value of an enumeration; unknown numbers are a violation.
    fn enumeration<E: TryFrom<i32> + Default>(&mut self, field: &str, value: i32) -> E {
        E::try_from(value).unwrap_or_else(|_| {
            self.report(field, format!("{value} is not a value of this enumeration"));
            E::default()
        })
    }

    fn number<N: Into<u64>>(&mut self, field: &str, value: Option<N>, limit: &Limit) -> u64 {
        let Some(value) = value.map(Into::into) else { return limit.default };
        if limit.range.contains(&value) {
            return value;
        }
        self.report(field, format!("{value} is out of range; allowed: {}", limit.words));
        limit.default
    }

    fn optional_port(&mut self, field: &str, port: Option<u32>) -> Option<u16> {
        port.map(|port| self.number(field, Some(port), &limits::PORT) as u16)
    }

    fn duration(
        &mut self,
        field: &str,
        value: Option<prost_types::Duration>,
        limit: &Limit,
    ) -> u64 {
        let Some(value) = value else { return limit.default };
        let seconds = u64::try_from(value.seconds).ok();
        let nanos = u64::try_from(value.nanos).ok().filter(|nanos| *nanos < NANOS_PER_SECOND);
        let total = seconds
            .and_then(|seconds| seconds.checked_mul(NANOS_PER_SECOND))
            .zip(nanos)
            .and_then(|(seconds, nanos)| seconds.checked_add(nanos));
        match total {
            Some(total) if limit.range.contains(&total) => total,
            _ => {
                self.report(
                    field,
                    format!(
                        "{}.{:09} s is out of range; allowed: {}",
                        value.seconds,
                        value.nanos.unsigned_abs(),
                        limit.words
                    ),
                );
                limit.default
            }
        }
    }

    fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        if text.is_empty() {
            return None;
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Some(address.to_canonical()),
            Err(_) => {
                self.report(field, format!("{text:?} is not an IPv4 or IPv6 address"));
                None
            }
        }
    }

    fn endpoint(&mut self, field: &str, text: &str) -> Option<Endpoint> {
        if text.is_empty() {
            return None;
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            if address.is_unspecified() || address.is_multicast() {
                self.report(field, format!("{text} is not the address of a host"));
            }
            return Some(Endpoint::Address(address.to_canonical()));
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        let looks_numeric = text.chars().all(|c| c.is_ascii_digit() || c == '.');
        let name = text.strip_suffix('.').unwrap_or(text);
        if text.len() > limits::MAXIMUM_HOST_OCTETS || looks_numeric || !name.split('.').all(label)
        {
            let shown: String = text.chars().take(80).collect();
            self.report(field, format!("{shown:?} is neither an IP address nor a DNS name"));
        }
        Some(Endpoint::Name(text.to_owned()))
    }

    fn interface(&mut self, name: &str) -> Option<String> {
        if name.is_empty() {
            return None;
        }
        let bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        if name.len() > limits::MAXIMUM_INTERFACE_OCTETS || name.contains(bad) {
            self.report(
                "interface",
                format!("{name:?} is not an interface name of 1 to 15 octets"),
            );
        }
        Some(name.to_owned())
    }

    fn dscp(&mut self, field: &str, text: &str) -> Dscp {
        text.parse().unwrap_or_else(|()| {
            self.report(
                field,
                format!(
                    "{text:?} is not a DSCP: an alias such as ef, af11 or cs6, six bits such as \
                     101110, or a number from 0 to 63"
                ),
            );
            Dscp::default()
        })
    }
}
