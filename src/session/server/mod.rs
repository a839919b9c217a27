//! The server role. One task ([`role`]) owns the listening sockets and follows the configuration;
//! each control connection has a task ([`connection`]), and each UDP socket a place on a thread of the
//! data plane, with its test sessions ([`reflector`]). What is open is counted in one place
//! ([`registry`]).

mod connection;
mod place;
mod reflector;
mod registry;
mod role;
mod sockets;
#[cfg(test)]
mod tests;

pub use reflector::Reflectors;
pub use registry::Registry;
pub use role::ServerRole;
