//! Configuration as the agent uses it, with every value checked and every default filled in. Only
//! [`parse`] creates it, so that nothing has to be checked again. Defaults and ranges are in
//! [`limits`]. Results of measurements are not part of this model (see [`crate::stats`]); the enums
//! that describe them are those of the API.

mod certificates;
mod config;
mod diff;
mod dscp;
mod effect;
mod export;
mod keepalive;
pub mod limits;
mod parse;
mod secret;
mod security;
mod server;
mod stamp;
mod thresholds;
mod zone;

pub use crate::proto::{
    FailureCause, OneWayValidity, ProbeStatus, ReflectorNumbering, TestOutcome, Threshold,
    TimestampSource,
};
pub use certificates::certificates;
pub use config::{
    AgentConfig, AvailabilityRule, ControlConnection, ControlType, Endpoint, ResultKeeping,
    Schedule, SendAddresses, StorageConfig, TestSession,
};
pub use diff::{
    ConnectionEffect, SessionControl, changes, connection_effect, has_completed, touched_sessions,
};
pub use dscp::Dscp;
pub use export::{ExportConfig, ExportTarget, Exporter};
pub use keepalive::Keepalive;
pub use parse::{
    Violation, check_name, parse, parse_connection, parse_duration, parse_valid_parts, warnings,
};
pub use secret::Secret;
pub use security::{AuthenticationMode, Extensions, Key};
pub use server::{
    ClientList, LightReflector, ListenAddress, ServerConfig, StampReflector, StampReflectorSession,
    TestPort, UdpListen,
};
pub use stamp::{AccessReport, StampSession};
pub use thresholds::{ThresholdLimit, Thresholds};
pub use zone::{ZonedAddress, ZonedAddressError, check_interface, split_url_zone};
