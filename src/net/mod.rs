//! Everything that asks the kernel: sockets, clocks, name service, random octets. The only module
//! that imports sockets.

pub mod clock;
mod host;
mod neighbours;
mod probe_bind;
pub mod random;
pub mod resolve;
pub mod tcp;
mod udp;

pub use host::{free_port, host_name, raise_open_files};
pub use neighbours::Neighbours;
pub use probe_bind::{ResourceRefusal, check_resources};
pub use udp::{Answer, Answered, PacketInfo, Reflected, TestSocket, UdpOptions};
