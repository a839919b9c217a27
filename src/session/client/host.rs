//! Conditions of this host that end a connection although the kernel continues to send packets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use crate::{
    model::{ControlConnection, limits::TWAMP_PORT},
    net::{check_route, check_source, interface_index},
    proto::FailureCause,
    twamp::connection::{Connection, Failure},
};

/// Returns the kernel's number of the interface that sockets are bound to. A different number means
/// a different interface, even if the name is the same.
pub(super) fn bound_interface(config: &ControlConnection) -> Option<u32> {
    config.interface.as_deref().and_then(interface_index)
}

/// Returns the failure of a connection whose interface is gone.
pub(super) fn interface_gone(config: &ControlConnection) -> Failure {
    let name = config.interface.as_deref().unwrap_or_default();
    Failure::new(FailureCause::LocalError, format!("interface {name} is gone or was replaced"))
}

/// Returns the failure if no reply can arrive, because the address of the control connection or the
/// addresses of all sessions were removed from this host.
pub(super) fn source_gone(machine: &Connection, control: Option<IpAddr>) -> Option<Failure> {
    if machine.ends_with_loss() {
        return None;
    }
    let config = machine.config();
    let interface = config.interface.as_deref();
    if let Some(address) = control
        && let Err(error) = check_source(address, interface)
        && error.kind() == io::ErrorKind::AddrNotAvailable
    {
        return Some(Failure::from_local_error(
            &format!("control connection from {address}"),
            &error,
        ));
    }
    let mut gone = None;
    for (name, remote) in machine.remotes() {
        let Some(session) = config.sessions.iter().find(|session| session.name == name) else {
            continue;
        };
        let remote = SocketAddr::new(remote, TWAMP_PORT);
        let source = session.source_address.or(config.source_address);
        let error = check_route(remote, source, interface).err();
        let error = error.filter(|error| error.kind() == io::ErrorKind::AddrNotAvailable)?;
        let from = source.map_or_else(String::new, |source| format!(" from {source}"));
        gone = Some(Failure::from_local_error(&format!("UDP to {remote}{from}"), &error));
    }
    gone
}

/// Returns true if no reflector can be reached.
pub(super) fn is_unreachable(machine: &Connection) -> bool {
    let config = machine.config();
    let (source, interface) = (config.source_address, config.interface.as_deref());
    machine.remotes().all(|(_, remote)| {
        check_route(SocketAddr::new(remote, TWAMP_PORT), source, interface).is_err()
    })
}
