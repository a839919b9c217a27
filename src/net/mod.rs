//! Everything that asks the kernel: sockets, clocks, name service, random octets. The only module
//! that imports sockets.

pub mod clock;
mod hardware;
mod host;
mod links;
mod neighbours;
mod poll;
mod probe_bind;
pub mod random;
pub mod resolve;
mod route;
pub mod tcp;
mod tcp_facts;
mod thread;
mod udp;

pub use hardware::{HardwareState, follow_hardware, hardware_states, stamp_by_hardware};
pub use host::{
    files_for_measurements, free_port, host_name, interface_index, open_files, raise_open_files,
};
pub use links::{NetworkChanges, follow_network};
pub use neighbours::Neighbours;
pub use poll::{Bell, Poller};
pub use probe_bind::{ResourceRefusal, check_resources};
pub use route::{check_route, check_source};
pub use tcp_facts::TcpDirectory;
pub use thread::{ThreadPlace, take_place};
pub use udp::{
    Drained, PacketHandler, PreparedReply, Reflected, StampNumbers, TestSocket, TransmitStamps,
    UdpOptions,
};
