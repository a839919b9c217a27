//! Checks control connections and their test sessions.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::{
    super::{
        ControlConnection, ControlType, Endpoint, Extensions, Schedule, SendAddresses, TestSession,
        limits,
    },
    Check,
    ends::SourcePorts,
    security::{ClientSecurity, extensions},
};
use crate::proto;

impl Check {
    pub(super) fn client(
        &mut self,
        client: &proto::ClientConfig,
    ) -> BTreeMap<String, Arc<ControlConnection>> {
        let count = client.control_connections.len();
        if count > limits::MAXIMUM_CONNECTIONS {
            self.report(
                "control_connections",
                format!("{count} connections: expected at most {}", limits::MAXIMUM_CONNECTIONS),
            );
            return BTreeMap::new();
        }
        let mut connections = BTreeMap::new();
        let mut parsed_connections = Vec::with_capacity(count);
        for (index, connection) in client.control_connections.iter().enumerate() {
            self.at(format!("control_connections[{index}]"), |check| {
                let parsed = Arc::new(check.connection(connection));
                parsed_connections.push(parsed.clone());
                if connections.insert(parsed.name.clone(), parsed).is_some() {
                    check.duplicate(&connection.name);
                }
            });
        }
        let mut ports = SourcePorts::default();
        let given = client.control_connections.iter().zip(&parsed_connections);
        for (index, (document, parsed)) in given.enumerate() {
            ports.add(self, index, document, parsed);
        }
        connections
    }

    pub(super) fn connection(&mut self, c: &proto::ControlConnection) -> ControlConnection {
        let parsed = self.each_field(c);
        self.families(c, &parsed);
        parsed
    }

    fn each_field(&mut self, c: &proto::ControlConnection) -> ControlConnection {
        self.name(&c.name);
        self.text("description", &c.description);
        let labels = self.labels(&c.labels);
        let control_type = match self.enumeration("control_type", c.control_type) {
            proto::ControlType::Light => ControlType::Light,
            proto::ControlType::Stamp => ControlType::Stamp,
            proto::ControlType::Unspecified | proto::ControlType::Managed => ControlType::Managed,
        };
        let managed = control_type == ControlType::Managed;
        let target = self.control_target(c, managed);
        let test_interval_ns =
            self.duration("test_interval", c.test_interval, &limits::TEST_INTERVAL);
        let given_timeout_ns =
            self.duration("connect_timeout", c.connect_timeout, &limits::CONNECT_TIMEOUT);
        let timeout = |default: std::ops::RangeInclusive<u64>| match c.connect_timeout {
            None => test_interval_ns.clamp(*default.start(), *default.end()),
            Some(_) => given_timeout_ns,
        };
        let retry_backoff_max_ns =
            self.duration("retry_backoff_max", c.retry_backoff_max, &limits::RETRY_BACKOFF_MAX);
        if (1..test_interval_ns).contains(&retry_backoff_max_ns) {
            self.report(
                "retry_backoff_max",
                "below test_interval: expected 0 or at least test_interval",
            );
        }
        let source_address = self.source_address("source_address", &c.source_address);
        let security = self.client_security(c, control_type);
        let sessions = self.sessions(c, control_type, &security);
        let (results, history_size) = self.result_keeping(c);
        let inactive = c.test_sessions.iter().filter(|session| session.inactive);
        ControlConnection {
            name: c.name.clone(),
            description: c.description.clone(),
            inactive_sessions: inactive.map(|session| session.name.clone()).collect(),
            // Without an active session the server would close it again and again.
            inactive: c.inactive || c.test_sessions.iter().all(|session| session.inactive),
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
            connect_timeout_ns: timeout(limits::DEFAULT_CONNECT_TIMEOUT),
            response_timeout_ns: timeout(limits::DEFAULT_RESPONSE_TIMEOUT),
            key_timeout_ns: timeout(limits::DEFAULT_KEY_TIMEOUT),
            authentication: security.mode,
            key_id: security.key_id,
            secret: security.secret,
            maximum_count: self.number(
                "maximum_key_derivation_count",
                c.maximum_key_derivation_count,
                &limits::MAXIMUM_KEY_DERIVATION_COUNT,
            ) as u32,
            extensions: extensions(c.extensions.as_ref(), Extensions::CLIENT),
            sessions: self.with_labels(sessions, &labels),
            labels,
            retry_backoff_max_ns,
            test_iteration_done_events: c.traps.is_some_and(|traps| traps.test_iteration_done),
            moving_average_size: self.number(
                "moving_average_size",
                c.moving_average_size,
                &limits::MOVING_AVERAGE_SIZE,
            ) as usize,
            results,
            history_size,
            retention_age_ns: c.retention_age.map(|age| {
                self.duration("retention_age", Some(age), &limits::CONNECTION_RETENTION_AGE)
            }),
            strict_error_estimate: c.strict_error_estimate,
            send_addresses: self.send_addresses(c, managed),
        }
    }

