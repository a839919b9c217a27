//! Access to the kernel: sockets, clocks, name service, random bytes. No other module imports
//! sockets.

pub mod clock;
mod families;
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

pub use families::{canonical, is_missing};
pub use hardware::{HardwareState, enable_hardware_stamps, follow_hardware, hardware_states};
pub use host::{
    files_for_api, files_for_measurements, free_port, host_name, interface_index, machine_id,
    on_link, open_files, overflow_uid, own_uid, product_uuid, raise_open_files, scoped,
};
pub use links::{NetworkChanges, follow_network};
pub use neighbours::Neighbours;
pub use poll::{Poller, Waker};
pub use probe_bind::{ResourceRefusal, check_resources};
pub use route::{check_route, check_source};
pub use tcp_facts::{TcpDirectory, tcp_owner_by_proc};
pub use thread::{ThreadScheduling, apply_scheduling};
pub use udp::{
    Drained, PacketHandler, PreparedReply, Reflected, StampNumbers, TestSocket, TransmitStamps,
    UdpOptions,
};
