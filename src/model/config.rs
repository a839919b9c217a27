//! The checked configuration of the agent and of its client role.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    AuthenticationMode, Dscp, ExportConfig, Extensions, Keepalive, Secret, ServerConfig,
    StampSession, Thresholds,
};
use crate::time::{NANOS_PER_SECOND, TimestampFormat};

/// Whole configuration of an agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentConfig {
    /// Control connections by their names.
    pub connections: BTreeMap<String, Arc<ControlConnection>>,
    /// Server role; `None` if it is not configured or inactive.
    pub server: Option<Arc<ServerConfig>>,
    /// Retention of stored results.
    pub storage: StorageConfig,
    /// Exporters, to which results are pushed.
    pub export: Arc<ExportConfig>,
}

/// Origin of test sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlType {
    /// Sessions are negotiated over TWAMP-Control.
    Managed,
    /// TWAMP Light: configured on both ends.
    Light,
    /// STAMP: configured on both ends.
    Stamp,
}

/// Host, by address or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An IP address of the server.
    Address(IpAddr),
    /// A DNS name that is resolved at each attempt.
    Name(String),
}

/// A control connection and its test sessions.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the document")]
pub struct ControlConnection {
    /// Name, unique among the connections.
    pub name: String,
    /// Free text for operators.
    pub description: String,
    /// Labels of every record of the connection.
    pub labels: BTreeMap<String, String>,
    /// True if the connection is configured but does not run.
    pub inactive: bool,
    /// Origin of its test sessions.
    pub control_type: ControlType,
    /// The server; `Some` for managed connections.
    pub target: Option<Endpoint>,
    /// TCP port of the server.
    pub destination_port: u16,
    /// Local address; `None` leaves the choice to routing.
    pub source_address: Option<IpAddr>,
    /// Network interface to bind to.
    pub interface: Option<String>,
    /// DSCP of the control connection.
    pub control_dscp: Dscp,
    /// Tests before the connection is completed; 0 is without end.
    pub test_count: u64,
    /// Pause between tests and between attempts, in nanoseconds.
    pub test_interval_ns: u64,
    /// True if tests start only by request.
    pub manual_start: bool,
    /// TCP keepalive of the control connection.
    pub keepalive: Keepalive,
    /// Time limit of the TCP connect, in nanoseconds.
    pub connect_timeout_ns: u64,
    /// Time limit of each answer of the server, in nanoseconds.
    pub response_timeout_ns: u64,
    /// Time limit of the answer for which the server derives a key, in nanoseconds.
    pub key_timeout_ns: u64,
    /// Protection of the control connection and of test packets.
    pub authentication: AuthenticationMode,
    /// Name of the key; empty without one.
    pub key_id: String,
    /// Key of the authenticated and encrypted modes.
    pub secret: Option<Secret>,
    /// Largest number of rounds of key derivation that a server may ask for.
    pub maximum_count: u32,
    /// Extensions to use if the server offers them.
    pub extensions: Extensions,
    /// Active sessions, in the order of the document.
    pub sessions: Vec<TestSession>,
    /// Names of the sessions that are configured as inactive.
    pub inactive_sessions: Vec<String>,
    /// Longest pause between two attempts, in nanoseconds; 0 for an attempt every test interval.
    pub retry_backoff_max_ns: u64,
    /// Reports an event when every session has finished a test.
    pub test_iteration_done_events: bool,
    /// Number of tests that the moving average covers; 0 is off.
    pub moving_average_size: usize,
    /// Storage and retention of results.
    pub results: ResultKeeping,
    /// Results of each session that are kept in memory if they are not stored.
    pub history_size: usize,
    /// Retention of its records, in nanoseconds, if it is shorter than that of the storage.
    pub retention_age_ns: Option<u64>,
    /// Ignores replies whose Error Estimate has Multiplier 0.
    pub strict_error_estimate: bool,
    /// Addresses in session requests.
    pub send_addresses: SendAddresses,
}

/// Addresses in session requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendAddresses {
    /// Zeros for the ends of the control connection (RFC 5357 §3.5), and addresses for a server
    /// that does not work with zeros.
    #[default]
    Auto,
    /// Addresses of both ends, always.
    Always,
    /// Always zeros for the ends of the control connection.
    Never,
}

impl AgentConfig {
    /// Counts the sockets of all connections while all their sessions run.
    pub fn client_sockets(&self) -> u64 {
        self.connections.values().map(|connection| connection.sockets()).sum()
    }
}

impl ControlConnection {
    /// Counts its sockets while all its sessions run.
    pub fn sockets(&self) -> u64 {
        if self.inactive {
            return 0;
        }
        u64::from(self.control_type == ControlType::Managed) + self.sessions.len() as u64
    }

    /// Returns the names of all sessions, including inactive ones.
    pub fn session_names(&self) -> impl Iterator<Item = &str> {
        let active = self.sessions.iter().map(|session| &session.name);
        active.chain(&self.inactive_sessions).map(String::as_str)
    }

    /// Returns true if a new attempt may help against a silent peer: a managed connection
    /// negotiates again, and a name is resolved again.
    pub fn reconnects_when_silent(&self) -> bool {
        let named = |target: &Option<Endpoint>| matches!(target, Some(Endpoint::Name(_)));
        self.control_type == ControlType::Managed
            || named(&self.target)
            || self.sessions.iter().any(|session| named(&session.target))
    }

