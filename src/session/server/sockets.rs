//! The UDP sockets of the server role, by address: those that stand as long as the configuration
//! names them, and those that a session asked for and that go with their last session.

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
    twamp::reflector::Sessionless,
};

/// All sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    standing: Mutex<HashMap<UdpListen, Standing>>,
    own: Mutex<HashMap<UdpListen, ReflectorHandle>>,
    reflectors: Arc<Reflectors>,
    /// Packets answered in a second to each sender.
    sender_limit: Mutex<Option<u32>>,
}

#[derive(Debug)]
struct Standing {
    handle: ReflectorHandle,
    transmit_stamps: TransmitStamps,
}

impl Sockets {
    pub(super) fn new(reflectors: Arc<Reflectors>) -> Self {
        Self {
            standing: Mutex::default(),
            own: Mutex::default(),
            reflectors,
            sender_limit: Mutex::default(),
        }
    }

    /// Opens a standing socket that is not open, on each thread.
    pub(super) async fn stand(
        &self,
        place: &UdpListen,
        sessionless: Sessionless,
    ) -> io::Result<()> {
        // A reflector of STAMP with state tells when its replies really went out.
        let transmit_stamps = match &sessionless {
            Sessionless::Stamp(stamp) if stamp.stateful => TransmitStamps::WithPacket,
            Sessionless::Stamp(_) | Sessionless::Light(_) | Sessionless::Nobody => {
                TransmitStamps::None
            }
        };
        let before = {
            let mut standing = lock(&self.standing);
            match standing.get(place).filter(|open| !open.handle.is_closed()) {
                Some(open) if open.transmit_stamps == transmit_stamps => return Ok(()),
                _ => standing.remove(place),
            }
        };
        if let Some(before) = before {
            before.handle.close().await;
        }
        let options = UdpOptions {
            interface: place.interface.as_deref(),
            transmit_stamps,
            ..UdpOptions::default()
        };
        let threads = self.reflectors.threads();
        let sockets = TestSocket::bind_group(place.address, &options, threads)?;
        let handle = self.reflectors.open(sockets, &sessionless, self.sender_limit(), false)?;
        lock(&self.standing).insert(place.clone(), Standing { handle, transmit_stamps });
        Ok(())
    }

    fn sender_limit(&self) -> Option<u32> {
        *lock(&self.sender_limit)
    }

    /// Packets answered in a second to each sender, on all sockets.
    pub(super) async fn set_sender_limit(&self, limit: Option<u32>) {
        if std::mem::replace(&mut *lock(&self.sender_limit), limit) == limit {
            return;
        }
        let standing: Vec<_> = lock(&self.standing).values().map(|s| s.handle.clone()).collect();
        let own: Vec<_> = lock(&self.own).values().cloned().collect();
        for handle in standing.into_iter().chain(own) {
            handle.set_sender_limit(limit).await;
        }
    }

    /// Closes standing sockets that are not in `keep`; their sessions end.
    pub(super) async fn retain(&self, keep: &[UdpListen]) {
        let gone: Vec<Standing> = {
            let mut standing = lock(&self.standing);
            let (stay, go) = std::mem::take(&mut *standing)
                .into_iter()
                .partition::<HashMap<_, _>, _>(|(place, _)| keep.contains(place));
            *standing = stay;
            go.into_values().collect()
        };
        for socket in gone {
            socket.handle.close().await;
        }
    }

    /// The standing socket of exactly this place.
    pub(super) fn standing(&self, place: &UdpListen) -> Option<ReflectorHandle> {
        lock(&self.standing).get(place).map(|open| open.handle.clone())
    }

    /// The standing socket that packets to this address and port come to, on the interface of their
    /// control connection.
    pub(super) fn serving(
        &self,
        ip: IpAddr,
        port: u16,
        interface: Option<&str>,
    ) -> Option<ReflectorHandle> {
        let any: IpAddr = if ip.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let at = |ip| {
            let address = SocketAddr::new(ip, port);
            self.standing(&UdpListen { address, interface: interface.map(str::to_owned) })
        };
        at(ip).or_else(|| at(any))
    }

    /// A socket of this address that goes with its last session: one that is there, or a new one.
    pub(super) fn own(&self, place: &UdpListen) -> io::Result<ReflectorHandle> {
        let mut own = lock(&self.own);
        own.retain(|_, handle| !handle.is_closed());
        if let Some(handle) = own.get(place) {
            return Ok(handle.clone());
        }
        let options = UdpOptions { interface: place.interface.as_deref(), ..UdpOptions::default() };
        let sockets = vec![TestSocket::bind(place.address, &options)?];
        let (nobody, limit) = (Sessionless::Nobody, self.sender_limit());
        let handle = self.reflectors.open(sockets, &nobody, limit, true)?;
        own.insert(place.clone(), handle.clone());
        Ok(handle)
    }
}
