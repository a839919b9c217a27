//! Defaults and ranges of the configuration. The comments in `proto/` repeat them; a test compares.

use std::ops::RangeInclusive;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Octets of an ApplyConfig request.
pub const MAXIMUM_REQUEST_OCTETS: usize = 64 << 20;
/// Octets of any other request.
pub const MAXIMUM_CALL_OCTETS: usize = 1 << 20;
/// Control connections of a configuration.
pub const MAXIMUM_CONNECTIONS: usize = 20_000;
/// Test sessions of a control connection.
pub const MAXIMUM_SESSIONS_PER_CONNECTION: usize = 256;
/// Octets of a name.
pub const NAME_OCTETS: RangeInclusive<usize> = 1..=64;
/// Length of a name in `client_list` and `key_chains`, in bytes.
pub const ENTRY_NAME_BYTES: RangeInclusive<usize> = 1..=192;
/// Octets of descriptions and comments.
pub const MAXIMUM_TEXT_OCTETS: usize = 1024;
/// Labels of a connection or a session.
pub const MAXIMUM_LABELS: usize = 32;
/// Octets of all keys and values of the labels that a record carries.
pub const MAXIMUM_LABEL_OCTETS: usize = 1024;
/// Octets of a DNS name.
pub const MAXIMUM_HOST_OCTETS: usize = 253;
/// Octets of an interface name (IFNAMSIZ less the terminator).
pub const MAXIMUM_INTERFACE_OCTETS: usize = 15;
/// Listening addresses and client lists of a server.
pub const MAXIMUM_LISTS: usize = 64;
/// Prefixes of a list.
pub const MAXIMUM_PREFIXES: usize = 1024;
/// Octets of a KeyID (RFC 4656 §3.1).
pub const KEY_ID_OCTETS: RangeInclusive<usize> = 1..=80;
/// Octets of a secret.
pub const SECRET_OCTETS: RangeInclusive<usize> = 1..=256;
/// Keys of a chain.
pub const MAXIMUM_KEYS: usize = 1024;
/// Keys of a server with the same name; each client costs one key derivation for each of them.
pub const MAXIMUM_KEYS_PER_NAME: usize = 2;
/// Keys of a STAMP reflector; each forged packet costs one HMAC for each of them.
pub const MAXIMUM_STAMP_KEYS: usize = 8;
/// Sessions of a STAMP reflector.
pub const MAXIMUM_STAMP_SESSIONS: usize = 1024;
/// Smallest `data_size` with protected test packets, in octets (RFC 4656 §4.1.2).
pub const MINIMUM_PROTECTED_DATA_SIZE: u16 = 48;
/// Default `data_size` with protected test packets, in octets: probe and reply have the same size.
pub const DEFAULT_PROTECTED_DATA_SIZE: u64 = 112;
/// Consumers with a stored position.
pub const MAXIMUM_CONSUMERS: usize = 1000;
/// Parts that a request deletes.
pub const MAXIMUM_DELETED: usize = 20_000;
/// Fields that a change names.
pub const MAXIMUM_FIELD_CHANGES: usize = 100;
/// Number of revisions that are kept.
pub const REVISIONS_KEPT: usize = 50;

/// Name of the Prometheus page among the exporters.
pub const PROMETHEUS_NAME: &str = "prometheus";
/// Prefix of the names of exporters' consumers.
pub const EXPORT_CONSUMER: &str = "export:";
/// Number of exporters that push.
pub const MAXIMUM_EXPORTERS: usize = 16;
/// Octets of the name of an exporter; the name of its consumer has a prefix.
pub const MAXIMUM_EXPORTER_NAME_OCTETS: usize = 50;
/// Servers of a NATS exporter.
pub const MAXIMUM_NATS_SERVERS: usize = 16;
/// Octets of a user name.
pub const MAXIMUM_USER_OCTETS: usize = 256;
/// Octets of a token or password.
pub const MAXIMUM_TOKEN_OCTETS: usize = 4096;
/// Encoded filter of an exporter: a page of a document has one exporter at least.
pub const MAXIMUM_FILTER_OCTETS: usize = 1 << 20;
/// Size of certificates in bytes.
pub const MAXIMUM_PEM_OCTETS: usize = 65_536;

/// The port of TWAMP-Control and TWAMP-Test (RFC 8545).
pub const TWAMP_PORT: u16 = 862;

/// A number with its range and default.
#[derive(Debug)]
pub struct Limit {
    /// Allowed values, both ends included.
    pub range: RangeInclusive<u64>,
    /// Value if none is given; 0 if there is no fixed default.
    pub default: u64,
    /// The range in words, for messages.
    pub words: &'static str,
}

const fn limit(range: RangeInclusive<u64>, default: u64, words: &'static str) -> Limit {
    Limit { range, default, words }
}