    fn control_target(
        &mut self,
        c: &proto::ControlConnection,
        is_managed: bool,
    ) -> Option<Endpoint> {
        if is_managed && c.target_address.is_empty() {
            self.report("target_address", "required: the address or name of the TWAMP server");
        }
        if !is_managed && c.destination_port.is_some() {
            self.report(
                "destination_port",
                "is the TCP port of a server, which LIGHT and STAMP have not; give the UDP port \
                 in the session",
            );
        }
        self.endpoint("target_address", &c.target_address)
    }

    fn send_addresses(&mut self, c: &proto::ControlConnection, is_managed: bool) -> SendAddresses {
        let given = self.enumeration("send_addresses", c.send_addresses);
        if !is_managed && given != proto::SendAddresses::Unspecified {
            self.report("send_addresses", "only valid for MANAGED: nothing is requested otherwise");
        }
        match given {
            proto::SendAddresses::Unspecified | proto::SendAddresses::Auto => SendAddresses::Auto,
            proto::SendAddresses::Always => SendAddresses::Always,
            proto::SendAddresses::Never => SendAddresses::Never,
        }
    }

    /// Adds the labels of the connection to those of its sessions, which take precedence.
    fn with_labels(
        &mut self,
        mut sessions: Vec<TestSession>,
        labels: &BTreeMap<String, String>,
    ) -> Vec<TestSession> {
        for session in &mut sessions {
            let own = std::mem::replace(&mut session.labels, labels.clone());
            if !own.is_empty() {
                session.labels.extend(own);
                self.label_octets(&session.labels);
            }
        }
        sessions
    }

    pub(super) fn sessions(
        &mut self,
        c: &proto::ControlConnection,
        control_type: ControlType,
        security: &ClientSecurity,
    ) -> Vec<TestSession> {
        let managed = control_type == ControlType::Managed;
        let count = c.test_sessions.len();
        if count == 0 || count > limits::MAXIMUM_SESSIONS_PER_CONNECTION {
            self.report(
                "test_sessions",
                format!(
                    "{count} sessions: expected 1 to {}",
                    limits::MAXIMUM_SESSIONS_PER_CONNECTION
                ),
            );
        }
        let mut names = HashSet::new();
        let mut sessions = Vec::with_capacity(count);
        for (index, session) in c.test_sessions.iter().enumerate() {
            self.at(format!("test_sessions[{index}]"), |check| {
                let parsed = check.session(session, control_type, security);
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

    pub(super) fn session(
        &mut self,
        s: &proto::TestSession,
        control_type: ControlType,
        security: &ClientSecurity,
    ) -> TestSession {
        self.name(&s.name);
        let stamp = self.stamp_session(s, control_type, security);
        TestSession {
            name: s.name.clone(),
            labels: self.labels(&s.labels),
            target: self.endpoint("target_address", &s.target_address),
            destination_port: self.optional_port("destination_port", s.destination_port),
            source_address: self.source_address("source_address", &s.source_address),
            source_port: self.optional_port("source_port", s.source_port),
            data_size: self.data_size(s, stamp.as_ref(), security.mode),
            timestamps: self.timestamp_format(s.timestamp_format),
            reflected_octets: self.reflected_octets(s, control_type),
            stamp,
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
            burst_size: (self.number("burst_size", s.burst_size, &limits::BURST_SIZE) as u32)
                .max(1),
            schedule: match self.enumeration("schedule", s.schedule) {
                proto::Schedule::Poisson => Schedule::Poisson,
                proto::Schedule::Unspecified | proto::Schedule::Periodic => Schedule::Periodic,
            },
            loss_timeout_ns: self.duration("loss_timeout", s.loss_timeout, &limits::LOSS_TIMEOUT),
            store_probes: self.enumeration::<proto::StoreProbes>("store_probes", s.store_probes)
                != proto::StoreProbes::None,
            thresholds: self.thresholds(s.thresholds.as_deref()),
            test_done_events: s.traps.is_some_and(|traps| traps.test_completion),
            percentiles: self.percentiles(&s.percentiles),
            availability: self.availability(s.availability.unwrap_or_default()),
        }
    }
}
