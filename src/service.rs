//! Notifications to the service manager (sd_notify(3)); none without one.

use std::{
    env,
    ffi::OsStr,
    future::pending,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::sleep;

/// Reports that the agent is ready.
pub(crate) fn ready() {
    notify(NotifyState::Ready);
}

/// Reports that the agent is stopping.
pub(crate) fn stopping() {
    notify(NotifyState::Stopping);
}

/// Sends keep-alives at the interval required by the service manager, forever. When the threads of
/// the agent are stuck, they cease and the service manager restarts the agent.
pub(crate) async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| *limit > Duration::ZERO) else {
        return pending().await;
    };
    loop {
        notify(NotifyState::Watchdog);
        sleep(limit / 3).await;
    }
}

fn notify(state: NotifyState<'_>) {
    let socket = env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    let sent = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => notify_abstract(OsStr::from_bytes(name), &state),
        None => sd_notify::notify(&[state]),
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "failed to notify service manager");
    }
}

/// Sends to a socket in the abstract namespace (unix(7)), which containers use.
fn notify_abstract(name: &OsStr, state: &NotifyState<'_>) -> io::Result<()> {
    let address = SocketAddr::from_abstract_name(name.as_bytes())?;
    UnixDatagram::unbound()?.send_to_addr(format!("{state}\n").as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abstract_sockets_are_notified() {
        let name = format!("twamp-agent-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        notify_abstract(OsStr::new(&name), &NotifyState::Ready).unwrap();
        let mut message = [0; 64];
        let octets = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..octets], b"READY=1\n");
    }
}