/// Range of a port number.
pub const PORT: Limit = limit(1..=65_535, TWAMP_PORT as u64, "1 to 65535");
/// `port` of the metrics.
pub const PROMETHEUS_PORT: Limit = limit(1..=65_535, 9863, "1 to 65535");
/// Range and default of `test_count`.
pub const TEST_COUNT: Limit = limit(0..=4_294_967_290, 0, "0 to 4294967290");
/// Range and default of `test_interval`, in nanoseconds.
pub const TEST_INTERVAL: Limit = limit(10 * MS..=DAY, SECOND, "10 ms to 24 h");
/// Range and default of `tcp_keepidle`, in nanoseconds.
pub const TCP_KEEPIDLE: Limit =
    limit(SECOND..=600 * SECOND, 120 * SECOND, "1 s to 600 s, whole seconds");
/// Range and default of `tcp_keepintvl`, in nanoseconds.
pub const TCP_KEEPINTVL: Limit =
    limit(SECOND..=600 * SECOND, 5 * SECOND, "1 s to 600 s, whole seconds");
/// Range and default of `tcp_keepcnt`.
pub const TCP_KEEPCNT: Limit = limit(1..=50, 6, "1 to 50");
/// Range of `connect_timeout`, in nanoseconds; the default depends on `test_interval`.
pub const CONNECT_TIMEOUT: Limit = limit(100 * MS..=60 * SECOND, 0, "100 ms to 60 s");
/// Bounds of the default of `connect_timeout` for the TCP connect.
pub const DEFAULT_CONNECT_TIMEOUT: RangeInclusive<u64> = 100 * MS..=30 * SECOND;
/// Bounds of the default of `connect_timeout` for each answer.
pub const DEFAULT_RESPONSE_TIMEOUT: RangeInclusive<u64> = SECOND..=30 * SECOND;
/// Bounds of the default of `connect_timeout` for the answer that needs a key derivation; the
/// server may serve other clients first.
pub const DEFAULT_KEY_TIMEOUT: RangeInclusive<u64> = 10 * SECOND..=30 * SECOND;
/// Range and default of `data_size`, in octets.
pub const DATA_SIZE: Limit = limit(14..=65_507, 60, "14 to 65507");
/// Range and default of `maximum_key_derivation_count`.
pub const MAXIMUM_KEY_DERIVATION_COUNT: Limit = limit(1..=1 << 24, 32_768, "1 to 16777216");
/// Range and default of `key_derivation_count`.
pub const KEY_DERIVATION_COUNT: Limit =
    limit(1024..=1 << 20, 2048, "a power of two, 1024 to 1048576");
