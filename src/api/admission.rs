//! Places for connections to the API: a bounded number, so that the API takes a bounded part of the
//! files that the process may open, and measurements keep theirs.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::log_limit::LogLimit;
use crate::{net::clock, time::Monotonic};

/// Places that only the Unix socket can take, so that an operator on the host can connect whatever
/// the network does.
const UNIX_PLACES: usize = 16;

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
    log_limit: LogLimit,
}

#[derive(Debug)]
struct Open {
    /// Address of a TCP connection; `None` on the Unix socket.
    peer: Option<IpAddr>,
    /// Identity of the caller, once it has made a request that its role allows.
    identity: Arc<OnceLock<String>>,
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
    identity: Arc<OnceLock<String>>,
    token: CancellationToken,
    /// Answers that the caller has not read to their end, and the time at which they began.
    unread: Mutex<BTreeMap<u64, Monotonic>>,
}

impl Admission {
    /// Creates an admission with a number of places in all.
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places: places.max(2 * UNIX_PLACES), inner: Mutex::default() })
    }

    /// Admits a connection, of an address or of the Unix socket. If all places are taken, it closes
    /// another one; `None` if there is none to be closed.
    pub(super) fn admit(self: &Arc<Self>, peer: Option<IpAddr>) -> Option<Place> {
        let mut inner = self.lock();
        let places = if peer.is_some() { self.places - UNIX_PLACES } else { self.places };
        let of_peer = peer.and_then(|peer| inner.of_peer.get(&peer).copied()).unwrap_or(0);
        // One address leaves places to others.
        let is_address_full = of_peer >= places.div_ceil(2);
        let is_full = is_address_full || inner.open.len() >= places;
        if is_full && !inner.displace(peer.filter(|_| is_address_full)) {
            inner.refused += 1;
            inner.log(self.places);
            return None;
        }
        inner.admitted += 1;
        let number = inner.admitted;
        let (identity, token) = (Arc::<OnceLock<String>>::default(), CancellationToken::new());
        if let Some(peer) = peer {
            *inner.of_peer.entry(peer).or_default() += 1;
        }
        let open = Open { peer, identity: identity.clone(), token: token.clone() };
        inner.open.insert(number, open);
        if is_full {
            inner.log(self.places);
        }
        Some(Place { admission: self.clone(), number, identity, token, unread: Mutex::default() })
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
    /// Closes one connection, of this address if one is given: the oldest without an accepted request,
    /// else the oldest of the caller with the most connections. Returns false if no caller has two.
    fn displace(&mut self, peer: Option<IpAddr>) -> bool {
        let candidates =
            || self.open.iter().filter(|(_, open)| peer.is_none() || open.peer == peer);
        let silent = candidates().find(|(_, open)| open.identity.get().is_none());
        let mut of_callers: HashMap<&str, (usize, u64)> = HashMap::new();
        for (number, open) in candidates() {
            if let Some(identity) = open.identity.get() {
                of_callers.entry(identity).or_insert((0, *number)).0 += 1;
            }
        }
        let most = of_callers.values().max_by_key(|(count, _)| *count);
        let oldest = most.filter(|(count, _)| *count > 1).map(|(_, oldest)| *oldest);
        let Some(number) = silent.map(|(number, _)| *number).or(oldest) else { return false };
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
        if let Some(connections) = self.log_limit.count() {
            tracing::warn!(
                connections,
                places,
                "all places for API connections are taken: connections refused or displaced"
            );
        }
    }
}

impl Place {
    /// Records that a request of this caller was accepted on the connection.
    pub(super) fn identify(&self, identity: &str) {
        self.identity.get_or_init(|| identity.to_owned());
    }

    /// Records that an answer begins that the caller has to read.
    pub(super) fn answer_begun(&self, call: u64) {
        self.unread_answers().insert(call, clock::monotonic());
    }

    /// Records that an answer was read, or given up.
    pub(super) fn answer_ended(&self, call: u64) {
        self.unread_answers().remove(&call);
    }

