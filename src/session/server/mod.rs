//! Server role.
//!
//! One task ([`role`]) owns the listening sockets and follows the configuration. Each control
//! connection has a task ([`connection`]). UDP sockets with their test sessions live on data-plane
//! threads ([`reflector`]). [`registry`] counts connections and sessions.

mod allocate;
mod connection;
mod counters;
mod reflector;
mod registry;
mod role;
mod sockets;
#[cfg(test)]
mod tests;

pub use reflector::Reflectors;
pub use registry::Registry;
pub use role::ServerRole;