/// Range and default of `reflected_octets`, in octets.
pub const REFLECTED_OCTETS: Limit = limit(0..=65_507, 0, "0 to 65507");
/// Range of `ssid` of a sender; by default the agent chooses it.
pub const SSID: Limit = limit(1..=65_535, 0, "1 to 65535");
/// `ssid` of a reflector's session.
pub const SERVER_SSID: Limit = limit(0..=65_535, 0, "0 to 65535");
/// Range and default of `retransmission_interval`, in nanoseconds.
pub const RETRANSMISSION_INTERVAL: Limit = limit(100 * MS..=HOUR, 3 * SECOND, "100 ms to 1 h");
/// Range and default of `retransmissions`.
pub const RETRANSMISSIONS: Limit = limit(0..=1000, 4, "0 to 1000");
/// Range and default of `ttl`.
pub const TTL: Limit = limit(1..=255, 255, "1 to 255");
/// Range and default of `probe_count`.
pub const PROBE_COUNT: Limit = limit(1..=1_000_000, 1, "1 to 1000000");
/// Range and default of `burst_size`.
pub const BURST_SIZE: Limit = limit(1..=1000, 1, "1 to 1000");
/// Range and default of `probe_interval`, in nanoseconds.
pub const PROBE_INTERVAL: Limit = limit(MS..=HOUR, SECOND, "1 ms to 1 h");
/// Range and default of `loss_timeout`, in nanoseconds.
pub const LOSS_TIMEOUT: Limit = limit(MS..=60 * SECOND, 2 * SECOND, "1 ms to 60 s");
/// Range and default of `server_inactivity_timeout`, in nanoseconds.
pub const SERVER_INACTIVITY_TIMEOUT: Limit = limit(0..=DAY, 15 * MINUTE, "0 to 24 h");
/// Range and default of `max_connection_duration`, in nanoseconds.
pub const MAX_CONNECTION_DURATION: Limit = limit(0..=30 * DAY, 0, "0 to 30 days");
/// Range and default of `maximum_connections`.
pub const SERVER_CONNECTIONS: Limit = limit(1..=100_000, 64, "1 to 100000");
/// Range and default of `maximum_connections_per_client`, a fraction of all, so that one client
/// does not lock out the others.
pub const SERVER_CONNECTIONS_PER_CLIENT: Limit = limit(1..=100_000, 16, "1 to 100000");
/// Range and default of `maximum_sessions`.
pub const SERVER_SESSIONS: Limit = limit(1..=100_000, 64, "1 to 100000");
/// Range and default of `maximum_sessions_per_connection`.
pub const SERVER_SESSIONS_PER_CONNECTION: Limit = limit(1..=1024, 64, "1 to 1024");
/// `retry_backoff_max`, nanoseconds; 0 is off.
pub const RETRY_BACKOFF_MAX: Limit = limit(0..=DAY, 0, "0 to 24 h");
/// Range of `confirm_timeout`, in nanoseconds; no default.
pub const CONFIRM_TIMEOUT: Limit = limit(SECOND..=DAY, 0, "1 s to 24 h");
/// Range and default of `successive_loss`.
pub const SUCCESSIVE_LOSS: Limit = limit(0..=1_000_000, 1, "0 to 1000000");
/// Range and default of `total_loss`.
pub const TOTAL_LOSS: Limit = limit(0..=1_000_000, 1, "0 to 1000000");
/// Thresholds of delays, nanoseconds; 0 is off.
pub const DELAY_THRESHOLD: Limit = limit(0..=60 * SECOND, 0, "0 to 60 s");
/// Range and default of `clear_percent`.
pub const CLEAR_PERCENT: Limit = limit(1..=100, 90, "1 to 100");
/// Percentiles of a session.
pub const MAXIMUM_PERCENTILES: usize = 10;
/// `probes_per_interval` of the availability.
pub const AVAILABILITY_PROBES: Limit = limit(1..=1000, 1, "1 to 1000");
/// `loss_percent` of the availability.
pub const AVAILABILITY_LOSS_PERCENT: Limit = limit(1..=100, 50, "1 to 100");
/// `consecutive_intervals` of the availability.
pub const AVAILABILITY_INTERVALS: Limit = limit(2..=1000, 10, "2 to 1000");
/// Range of `consecutive_high_loss_intervals` of the availability; the default depends on
/// `consecutive_intervals`.
pub const AVAILABILITY_HIGH_LOSS: Limit = limit(1..=999, 0, "1 to 999");
/// Range and default of `moving_average_size`.
pub const MOVING_AVERAGE_SIZE: Limit = limit(0..=1024, 0, "0 to 1024");
/// Range and default of `history_size`.
pub const HISTORY_SIZE: Limit = limit(0..=512, 50, "0 to 512");
/// Range and default of `clear_after_tests`.
pub const CLEAR_AFTER: Limit = limit(1..=1000, 3, "1 to 1000");
/// `maximum_packets_per_second` of a light reflector and `maximum_packets_per_second_per_sender`; 0
/// means no limit.
pub const PACKETS_PER_SECOND: Limit = limit(0..=10_000_000, 0, "0 to 10000000");
/// Range and default of `refwait`, in nanoseconds.
pub const REFWAIT: Limit = limit(SECOND..=DAY, 15 * MINUTE, "1 s to 24 h");
/// Range and default of `retention_age`, in nanoseconds.
pub const RETENTION_AGE: Limit = limit(MINUTE..=366 * DAY, 7 * DAY, "1 min to 366 days");
/// Range of `retention_age` of a connection, in nanoseconds; the default is that of the storage.
pub const CONNECTION_RETENTION_AGE: Limit = limit(MINUTE..=366 * DAY, 0, "1 min to 366 days");
/// Range and default of `retention_bytes`.
pub const RETENTION_OCTETS: Limit =
    limit(1 << 20..=1 << 40, 1 << 30, "1 MiB (1048576) to 1 TiB (1099511627776)");
/// Range of `maximum_disk_bytes`; the default follows `retention_bytes`.
pub const DISK_OCTETS: Limit =
    limit(1 << 26..=1 << 42, 0, "64 MiB (67108864) to 4 TiB (4398046511104)");

/// Returns the default of `maximum_disk_bytes`. Records take about twice their size on the disk; the
/// constant part is for revisions, quarantined windows and statistics.
pub const fn default_disk_octets(retention_octets: u64) -> u64 {
    retention_octets.saturating_mul(3).saturating_add(256 << 20)
}

/// `heartbeat_interval` of a stream, nanoseconds.
pub const HEARTBEAT_INTERVAL: Limit = limit(100 * MS..=HOUR, 10 * SECOND, "100 ms to 1 h");
/// `page_size` of a listing.
pub const PAGE_SIZE: Limit = limit(1..=1000, 100, "1 to 1000");

/// Test interval above which the connection is closed between tests, well before a server ends a
/// silent session (SERVWAIT, REFWAIT: 900 s in RFC 5357).
pub const SILENT_CONNECTION_NS: u64 = 10 * MINUTE;
