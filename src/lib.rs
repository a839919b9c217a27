//! `twamp-agent`: a daemon that measures networks with TWAMP (RFC 5357), keeps every measurement
//! alive by itself and is managed over gRPC.
//!
//! Layers, imports going down only (`tests/layers.rs` enforces it):
//!
//! ```text
//! L6  api          gRPC services: translation only
//! L5  control      commit, reconcile · telemetry: logs
//! L4  session      drivers, one loop around one machine each · results: the log, statistics
//! L3  net (sockets, clock) · store (sled) · supervise (tasks)        never each other
//! L2  twamp        machines without I/O · stats: delay, loss
//! L1  wire         messages and packets
//! L0  time · proto (messages of the API) · document (their YAML) · model (the checked configuration)
//! ```
//!
//! [`agent`] puts the parts together from [`settings`]. Beside it stands [`ctl`], the command-line
//! client, which knows the agent only by its API. The binaries are thin.

pub mod agent;
pub mod api;
pub mod control;
pub mod ctl;
pub mod db;
pub mod demo;
pub mod document;
pub mod export;
pub mod model;
pub mod net;
pub mod proto;
pub mod results;
pub mod session;
pub mod settings;
pub mod stats;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod time;
pub mod twamp;
pub mod wire;
