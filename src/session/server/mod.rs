//! The server role. One task ([`role`]) owns the listening sockets and follows the configuration;
//! each control connection has a task ([`connection`]), and each UDP socket one ([`reflector`]) that
//! owns its test sessions. What is open is counted in one place ([`registry`]).

mod connection;
mod place;
mod reflector;
mod registry;
mod role;
mod sockets;

pub use registry::Registry;
pub use role::ServerRole;
