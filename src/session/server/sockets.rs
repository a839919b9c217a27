//! The UDP sockets of the server role, by address: those that stand as long as the configuration
//! names them, and those that a session asked for and that go with their last session.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::reflector::ReflectorHandle;
use crate::{
    model::UdpListen,
    net::{TestSocket, UdpOptions},
    supervise::Tasks,
    twamp::reflector::{ReflectorCounters, Sessionless},
};

/// All sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    standing: Mutex<HashMap<UdpListen, Standing>>,
    own: Mutex<HashMap<UdpListen, ReflectorHandle>>,
    counters: Arc<ReflectorCounters>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Standing {
    handle: ReflectorHandle,
    token: tokio_util::sync::CancellationToken,
    transmit_stamps: bool,
}

impl Sockets {
    pub(super) fn new(counters: Arc<ReflectorCounters>, tasks: Tasks) -> Self {
        Self { standing: Mutex::default(), own: Mutex::default(), counters, tasks }
    }

    /// Opens a standing socket that is not open.
    pub(super) fn stand(&self, place: &UdpListen, sessionless: Sessionless) -> io::Result<()> {
        let mut standing = lock(&self.standing);
        // A reflector of STAMP with state tells when its replies really went out.
        let transmit_stamps = matches!(&sessionless, Sessionless::Stamp(stamp) if stamp.stateful);
        if let Some(open) = standing.get(place).filter(|open| !open.handle.is_closed()) {
            if open.transmit_stamps == transmit_stamps {
                return Ok(());
            }
            open.token.cancel();
        }
        let interface = place.interface.as_deref();
        let options = UdpOptions { interface, transmit_stamps, ..UdpOptions::default() };
        let socket = TestSocket::bind(place.address, &options)?;
        let token = self.tasks.token().child_token();
        let counters = self.counters.clone();
        let (handle, task) =
            ReflectorHandle::new(socket, sessionless, counters, false, token.clone());
        self.tasks.spawn("reflector", task);
        standing.insert(place.clone(), Standing { handle, token, transmit_stamps });
        Ok(())
    }

    /// Closes standing sockets that are not in `keep`; their sessions end.
    pub(super) fn retain(&self, keep: &[UdpListen]) {
        lock(&self.standing).retain(|place, socket| {
            let stays = keep.contains(place);
            if !stays {
                socket.token.cancel();
            }
            stays
        });
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
        let interface = place.interface.as_deref();
        let socket =
            TestSocket::bind(place.address, &UdpOptions { interface, ..UdpOptions::default() })?;
        let (token, counters) = (self.tasks.token(), self.counters.clone());
        let (handle, task) =
            ReflectorHandle::new(socket, Sessionless::Nobody, counters, true, token);
        self.tasks.spawn("reflector", task);
        own.insert(place.clone(), handle.clone());
        Ok(handle)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