    /// Returns whether an answer has waited for its reader for `limit`.
    pub(super) fn has_unread_answer(&self, limit: Duration) -> bool {
        let (now, limit_ns) = (clock::monotonic(), limit.as_nanos() as u64);
        self.unread_answers().values().any(|begun| now.since_ns(*begun) >= limit_ns)
    }

    fn unread_answers(&self) -> MutexGuard<'_, BTreeMap<u64, Monotonic>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn is_displaced(place: &Place) -> bool {
        place.token.is_cancelled()
    }

    #[test]
    fn a_newcomer_displaces_the_oldest_connection_without_an_accepted_request() {
        let admission = Admission::new(PLACES);
        let silent: Vec<_> = (0..32).map(|n| admission.admit(peer(n)).unwrap()).collect();
        silent[0].identify("uid:1");
        let newcomer = admission.admit(peer(99)).unwrap();
        assert_eq!(silent.iter().filter(|place| is_displaced(place)).count(), 1);
        assert!(is_displaced(&silent[1]), "the oldest has a caller");
        drop((silent, newcomer));
        let counters = admission.counters();
        assert_eq!((counters.open, counters.displaced, counters.refused), (0, 1, 0));
    }

    #[test]
    fn a_caller_with_many_connections_locks_nobody_out() {
        let admission = Admission::new(PLACES);
        let collector = admission.admit(peer(1)).unwrap();
        collector.identify("uid:0");
        let many: Vec<_> = (0..40)
            .filter_map(|_| admission.admit(peer(1)))
            .inspect(|place| place.identify("uid:1001"))
            .collect();
        assert!(!is_displaced(&collector));
        let newcomer = admission.admit(peer(1)).unwrap();
        newcomer.identify("uid:0");
        assert!(!is_displaced(&collector) && !is_displaced(&newcomer));
        assert!(many.iter().filter(|place| !is_displaced(place)).count() <= 16);
    }

    #[test]
    fn callers_with_one_connection_stay_and_newcomers_are_refused() {
        let admission = Admission::new(PLACES);
        let callers: Vec<_> = (0..32).map(|n| admission.admit(peer(n)).unwrap()).collect();
        for (n, place) in callers.iter().enumerate() {
            place.identify(&format!("uid:{n}"));
        }
        assert!(admission.admit(peer(99)).is_none());
        let local: Vec<_> = (0..UNIX_PLACES).map(|_| admission.admit(None).unwrap()).collect();
        for (n, place) in local.iter().enumerate() {
            place.identify(&format!("uid:{}", n + 100));
        }
        assert!(admission.admit(None).is_none(), "all places are taken");
        assert_eq!(admission.counters().refused, 2);
        drop(local);
        assert!(admission.admit(None).is_some());
    }

    #[test]
    fn connections_on_the_unix_socket_count_as_well() {
        let admission = Admission::new(PLACES);
        let mut places: Vec<_> = (0..100).filter_map(|_| admission.admit(None)).collect();
        places.extend((0..100).filter_map(|n| admission.admit(peer(n))));
        assert!(admission.counters().open <= PLACES);
    }

    #[test]
    fn an_answer_that_is_not_read_is_noticed() {
        let place = Admission::new(PLACES).admit(None).unwrap();
        place.answer_begun(7);
        assert!(place.has_unread_answer(Duration::ZERO));
        assert!(!place.has_unread_answer(Duration::from_secs(60)));
        place.answer_ended(7);
        assert!(!place.has_unread_answer(Duration::ZERO));
    }

    #[test]
    fn one_address_leaves_half_of_the_places_to_others() {
        let admission = Admission::new(PLACES);
        let own: Vec<_> = (0..40).filter_map(|_| admission.admit(peer(1))).collect();
        assert_eq!(own.iter().filter(|place| !is_displaced(place)).count(), 16);
        let others: Vec<_> = (2..18).map(|n| admission.admit(peer(n)).unwrap()).collect();
        assert!(others.iter().all(|place| !is_displaced(place)));
        assert!(own[39].admission.counters().open <= PLACES);
    }
}
