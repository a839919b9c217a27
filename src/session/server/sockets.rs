//! UDP sockets of the server role by address. A shared socket is open while it is configured. A
//! dedicated socket is opened for a session and closed after its last session.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use super::reflector::{ReflectorHandle, Reflectors};
use crate::{
    model::UdpListen,
    net::{TestSocket, TransmitStamps, UdpOptions},
    session::lock,
    twamp::reflector::{PacketRules, Sessionless},
};

/// All UDP sockets of the role.
#[derive(Debug)]
pub(super) struct Sockets {
    shared: Mutex<HashMap<UdpListen, SharedSocket>>,
    dedicated: Mutex<HashMap<UdpListen, ReflectorHandle>>,
    reflectors: Arc<Reflectors>,
    rules: Mutex<PacketRules>,
}

#[derive(Debug)]
struct SharedSocket {
    handle: ReflectorHandle,
    transmit_stamps: TransmitStamps,
}

impl Sockets {
    pub(super) fn new(reflectors: Arc<Reflectors>) -> Self {
        Self {
            shared: Mutex::default(),
            dedicated: Mutex::default(),
            reflectors,
            rules: Mutex::default(),
        }
    }

    /// Opens a shared socket on each thread unless it is open.
    pub(super) async fn bind_shared(
        &self,
        listen: &UdpListen,
        sessionless: Sessionless,
    ) -> io::Result<()> {
        // A stateful STAMP reflector reports the real transmit times of its replies.
        let transmit_stamps = match &sessionless {
            Sessionless::Stamp(stamp) if stamp.stateful => TransmitStamps::WithPacket,
            Sessionless::Stamp(_) | Sessionless::Light(_) | Sessionless::Dropped => {
                TransmitStamps::None
            }
        };
        let replaced = {
            let mut shared = lock(&self.shared);
            match shared.get(listen).filter(|open| !open.handle.is_closed()) {
                Some(open) if open.transmit_stamps == transmit_stamps => return Ok(()),
                _ => shared.remove(listen),
            }
        };
        if let Some(replaced) = replaced {
            replaced.handle.close().await;
        }
        let options = UdpOptions {
            interface: listen.interface.as_deref(),
            transmit_stamps,
            ..UdpOptions::default()
        };
        let threads = self.reflectors.threads();
        let sockets = TestSocket::bind_group(listen.address, &options, threads)?;
        let handle = self.reflectors.open(sockets, &sessionless, self.rules(), false)?;
        lock(&self.shared).insert(listen.clone(), SharedSocket { handle, transmit_stamps });
        Ok(())
    }

    fn rules(&self) -> PacketRules {
        *lock(&self.rules)
    }

    /// Sets the rules for packets on all sockets.
    pub(super) async fn set_rules(&self, rules: PacketRules) {
        if std::mem::replace(&mut *lock(&self.rules), rules) == rules {
            return;
        }
        let shared: Vec<_> = lock(&self.shared).values().map(|s| s.handle.clone()).collect();
        let dedicated: Vec<_> = lock(&self.dedicated).values().cloned().collect();
        for handle in shared.into_iter().chain(dedicated) {
            handle.set_rules(rules).await;
        }
    }

    /// Closes shared sockets that are not in `keep` and ends their sessions.
    pub(super) async fn retain(&self, keep: &[UdpListen]) {
        let gone: Vec<SharedSocket> = {
            let mut shared = lock(&self.shared);
            let (stay, go) = std::mem::take(&mut *shared)
                .into_iter()
                .partition::<HashMap<_, _>, _>(|(listen, _)| keep.contains(listen));
            *shared = stay;
            go.into_values().collect()
        };
        for socket in gone {
            socket.handle.close().await;
        }
    }

    /// Returns the shared socket bound to exactly this address.
    pub(super) fn shared(&self, listen: &UdpListen) -> Option<ReflectorHandle> {
        lock(&self.shared).get(listen).map(|open| open.handle.clone())
    }

    /// Returns the shared socket that receives packets to this address and port on the interface of
    /// the control connection.
    pub(super) fn find_shared(
        &self,
        ip: IpAddr,
        port: u16,
        interface: Option<&str>,
    ) -> Option<ReflectorHandle> {
        let any: IpAddr = if ip.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let at = |ip| {
            let address = SocketAddr::new(ip, port);
            self.shared(&UdpListen { address, interface: interface.map(str::to_owned) })
        };
        at(ip).or_else(|| at(any))
    }

    /// Returns the dedicated socket of this address, opening it if necessary.
    pub(super) fn open_dedicated(&self, listen: &UdpListen) -> io::Result<ReflectorHandle> {
        let mut dedicated = lock(&self.dedicated);
        dedicated.retain(|_, handle| !handle.is_closed());
        if let Some(handle) = dedicated.get(listen) {
            return Ok(handle.clone());
        }
        let options =
            UdpOptions { interface: listen.interface.as_deref(), ..UdpOptions::default() };
        let sockets = vec![TestSocket::bind(listen.address, &options)?];
        let (nobody, rules) = (Sessionless::Dropped, self.rules());
        let handle = self.reflectors.open(sockets, &nobody, rules, true)?;
        dedicated.insert(listen.clone(), handle.clone());
        Ok(handle)
    }
}
