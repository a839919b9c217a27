//! Effect of each field of the configuration when it changes in a running part. The compiler checks
//! that each field has a class.

use super::{ControlConnection, ControlType, ServerConfig, TestSession};

/// Class of a field of a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionField {
    /// Key of the connection: a change makes it another connection.
    Name,
    /// Applied without a packet.
    Live,
    /// Starts or stops the connection.
    Activation,
    /// Starts a completed connection.
    TestCount,
    /// Applied without a packet; the next test or attempt is rescheduled.
    Interval,
    /// Set on the open control connection.
    SocketOption,
    /// Compared session by session.
    Sessions,
    /// Needs another control connection.
    Reconnect,
    /// Needs another control connection, and discards what was learnt about the server.
    Server,
    /// As `Server`, for fields that only managed connections use.
    ManagedServer,
}

/// Class of a field of a test session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionField {
    /// Key of the session: a change makes it another session.
    Name,
    /// Applied without a packet.
    Live,
    /// Agreed with the reflector, or a property of the session's socket.
    Renegotiate,
}

/// Class of a field of the server role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerField {
    /// Applied without closing anything.
    Live,
    /// Opens and closes listeners.
    Listen,
    /// Opens and closes shared UDP sockets.
    SharedSockets,
    /// Closes control connections that are no longer allowed.
    Admission,
}

/// Implements `differences`, the classes of the fields in which two values differ.
macro_rules! classify {
    ($type:ident: $class:ident { $($field:ident: $variant:ident,)* }) => {
        impl $type {
            pub(super) fn differences(&self, other: &Self) -> Vec<$class> {
                let Self { $($field),* } = self;
                let mut classes = Vec::new();
                $(
                    if *$field != other.$field {
                        classes.push($class::$variant);
                    }
                )*
                classes
            }
        }
    };
}

classify!(ControlConnection: ConnectionField {
    name: Name,
    description: Live,
    labels: Live,
    inactive: Activation,
    control_type: Server,
    target: Server,
    destination_port: ManagedServer,
    source_address: Reconnect,
    interface: Reconnect,
    control_dscp: SocketOption,
    test_count: TestCount,
    test_interval_ns: Interval,
    manual_start: Live,
    keepalive: SocketOption,
    connect_timeout_ns: Live,
    response_timeout_ns: Live,
    key_timeout_ns: Live,
    authentication: Server,
    key_id: Server,
    secret: Server,
    maximum_count: Live,
    extensions: ManagedServer,
    sessions: Sessions,
    inactive_sessions: Live,
    retry_backoff_max_ns: Interval,
    test_iteration_done_events: Live,
    moving_average_size: Live,
    results: Live,
    history_size: Live,
    retention_age_ns: Live,
    strict_error_estimate: Live,
    send_addresses: ManagedServer,
});

// The reflector uses the loss timeout only after Stop-Sessions.
classify!(TestSession: SessionField {
    name: Name,
    labels: Live,
    target: Renegotiate,
    destination_port: Renegotiate,
    source_address: Renegotiate,
    source_port: Renegotiate,
    data_size: Renegotiate,
    zero_padding: Live,
    dscp: Renegotiate,
    ttl: Live,
    probe_count: Live,
    probe_interval_ns: Live,
    burst_size: Live,
    schedule: Live,
    loss_timeout_ns: Live,
    store_probes: Live,
    timestamps: Renegotiate,
    reflected_octets: Renegotiate,
    stamp: Renegotiate,
    thresholds: Live,
    test_done_events: Live,
    percentiles: Live,
    availability: Live,
});

classify!(ServerConfig: ServerField {
    listen: Listen,
    client_lists: Admission,
    inactivity_timeout_ns: Live,
    max_connection_duration_ns: Admission,
    maximum_connections: Live,
    maximum_connections_per_client: Live,
    maximum_sessions: Live,
    maximum_sessions_per_connection: Live,
    keepalive: Live,
    test_port: SharedSockets,
    light: SharedSockets,
    stamp: SharedSockets,
    authentication_modes: Live,
    keys: Admission,
    key_derivation_count: Live,
    extensions: Live,
    timestamps: Live,
    refwait_ns: Live,
    maximum_packets_per_second_per_sender: Live,
    strict_error_estimate: Live,
    refuse_silently: Live,
});

impl ControlConnection {
    /// Returns true if `other` has the same server, so that what was learnt about it still holds.
    pub fn has_same_server(&self, other: &Self) -> bool {
        !self.differences(other).iter().any(|class| match class {
            ConnectionField::Server | ConnectionField::ManagedServer => true,
            ConnectionField::Name
            | ConnectionField::Live
            | ConnectionField::Activation
            | ConnectionField::TestCount
            | ConnectionField::Interval
            | ConnectionField::SocketOption
            | ConnectionField::Sessions
            | ConnectionField::Reconnect => false,
        })
    }

    /// Returns true if the options of the control connection's socket are the same.
    pub fn has_same_socket_options(&self, other: &Self) -> bool {
        !self.differences(other).contains(&ConnectionField::SocketOption)
    }

    /// Returns true if tests and attempts have the same intervals.
    pub fn has_same_intervals(&self, other: &Self) -> bool {
        !self.differences(other).contains(&ConnectionField::Interval)
    }

    /// Returns true if a change to `other` needs another control connection.
    pub(super) fn needs_reconnect(&self, other: &Self) -> bool {
        let is_managed = self.control_type == ControlType::Managed;
        // The mode of the control connection depends on reflected padding.
        let reflects =
            is_managed && self.requests_reflected_octets() != other.requests_reflected_octets();
        reflects
            || self.differences(other).iter().any(|class| match class {
                ConnectionField::Reconnect | ConnectionField::Server => true,
                ConnectionField::ManagedServer => is_managed,
                ConnectionField::Name
                | ConnectionField::Live
                | ConnectionField::Activation
                | ConnectionField::TestCount
                | ConnectionField::Interval
                | ConnectionField::SocketOption
                | ConnectionField::Sessions => false,
            })
    }
}

impl TestSession {
    /// Returns true if a change to `other` needs a negotiation or another socket.
    pub fn needs_renegotiation(&self, other: &Self) -> bool {
        self.differences(other).contains(&SessionField::Renegotiate)
    }
}
