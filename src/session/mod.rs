//! The drivers: one loop around one machine each, with the sockets and clocks that the machines do
//! not have. `client` measures, `server` lets others measure.

pub mod client;
mod derivation;
mod modes;
mod plane;
pub mod server;

pub use derivation::Derivation;
pub use plane::PlaneSettings;