    /// Returns true if a server may end sessions in the pause between two tests, because the pause
    /// is longer than the shortest REFWAIT of one second.
    pub fn sessions_may_expire(&self) -> bool {
        self.control_type == ControlType::Managed && self.test_interval_ns > NANOS_PER_SECOND
    }

    /// Returns true if the server or a reflector has an address that is valid on one link only.
    pub fn has_link_local_target(&self) -> bool {
        let targets = self.sessions.iter().map(|session| &session.target).chain([&self.target]);
        targets.flatten().any(|target| match target {
            Endpoint::Address(IpAddr::V6(v6)) => v6.is_unicast_link_local(),
            Endpoint::Address(IpAddr::V4(_)) | Endpoint::Name(_) => false,
        })
    }

    /// Returns true if a session asks for reflected padding.
    pub fn requests_reflected_octets(&self) -> bool {
        self.sessions.iter().any(|session| session.reflected_octets > 0)
    }
}

/// Storage of the results of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultKeeping {
    /// Results are kept in the store.
    Stored,
    /// Results are kept in memory, at most this number for each session.
    InMemory(usize),
}

/// Distribution of the gaps between probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Equal gaps between probes.
    Periodic,
    /// Exponentially distributed gaps (Poisson stream).
    Poisson,
}

/// Stream of probes between two addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct TestSession {
    /// Name, unique within the connection.
    pub name: String,
    /// Labels of the connection, overridden by those of the session.
    pub labels: BTreeMap<String, String>,
    /// The reflector; `None` for the target of the connection.
    pub target: Option<Endpoint>,
    /// UDP port of the reflector; `None` for the default of the control type.
    pub destination_port: Option<u16>,
    /// Local address; `None` for that of the control connection.
    pub source_address: Option<IpAddr>,
    /// Local port; `None` for any free one.
    pub source_port: Option<u16>,
    /// Octets of UDP payload.
    pub data_size: u16,
    /// Padding consists of zeros instead of random octets.
    pub zero_padding: bool,
    /// DSCP of probes and replies.
    pub dscp: Dscp,
    /// TTL or hop limit of probes.
    pub ttl: u8,
    /// Probes in a test.
    pub probe_count: u32,
    /// Gap between probes, or between bursts, in nanoseconds.
    pub probe_interval_ns: u64,
    /// Probes at each time of the schedule.
    pub burst_size: u32,
    /// Distribution of the gaps between probes.
    pub schedule: Schedule,
    /// Age at which an unanswered probe is lost, in nanoseconds.
    pub loss_timeout_ns: u64,
    /// Stores a record of each probe.
    pub store_probes: bool,
    /// Format of T1: NTP or PTP.
    pub timestamps: TimestampFormat,
    /// Octets of padding that the reflector returns unchanged (RFC 6038).
    pub reflected_octets: u16,
    /// STAMP options; `Some` only for connections of that type.
    pub stamp: Option<StampSession>,
    /// Limits whose crossing is reported.
    pub thresholds: Thresholds,
    /// Reports an event when a test has ended.
    pub test_done_events: bool,
    /// Percentiles of delays to report, in rising order.
    pub percentiles: Vec<f64>,
    /// Rule by which the path becomes unavailable.
    pub availability: AvailabilityRule,
}

/// Rule by which a path becomes unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvailabilityRule {
    /// Probes in an interval.
    pub probes_per_interval: u64,
    /// Lost probes of an interval, in percent, at which it is of high loss.
    pub loss_percent: u64,
    /// Consecutive intervals that change the state.
    pub consecutive_intervals: u64,
    /// Consecutive intervals of high loss that count as a run.
    pub consecutive_high_loss_intervals: u64,
}

impl Default for AvailabilityRule {
    fn default() -> Self {
        let consecutive_intervals = super::limits::AVAILABILITY_INTERVALS.default;
        Self {
            probes_per_interval: super::limits::AVAILABILITY_PROBES.default,
            loss_percent: super::limits::AVAILABILITY_LOSS_PERCENT.default,
            consecutive_intervals,
            consecutive_high_loss_intervals: consecutive_intervals / 2,
        }
    }
}

impl TestSession {
    /// Returns the duration of a test: the gaps between its bursts and the loss timeout of the
    /// last.
    pub fn nominal_duration_ns(&self) -> u64 {
        let gaps = self.probe_count.div_ceil(self.burst_size) - 1;
        self.probe_interval_ns.saturating_mul(gaps.into()).saturating_add(self.loss_timeout_ns)
    }
}

/// Retention of stored results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    /// Age at which records are removed, in nanoseconds.
    pub retention_age_ns: u64,
    /// Bytes of stored records beyond which the oldest are removed.
    pub retention_bytes: u64,
    /// Size of the state directory beyond which the oldest records are removed, in bytes.
    pub maximum_disk_bytes: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            retention_age_ns: super::limits::RETENTION_AGE.default,
            retention_bytes: super::limits::RETENTION_OCTETS.default,
            maximum_disk_bytes: super::limits::default_disk_octets(
                super::limits::RETENTION_OCTETS.default,
            ),
        }
    }
}
