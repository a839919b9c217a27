//! Places for connections to the API: a bounded number, so that the API takes a bounded part of the
//! files that the process may open, and measurements keep theirs.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{net::clock, time::Monotonic};

/// Places that only the Unix socket can take: an operator on the host gets in whatever the network
/// does.
const UNIX_PLACES: usize = 16;
/// Interval of the log line about connections that were refused or displaced.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Connections of the API, open and refused.
#[derive(Debug)]
pub(super) struct Admission {
    places: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    admitted: u64,
    /// Open connections in the order of their admission.
    open: BTreeMap<u64, Open>,
    /// Open connections of each address.
    of_peer: HashMap<IpAddr, usize>,
    refused: u64,
    displaced: u64,
    /// Connections refused or displaced since the latest line in the log, and its time.
    unlogged: u64,
    logged: Option<Monotonic>,
}

#[derive(Debug)]
struct Open {
    /// Address of a TCP connection; `None` on the Unix socket.
    peer: Option<IpAddr>,
    /// A request of it was completed.
    is_useful: Arc<AtomicBool>,
    token: CancellationToken,
}

/// Connections since the agent started, and those that are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AdmissionCounters {
    pub(super) open: usize,
    pub(super) places: usize,
    pub(super) admitted: u64,
    pub(super) refused: u64,
    pub(super) displaced: u64,
}

/// Place of an open connection, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    number: u64,
    is_useful: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Admission {
    /// Creates an admission with a number of places in all.
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places: places.max(2 * UNIX_PLACES), inner: Mutex::default() })
    }

    /// Admits a connection, of an address or of the Unix socket. If there is no place, it takes that
    /// of the oldest connection without a completed request; `None` if each has completed one.
    pub(super) fn admit(self: &Arc<Self>, peer: Option<IpAddr>) -> Option<Place> {
        let mut inner = self.lock();
        let is_full = match peer {
            None => inner.open.len() >= self.places,
            Some(peer) => {
                let network = self.places - UNIX_PLACES;
                let of_peer = inner.of_peer.get(&peer).copied().unwrap_or(0);
                // One address leaves places to others.
                of_peer >= network.div_ceil(2) || inner.open_on_network() >= network
            }
        };
        if is_full && !inner.displace(peer) {
            inner.refused += 1;
            inner.log(self.places);
            return None;
        }
        inner.admitted += 1;
        let number = inner.admitted;
        let (is_useful, token) = (Arc::<AtomicBool>::default(), CancellationToken::new());
        if let Some(peer) = peer {
            *inner.of_peer.entry(peer).or_default() += 1;
        }
        inner
            .open
            .insert(number, Open { peer, is_useful: is_useful.clone(), token: token.clone() });
        if is_full {
            inner.log(self.places);
        }
        Some(Place { admission: self.clone(), number, is_useful, token })
    }

    pub(super) fn counters(&self) -> AdmissionCounters {
        let inner = self.lock();
        AdmissionCounters {
            open: inner.open.len(),
            places: self.places,
            admitted: inner.admitted,
            refused: inner.refused,
            displaced: inner.displaced,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn open_on_network(&self) -> usize {
        self.of_peer.values().sum()
    }

    /// Ends the oldest connection without a completed request: of this address if it has one, else of
    /// any on the network. Returns false if there is none.
    fn displace(&mut self, peer: Option<IpAddr>) -> bool {
        let idle = |open: &Open| !open.is_useful.load(Relaxed);
        let own =
            self.open.iter().find(|(_, open)| peer.is_some() && open.peer == peer && idle(open));
        let any = || self.open.iter().find(|(_, open)| open.peer.is_some() && idle(open));
        let Some(number) = own.or_else(any).map(|(number, _)| *number) else { return false };
        if let Some(open) = self.remove(number) {
            open.token.cancel();
        }
        self.displaced += 1;
        true
    }

    fn remove(&mut self, number: u64) -> Option<Open> {
        let open = self.open.remove(&number)?;
        if let Some(peer) = open.peer
            && let Some(count) = self.of_peer.get_mut(&peer)
        {
            *count -= 1;
            if *count == 0 {
                self.of_peer.remove(&peer);
            }
        }
        Some(open)
    }

    fn log(&mut self, places: usize) {
        self.unlogged += 1;
        let now = clock::monotonic();
        let is_due = |logged| now.since_ns(logged) >= LOG_INTERVAL.as_nanos() as u64;
        if self.logged.is_none_or(is_due) {
            tracing::warn!(
                connections = std::mem::take(&mut self.unlogged),
                places,
                "all places for API connections are taken: connections refused, or displaced while \
                 they had completed no request"
            );
            self.logged = Some(now);
        }
    }
}

impl Place {
    /// Records that a request of the connection was completed: nobody displaces it any more.
    pub(super) fn completed_request(&self) {
        self.is_useful.store(true, Relaxed);
    }

    /// Waits until another connection gets the place.
    pub(super) async fn displaced(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: usize = 48;

    fn peer(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[test]
    fn a_newcomer_displaces_the_oldest_connection_without_a_request() {
        let admission = Admission::new(PLACES);
        let silent: Vec<_> = (0..32).map(|n| admission.admit(peer(n)).unwrap()).collect();
        silent[0].completed_request();
        let newcomer = admission.admit(peer(99)).unwrap();
        let displaced = |place: &Place| place.token.is_cancelled();
        assert_eq!(silent.iter().filter(|place| displaced(place)).count(), 1);
        assert!(displaced(&silent[1]), "the oldest but one, which was useful");
        drop((silent, newcomer));
        let counters = admission.counters();
        assert_eq!((counters.open, counters.displaced, counters.refused), (0, 1, 0));
    }

    #[test]
    fn connections_with_completed_requests_stay_and_newcomers_are_refused() {
        let admission = Admission::new(PLACES);
        let useful: Vec<_> = (0..32).map(|n| admission.admit(peer(n)).unwrap()).collect();
        useful.iter().for_each(Place::completed_request);
        assert!(admission.admit(peer(99)).is_none());
        let local: Vec<_> = (0..UNIX_PLACES).map(|_| admission.admit(None).unwrap()).collect();
        assert!(admission.admit(None).is_none(), "all places are taken");
        assert_eq!(admission.counters().refused, 2);
        drop(local);
        assert!(admission.admit(None).is_some());
    }

    #[test]
    fn one_address_leaves_half_of_the_places_to_others() {
        let admission = Admission::new(PLACES);
        let own: Vec<_> = (0..40).filter_map(|_| admission.admit(peer(1))).collect();
        assert_eq!(own.iter().filter(|place| !place.token.is_cancelled()).count(), 16);
        let others: Vec<_> = (2..18).map(|n| admission.admit(peer(n)).unwrap()).collect();
        assert!(others.iter().all(|place| !place.token.is_cancelled()));
        assert!(own[39].admission.counters().open <= PLACES);
    }
}
