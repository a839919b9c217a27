//! A request on its way through the layers, and the counts of all.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use hyper::Request;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Extensions, body::Body};

use super::{
    super::{admission::Place, connection::Peer, identity::Caller},
    method::{METHODS, Method},
};
use crate::{net::clock, proto, time::Monotonic};

/// Counts of the requests of each method, shared by all connections.
#[derive(Clone, Debug)]
pub(in crate::api) struct Account(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    /// In the order of [`METHODS`], and the other methods last.
    methods: Vec<Counter>,
    octets_in_flight: AtomicUsize,
}

#[derive(Debug, Default)]
struct Counter {
    completed: AtomicU64,
    failed: AtomicU64,
    /// Refused by a limit of the API: of size, memory, load or connections.
    exhausted: AtomicU64,
    duration_ns: AtomicU64,
}

/// A request and what was found out about it.
#[derive(Debug)]
pub(in crate::api) struct Call {
    pub(super) method: &'static Method,
    pub(super) peer: Peer,
    place: Option<Arc<Place>>,
    /// Set by the check of the role.
    pub(super) caller: OnceLock<Caller>,
    /// Places of the request in the limits of load, kept until the answer ends.
    pub(super) permits: Mutex<Vec<OwnedSemaphorePermit>>,
    /// Octets of the request that were counted as being in flight.
    pub(super) octets: AtomicUsize,
    account: Account,
    begun: Monotonic,
    is_finished: OnceLock<()>,
}

impl Call {
    /// Creates the call of a request.
    pub(super) fn new(request: &Request<Body>, account: Account) -> Self {
        let extensions = request.extensions();
        Self {
            method: Method::find(request.uri().path()),
            peer: extensions.get::<Peer>().cloned().unwrap_or_default(),
            place: extensions.get::<Arc<Place>>().cloned(),
            caller: OnceLock::new(),
            permits: Mutex::default(),
            octets: AtomicUsize::new(0),
            account,
            begun: clock::monotonic(),
            is_finished: OnceLock::new(),
        }
    }

    /// Returns the caller; `None` before the check of the role.
    pub(in crate::api) fn caller(&self) -> Option<&Caller> {
        self.caller.get()
    }

    /// Records that the role of the caller allows the request.
    pub(super) fn accepted(&self, identity: &str) {
        if let Some(place) = &self.place {
            place.identify(identity);
        }
    }

    /// Records that the answer begins: the request takes no memory any more. One that is not a stream
    /// has to be read.
    pub(super) fn answered(&self) {
        self.release_octets();
        if let Some(place) = self.place.as_ref().filter(|_| !self.method.is_stream) {
            place.answer_begun(self.number());
        }
    }

    /// Counts octets of the request as being in flight until its answer begins; returns false, and
    /// counts nothing, if that would exceed the limit.
    pub(super) fn add_octets(&self, octets: usize, limit: usize) -> bool {
        let all = &self.account.0.octets_in_flight;
        let is_within = all.fetch_add(octets, Relaxed) + octets <= limit;
        if is_within {
            self.octets.fetch_add(octets, Relaxed);
        } else {
            all.fetch_sub(octets, Relaxed);
        }
        is_within
    }

    fn release_octets(&self) {
        let octets = self.octets.swap(0, Relaxed);
        self.account.0.octets_in_flight.fetch_sub(octets, Relaxed);
    }

    /// Returns a number that no other call of the connection has.
    fn number(&self) -> u64 {
        std::ptr::from_ref(self).addr() as u64
    }

    /// Records the end of the answer, once.
    pub(super) fn finish(&self, code: Code) {
        if self.is_finished.set(()).is_err() {
            return;
        }
        let counts = &self.account.0;
        let index = METHODS.iter().position(|method| std::ptr::eq(method, self.method));
        let counter = &counts.methods[index.unwrap_or(METHODS.len())];
        counter.completed.fetch_add(1, Relaxed);
        counter.failed.fetch_add(u64::from(code != Code::Ok), Relaxed);
        counter.exhausted.fetch_add(u64::from(code == Code::ResourceExhausted), Relaxed);
        let duration_ns = clock::monotonic().since_ns(self.begun);
        counter.duration_ns.fetch_add(duration_ns, Relaxed);
        if let Some(place) = &self.place {
            place.answer_ended(self.number());
        }
        let caller = self.caller.get().map(|caller| caller.identity.as_str());
        tracing::debug!(method = self.method.name, caller, ?code, duration_ns, "API request");
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // The client went away before its answer.
        self.finish(Code::Cancelled);
        self.release_octets();
    }
}

impl Account {
    pub(in crate::api) fn new() -> Self {
        let methods = (0..=METHODS.len()).map(|_| Counter::default()).collect();
        Self(Arc::new(Counts { methods, octets_in_flight: AtomicUsize::new(0) }))
    }

    /// Returns the counts of each method that was called.
    pub(in crate::api) fn methods(&self) -> Vec<proto::ApiMethod> {
        let names = METHODS.iter().map(|method| method.name).chain(["other"]);
        let counted = names.zip(&self.0.methods);
        let counted = counted.filter(|(_, counter)| counter.completed.load(Relaxed) > 0);
        let counted = counted.map(|(name, counter)| proto::ApiMethod {
            name: name.to_owned(),
            requests: counter.completed.load(Relaxed),
            failed: counter.failed.load(Relaxed),
            refused_by_limits: counter.exhausted.load(Relaxed),
            duration_ns: counter.duration_ns.load(Relaxed),
        });
        counted.collect()
    }

    pub(in crate::api) fn octets_in_flight(&self) -> u64 {
        self.0.octets_in_flight.load(Relaxed) as u64
    }
}

/// Returns the call of a request, which the outermost layer has made.
pub(super) fn call(request: &Request<Body>) -> Option<Arc<Call>> {
    request.extensions().get::<Arc<Call>>().cloned()
}

/// Returns the caller of a request as the API shows it.
pub(in crate::api) fn caller(extensions: &Extensions) -> Option<proto::Caller> {
    let caller = extensions.get::<Arc<Call>>().and_then(|call| call.caller())?;
    Some(proto::Caller { identity: caller.identity.clone(), role: caller.role.into() })
}

/// Returns the author that is recorded with a change: the identity of the caller.
pub(in crate::api) fn author(extensions: &Extensions) -> String {
    let caller = extensions.get::<Arc<Call>>().and_then(|call| call.caller());
    caller.map_or_else(String::new, |caller| caller.identity.clone())
}

/// Keeps a permit until the answer to a call ends.
pub(super) fn keep(call: &Call, permit: OwnedSemaphorePermit) {
    call.permits.lock().unwrap_or_else(PoisonError::into_inner).push(permit);
}
